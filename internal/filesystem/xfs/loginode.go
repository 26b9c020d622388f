package xfs

import (
	"encoding/binary"
	"slices"
)

// inodeBytes returns the inode at off with the changes of the log, and whether there are any.
func (f *FileSystem) inodeBytes(off int64) (b []byte, replayed bool, err error) {
	if b, err = f.device.read(off, int(f.super.inodeSize)); err != nil {
		return nil, false, err
	}
	type change struct {
		order int
		chunk *chunk
		at    int64
		inode *inodeChange
	}
	var changes []change
	for at := off; at < off+f.super.inodeSize; at += chunkSize {
		c, err := f.chunkAt(at)
		if err != nil {
			return nil, false, err
		}
		if c != nil {
			changes = append(changes, change{order: c.order, chunk: c, at: at - off})
		}
	}
	for _, c := range f.overlay.inodes[off] {
		changes = append(changes, change{order: c.order, inode: c})
	}
	created, isNew := f.overlay.created[off&^(f.super.blockSize-1)]
	if !isNew && len(changes) == 0 {
		return b, false, nil
	}
	if isNew {
		// The kernel does not look at what was there.
		b = make([]byte, len(b))
		binary.BigEndian.PutUint16(b, inodeMagic)
		b[4] = 3
		replayed = true
	}
	slices.SortStableFunc(changes, func(a, b change) int { return a.order - b.order })
	before := f.super.versionOf(b)
	for _, c := range changes {
		switch {
		case isNew && c.order < created:
		case c.chunk != nil:
			copy(b[c.at:], c.chunk.data)
			replayed = true
		case before.older(c.inode):
			c.inode.apply(f.super, b)
			replayed = true
		}
	}
	return b, replayed, nil
}

// inodeVersion is what tells whether an inode on the device is older than a change.
type inodeVersion struct {
	v5      bool
	lsn     uint64
	flushes uint16 // version 4 counts how often an inode was written
}

func (s *superblock) versionOf(b []byte) inodeVersion {
	v := inodeVersion{v5: s.v5}
	if binary.BigEndian.Uint16(b) != inodeMagic {
		return v
	}
	if !s.v5 {
		v.flushes = binary.BigEndian.Uint16(b[30:])
	} else if b[4] == 3 && [16]byte(b[160:176]) == s.metaUUID {
		v.lsn = binary.BigEndian.Uint64(b[112:])
	}
	return v
}

// older reports whether a change has to be applied. Several transactions may have one LSN: an equal one may be newer.
func (v inodeVersion) older(c *inodeChange) bool {
	if v.v5 {
		return v.lsn == 0 || v.lsn == 1<<64-1 || v.lsn <= c.lsn
	}
	const last = 1<<16 - 1
	logged := binary.LittleEndian.Uint16(c.core[30:])
	return logged >= v.flushes || v.flushes == last && logged < last/2
}

// apply puts a change into an inode.
func (c *inodeChange) apply(s *superblock, b []byte) {
	coreToDisk(c.core, b, s.v5)
	data := b[s.coreSize():]
	var attributes []byte
	if at := int(b[82]) * 8; at > 0 && at < len(data) {
		data, attributes = data[:at], data[at:]
	}
	for _, part := range []struct {
		to, from []byte
		root     bool
	}{{data, c.device, false}, {data, c.data, c.dataIsRoot}, {attributes, c.attributes, c.attributesAreRoot}} {
		if part.root {
			rootToDisk(part.from, part.to, s.v5)
		} else {
			copy(part.to, part.from)
		}
	}
}

// coreToDisk turns a logged core, which is in the byte order of the machine, into what is on the device (xfs_log_dinode_to_disk).
func coreToDisk(from, to []byte, v5 bool) {
	le, be := binary.LittleEndian, binary.BigEndian
	put16 := func(at ...int) {
		for _, at := range at {
			be.PutUint16(to[at:], le.Uint16(from[at:]))
		}
	}
	put32 := func(at ...int) {
		for _, at := range at {
			be.PutUint32(to[at:], le.Uint32(from[at:]))
		}
	}
	put64 := func(at ...int) {
		for _, at := range at {
			be.PutUint64(to[at:], le.Uint64(from[at:]))
		}
	}
	put16(0, 2)
	copy(to[4:6], from[4:6])
	put16(6)
	put32(8, 12, 16)
	put16(20, 22)
	put64(56, 64)
	put32(72, 76)
	put16(80)
	copy(to[82:84], from[82:84])
	put32(84)
	put16(88, 90)
	put32(92)
	var flags2 uint64
	if v5 {
		flags2 = le.Uint64(from[120:])
		put64(24, 104, 120, 152)
		put32(128)
		copy(to[160:176], from[160:176])
	} else {
		clear(to[24:32])
	}
	times := []int{32, 40, 48}
	if v5 {
		times = append(times, 144)
	}
	for _, at := range times {
		if flags2&flags2BigTime != 0 {
			put64(at)
		} else {
			put32(at, at+4)
		}
	}
}

// rootToDisk turns the root of a B+tree in its form in memory, which is a whole block, into that of an inode, which has a
// shorter header (xfs_bmbt_to_bmdr). Pointers follow the space for the keys, which depends on the size. What does not fit makes a
// root without records, which readers refuse.
func rootToDisk(from, to []byte, v5 bool) {
	header := treeHeader4
	if v5 {
		header = treeHeader5
	}
	clear(to)
	if len(from) < header || len(to) < rootHeader {
		return
	}
	count := int(binary.BigEndian.Uint16(from[6:]))
	inMemory, onDisk := (len(from)-header)/16, (len(to)-rootHeader)/16
	if count > inMemory || count > onDisk {
		return
	}
	copy(to, from[4:8]) // level and number of records
	copy(to[rootHeader:], from[header:header+8*count])
	copy(to[rootHeader+8*onDisk:], from[header+8*inMemory:header+8*inMemory+8*count])
}
