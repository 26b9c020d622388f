package xfs

import (
	"encoding/binary"
	"iter"
	"sort"
)

const (
	bmapMagic4 = 0x424d4150 // "BMAP"
	bmapMagic5 = 0x424d4133 // "BMA3"

	recordSize  = 16
	treeHeader4 = 24
	treeHeader5 = 72
	rootHeader  = 4

	// maxLevels bounds the height of a tree of extents (XFS_BM_MAXLEVELS is 9 or less).
	maxLevels = 12
)

var treeIdentity = identity{crc: 64, blkno: 24, lsn: 32, uuid: 40, owner: 56}

// extent maps blocks of a fork to blocks of the device.
type extent struct {
	start     uint64 // block of the fork
	device    int64  // byte of the device
	blocks    uint64
	unwritten bool
}

func (e extent) end() uint64 { return e.start + e.blocks }

// extents yields those extents of a fork that end after block from, in ascending order, without overlap.
func (f *FileSystem) extents(n *inode, k *fork, from uint64) iter.Seq2[extent, error] {
	return func(yield func(extent, error) bool) {
		w := walk{f: f, n: n, from: from, yield: yield}
		var err error
		switch k.format {
		case formatExtents:
			if k.extents > uint64(len(k.b)/recordSize) {
				err = damaged("it has %d extents in %d bytes", k.extents, len(k.b))
				break
			}
			_, err = w.records(k.b[:k.extents*recordSize])
		case formatTree:
			_, err = w.root(k.b)
		default:
			err = damaged("its content has format %d, which has no extents", k.format)
		}
		if err != nil {
			yield(extent{}, err)
		}
	}
}

// walk goes through the extents of a fork.
type walk struct {
	f     *FileSystem
	n     *inode
	from  uint64
	next  uint64 // what comes next begins here or later
	lists int    // lists of extents seen so far
	yield func(extent, error) bool
}

// records yields the extents of a list, and reports whether to go on.
func (w *walk) records(b []byte) (bool, error) {
	count := len(b) / recordSize
	first := sort.Search(count, func(i int) bool {
		start, blocks := recordRange(b[i*recordSize:])
		return start+blocks > w.from
	})
	// Only the first list may have nothing to yield. So a tree cannot lead to the same list again and again.
	if w.lists++; w.lists > 1 && first == count {
		return false, damaged("its extents do not ascend")
	}
	for i := first; i < count; i++ {
		e, err := w.f.parseRecord(b[i*recordSize:])
		if err != nil {
			return false, err
		}
		if e.start < w.next {
			return false, damaged("its extent at block %d begins before the end of the one before it", e.start)
		}
		w.next = e.end()
		if !w.yield(e, nil) {
			return false, nil
		}
	}
	return true, nil
}

func recordRange(b []byte) (start, blocks uint64) {
	high, low := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	return high << 1 >> 10, low & (1<<21 - 1)
}

func (f *FileSystem) parseRecord(b []byte) (extent, error) {
	high, low := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	e := extent{unwritten: high>>63 != 0}
	e.start, e.blocks = recordRange(b)
	if e.blocks == 0 {
		return e, damaged("its extent at block %d is empty", e.start)
	}
	var err error
	e.device, err = f.super.blockOffset(high&(1<<9-1)<<43|low>>21, e.blocks)
	return e, err
}

// root goes through the tree below the root in an inode.
func (w *walk) root(b []byte) (bool, error) {
	if len(b) < rootHeader {
		return false, damaged("the root of its extents has %d bytes", len(b))
	}
	level, count := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	most := (len(b) - rootHeader) / 16
	if level == 0 || level > maxLevels || count == 0 || count > most {
		return false, damaged("the root of its extents has level %d and %d records", level, count)
	}
	return w.children(b[rootHeader:], count, most, level)
}

// children goes through the subtrees of a node: keys, then room for more, then pointers.
func (w *walk) children(b []byte, count, most, level int) (bool, error) {
	be := binary.BigEndian
	key := func(i int) uint64 { return be.Uint64(b[8*i:]) }
	// The last child that begins at or before the first block that is asked for.
	first := sort.Search(count, func(i int) bool { return key(i) > w.from }) - 1
	for i := max(first, 0); i < count; i++ {
		if i > 0 && key(i) <= key(i-1) {
			return false, damaged("the keys of its extents do not ascend")
		}
		more, err := w.block(be.Uint64(b[8*most+8*i:]), level-1)
		if err != nil || !more {
			return more, err
		}
	}
	return true, nil
}

// block goes through the subtree of a block.
func (w *walk) block(block uint64, level int) (bool, error) {
	off, err := w.f.super.blockOffset(block, 1)
	if err != nil {
		return false, err
	}
	b, replayed, err := w.f.read(off, int(w.f.super.blockSize))
	if err != nil {
		return false, err
	}
	header, magic := treeHeader4, uint32(bmapMagic4)
	if w.f.super.v5 {
		header, magic = treeHeader5, bmapMagic5
	}
	be := binary.BigEndian
	if be.Uint32(b) != magic {
		return false, damaged("the block at byte %d is no block of extents", off)
	}
	if w.f.super.v5 {
		owner := w.n.number
		if w.f.overlay.owners[owner] {
			owner = 0 // the log changes the owner
		}
		if err := w.f.super.check(b, treeIdentity, off, owner, replayed); err != nil {
			return false, err
		}
	}
	count, most := int(be.Uint16(b[6:])), (len(b)-header)/16
	if int(be.Uint16(b[4:])) != level || count == 0 || count > most {
		return false, damaged("the block of extents at byte %d has level %d, not %d, and %d records", off, be.Uint16(b[4:]), level, count)
	}
	if level == 0 {
		return w.records(b[header : header+count*recordSize])
	}
	return w.children(b[header:], count, most, level)
}
