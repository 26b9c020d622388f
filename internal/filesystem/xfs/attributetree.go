package xfs

import (
	"encoding/binary"
)

const (
	leafMagic4 = 0xfbee // XFS_ATTR_LEAF_MAGIC
	nodeMagic4 = 0xfebe
	leafMagic5 = 0x3bee
	nodeMagic5 = 0x3ebe

	leafEntries4 = 32 // where the entries of a leaf begin
	leafEntries5 = 80
	nodeEntries4 = 16
	nodeEntries5 = 64

	remoteMagic  = 0x5841524d // "XARM"
	remoteHeader = 56

	maxNodes = 5 // XFS_DA_NODE_MAXDEPTH: levels of a tree of names
)

var (
	leafIdentity   = identity{crc: 12, blkno: 16, lsn: 24, uuid: 32, owner: 48}
	remoteIdentity = identity{crc: 12, blkno: 40, lsn: 48, uuid: 16, owner: 32}
)

// attributeTree reads the attributes that are in blocks: a leaf, or a tree of them. The leaves are a list; the first one is below the
// first entries of the nodes.
func (f *FileSystem) attributeTree(n *inode, a *attributes) error {
	be := binary.BigEndian
	block, level := uint64(0), -1
	seen := map[uint64]bool{}
	for {
		if seen[block] {
			return damaged("the list of its extended attributes comes back to block %d", block)
		}
		seen[block] = true
		b, err := f.attributeBlock(n, block)
		if err != nil {
			return err
		}
		node, entries, at := nodeMagic4, nodeEntries4, 12
		if f.super.v5 {
			node, entries, at = nodeMagic5, nodeEntries5, 56
		}
		if int(be.Uint16(b[8:])) != node {
			if level > 1 {
				return damaged("block %d of its extended attributes is a leaf, not a node", block)
			}
			level = 0
			if err := f.leaf(n, b, a); err != nil {
				return err
			}
			if block = uint64(be.Uint32(b)); block == 0 {
				return nil
			}
			continue
		}
		count, at2 := int(be.Uint16(b[at:])), int(be.Uint16(b[at+2:]))
		if level >= 0 && at2 != level-1 || at2 == 0 || at2 > maxNodes || count == 0 {
			return damaged("block %d of its extended attributes has level %d and %d entries", block, at2, count)
		}
		level, block = at2, uint64(be.Uint32(b[entries+4:]))
	}
}

// attributeBlock reads a node or a leaf.
func (f *FileSystem) attributeBlock(n *inode, block uint64) ([]byte, error) {
	off, err := f.attributeOffset(n, block)
	if err != nil {
		return nil, err
	}
	b, replayed, err := f.read(off, int(f.super.blockSize))
	if err != nil {
		return nil, err
	}
	magic := binary.BigEndian.Uint16(b[8:])
	if f.super.v5 {
		if magic != leafMagic5 && magic != nodeMagic5 {
			return nil, damaged("the block at byte %d has no extended attributes", off)
		}
		return b, f.super.check(b, leafIdentity, off, n.number, replayed)
	}
	if magic != leafMagic4 && magic != nodeMagic4 {
		return nil, damaged("the block at byte %d has no extended attributes", off)
	}
	return b, nil
}

// attributeOffset returns where a block of the attribute fork is.
func (f *FileSystem) attributeOffset(n *inode, block uint64) (int64, error) {
	for e, err := range f.extents(n, &n.attr, block) {
		if err != nil {
			return 0, err
		}
		if e.start > block || e.unwritten {
			break
		}
		return e.device + int64((block-e.start)<<f.super.blockLog), nil
	}
	return 0, damaged("block %d of its extended attributes is missing", block)
}

// leaf reads the attributes of a leaf.
func (f *FileSystem) leaf(n *inode, b []byte, a *attributes) error {
	be := binary.BigEndian
	at, entries := 12, leafEntries4
	if f.super.v5 {
		at, entries = 56, leafEntries5
	}
	count := int(be.Uint16(b[at:]))
	if entries+8*count > len(b) {
		return damaged("a block of its extended attributes has %d entries", count)
	}
	for i := range count {
		e := b[entries+8*i:]
		from, flags := int(be.Uint16(e[4:])), e[6]
		if from < entries+8*count || from >= len(b) {
			return damaged("an extended attribute is at byte %d of its block", from)
		}
		if err := f.leafEntry(n, b[from:], flags, a); err != nil {
			return err
		}
	}
	return nil
}

func (f *FileSystem) leafEntry(n *inode, b []byte, flags byte, a *attributes) error {
	be := binary.BigEndian
	if flags&attributeLocal != 0 {
		if len(b) < 3 || 3+int(b[2])+int(be.Uint16(b)) > len(b) {
			return damaged("an extended attribute runs over the end of its block")
		}
		name, value := b[3:3+int(b[2])], b[3+int(b[2]):3+int(b[2])+int(be.Uint16(b))]
		return a.add(flags, name, func() ([]byte, error) { return append([]byte{}, value...), nil })
	}
	if len(b) < 9 || 9+int(b[8]) > len(b) {
		return damaged("an extended attribute runs over the end of its block")
	}
	block, size := uint64(be.Uint32(b)), be.Uint32(b[4:])
	return a.add(flags, b[9:9+int(b[8])], func() ([]byte, error) {
		if size > maxValue {
			return nil, damaged("its value has %d bytes", size)
		}
		return f.remoteValue(n, block, int(size))
	})
}

// remoteValue reads a value that is in blocks of its own. In version 5 each block has a header.
func (f *FileSystem) remoteValue(n *inode, block uint64, size int) ([]byte, error) {
	be := binary.BigEndian
	value := make([]byte, 0, size)
	for ; len(value) < size; block++ {
		off, err := f.attributeOffset(n, block)
		if err != nil {
			return nil, err
		}
		b, replayed, err := f.read(off, int(f.super.blockSize))
		if err != nil {
			return nil, err
		}
		if f.super.v5 {
			at, length := be.Uint32(b[4:]), be.Uint32(b[8:])
			if be.Uint32(b) != remoteMagic {
				return nil, damaged("the block at byte %d is no value", off)
			}
			if err := f.super.check(b, remoteIdentity, off, n.number, replayed); err != nil {
				return nil, err
			}
			if int64(at) != int64(len(value)) || length == 0 || int64(length) > int64(len(b)-remoteHeader) {
				return nil, damaged("the block at byte %d has %d bytes of the value, from byte %d on", off, length, at)
			}
			b = b[remoteHeader : remoteHeader+int(length)]
		}
		value = append(value, b[:min(len(b), size-len(value))]...)
	}
	return value, nil
}
