package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	directoryBlockMagic4 = 0x58443242 // "XD2B": the only block of a directory; its index is at the end
	directoryDataMagic4  = 0x58443244 // "XD2D"
	directoryBlockMagic5 = 0x58444233 // "XDB3"
	directoryDataMagic5  = 0x58444433 // "XDD3"

	directoryHeader4 = 16
	directoryHeader5 = 64
	directoryTail    = 8 // number of entries of the index, and of unused ones
	unusedTag        = 0xffff

	// directoryIndex is the byte of the data fork where the index of a directory begins.
	directoryIndex = 32 << 30
)

var directoryIdentity = identity{crc: 4, blkno: 8, lsn: 16, uuid: 24, owner: 40}

// entries calls yield with the entries of a directory until it returns false. A damaged block does not hide those of
// others: its error comes last.
func (f *FileSystem) entries(n *inode, yield func(filesystem.Entry) bool) error {
	if n.data.format == formatLocal {
		return f.localEntries(n, yield)
	}
	c := collector{f: f, n: n, yield: yield}
	limit := uint64(directoryIndex >> f.super.blockLog)
	for e, err := range f.extents(n, &n.data, 0) {
		if err != nil {
			return err
		}
		if e.start >= limit {
			break
		}
		e.blocks = min(e.blocks, limit-e.start)
		if more, err := c.extent(e); err != nil || !more {
			return err
		}
	}
	if c.found != 0 {
		return damaged("its block %d is not whole", c.at)
	}
	return c.damage
}

// collector puts blocks of a directory together: one may be in several extents.
type collector struct {
	f     *FileSystem
	n     *inode
	yield func(filesystem.Entry) bool

	have      []piece // what was found of the current one
	at, found uint64  // where it begins in the fork, and how many blocks were found of it
	damage    error   // the first damaged one
}

// extent takes the blocks of an extent, and reports whether to go on.
func (c *collector) extent(e extent) (bool, error) {
	log := c.f.super.blockLog
	whole := uint64(1) << c.f.super.directoryBlockLog
	for start := e.start; start < e.end(); {
		if c.found == 0 {
			c.at = start
		}
		if start != c.at+c.found || c.at%whole != 0 || e.unwritten {
			return false, damaged("its block %d is missing", c.at)
		}
		blocks := min(whole-c.found, e.end()-start)
		c.have = append(c.have, piece{e.device + int64((start-e.start)<<log), int(blocks << log)})
		c.found, start = c.found+blocks, start+blocks
		if c.found < whole {
			continue
		}
		more, err := c.f.directoryBlock(c.n, c.have, int(whole<<log), c.yield)
		switch {
		case err != nil && !errors.Is(err, filesystem.ErrDamaged):
			return false, err
		case err != nil && c.damage == nil:
			c.damage = err
		case err == nil && !more:
			return false, nil
		}
		c.have, c.found = c.have[:0], 0
	}
	return true, nil
}

// piece is a range of the device.
type piece struct {
	off int64
	n   int
}

// directoryBlock reads a block of entries from its pieces.
func (f *FileSystem) directoryBlock(n *inode, pieces []piece, size int, yield func(filesystem.Entry) bool) (bool, error) {
	b := make([]byte, 0, size)
	anyReplayed := false
	for _, p := range pieces {
		part, replayed, err := f.read(p.off, p.n)
		if err != nil {
			return false, err
		}
		b, anyReplayed = append(b, part...), anyReplayed || replayed
	}
	off := pieces[0].off
	be := binary.BigEndian
	start, end := directoryHeader4, len(b)
	magic := be.Uint32(b)
	whole := magic == directoryBlockMagic4
	if f.super.v5 {
		start, whole = directoryHeader5, magic == directoryBlockMagic5
		if magic != directoryBlockMagic5 && magic != directoryDataMagic5 {
			return false, damaged("the block at byte %d is no block of a directory", off)
		}
		if err := f.super.check(b, directoryIdentity, off, n.number, anyReplayed); err != nil {
			return false, err
		}
	} else if magic != directoryBlockMagic4 && magic != directoryDataMagic4 {
		return false, damaged("the block at byte %d is no block of a directory", off)
	}
	if whole {
		count := uint64(be.Uint32(b[len(b)-directoryTail:]))
		if count > uint64(len(b)-start-directoryTail)/8 {
			return false, damaged("the directory block at byte %d has an index of %d entries", off, count)
		}
		end = len(b) - directoryTail - int(count)*8
	}
	more, err := f.blockEntries(b[start:end], yield)
	if err != nil {
		err = fmt.Errorf("directory block at byte %d: %w", off, err)
	}
	return more, err
}

// blockEntries yields the entries between the header of a block and its index.
func (f *FileSystem) blockEntries(b []byte, yield func(filesystem.Entry) bool) (bool, error) {
	be := binary.BigEndian
	extra := 11 // inode, length of the name, and tag
	if f.super.fileType {
		extra++
	}
	for len(b) > 0 {
		if len(b) < 8 {
			return false, damaged("%d bytes are left after the last entry", len(b))
		}
		if be.Uint16(b) == unusedTag {
			n := int(be.Uint16(b[2:]))
			if n == 0 || n%8 != 0 || n > len(b) {
				return false, damaged("an unused range has %d bytes", n)
			}
			b = b[n:]
			continue
		}
		if len(b) < 16 {
			return false, damaged("an entry has only %d bytes", len(b))
		}
		length := int(b[8])
		n := (length + extra + 7) &^ 7
		if length == 0 || n > len(b) {
			return false, damaged("a name has %d bytes", length)
		}
		more, err := f.entry(string(b[9:9+length]), be.Uint64(b), yield)
		if err != nil || !more {
			return false, err
		}
		b = b[n:]
	}
	return true, nil
}

// localEntries yields the entries of a directory that is in its inode.
func (f *FileSystem) localEntries(n *inode, yield func(filesystem.Entry) bool) error {
	be := binary.BigEndian
	b := n.data.b
	if n.size < 6 || n.size > int64(len(b)) {
		return damaged("it has %d bytes, of which %d are in the inode", n.size, len(b))
	}
	b = b[:n.size]
	count, width := int(b[0]), 4
	if b[1] != 0 {
		// One inode number needs more than 32 bits: so all have 64.
		count, width = max(count, int(b[1])), 8
	}
	extra := 3 + width // length of the name, offset and inode
	if f.super.fileType {
		extra++
	}
	if len(b) < 2+width {
		return damaged("it has only %d bytes", len(b))
	}
	b = b[2+width:]
	for range count {
		if len(b) < extra || int(b[0])+extra > len(b) || b[0] == 0 {
			return damaged("a name runs over the end of it")
		}
		length := int(b[0])
		var ino uint64
		if at := length + extra - width; width == 8 {
			ino = be.Uint64(b[at:])
		} else {
			ino = uint64(be.Uint32(b[at:]))
		}
		more, err := f.entry(string(b[3:3+length]), ino, yield)
		if err != nil || !more {
			return err
		}
		b = b[length+extra:]
	}
	return nil
}

// entry yields an entry, unless it is the directory itself or the one above. Its inode is not looked at: Stat says what is wrong with it.
func (f *FileSystem) entry(name string, ino uint64, yield func(filesystem.Entry) bool) (bool, error) {
	if name == "." || name == ".." {
		return true, nil
	}
	if strings.ContainsAny(name, "/\x00") {
		return false, damaged("%q is no name", name)
	}
	return yield(filesystem.Entry{Name: name, ID: filesystem.ID(ino)}), nil
}
