package ext

// group is what a group descriptor says of the inodes of a group.
type group struct {
	inodeTable uint64
	// uninitialised: no inode of the group was ever used, and the table has anything.
	uninitialised bool
}

const groupInodeUninit = 0x1

// group reads a group descriptor.
func (f *FileSystem) group(number uint32) (group, error) {
	s := f.super
	perBlock := uint32(s.blockSize / s.descriptorSize)
	block, err := f.dev.block(s.descriptorBlock(number/perBlock, perBlock))
	if err != nil {
		return group{}, err
	}
	off := int64(number%perBlock) * s.descriptorSize
	raw := block[off : off+s.descriptorSize]
	if !s.descriptorChecksum(number, raw) {
		return group{}, damaged("the descriptor of group %d fails its checksum", number)
	}
	g := group{inodeTable: uint64(le.Uint32(raw[0x8:]))}
	if s.descriptorSize >= 64 {
		g.inodeTable |= uint64(le.Uint32(raw[0x28:])) << 32
	}
	if s.roCompat&(roCompatGDTCsum|roCompatMetadataCsum) != 0 {
		g.uninitialised = le.Uint16(raw[0x12:])&groupInodeUninit != 0
	}
	tableBlocks := (uint64(s.inodesPerGroup)*uint64(s.inodeSize) + uint64(s.blockSize) - 1) / uint64(s.blockSize)
	if g.inodeTable <= s.firstDataBlock || g.inodeTable > s.blocks || s.blocks-g.inodeTable < tableBlocks {
		return group{}, damaged("the inodes of group %d are at block %d", number, g.inodeTable)
	}
	return g, nil
}

// descriptorBlock returns where the n-th block of group descriptors is.
func (s *superblock) descriptorBlock(n, perBlock uint32) uint64 {
	if s.incompat&incompatMetaBG == 0 || n < s.firstMetaBG {
		return superblockOffset/uint64(s.blockSize) + uint64(n) + 1
	}
	first := uint64(n) * uint64(perBlock)
	block := s.firstDataBlock + first*s.blocksPerGroup
	if s.hasSuperblock(first) {
		block++
	}
	if s.blockSize == 1024 && n == 0 && s.firstDataBlock == 0 {
		block++ // the first block is a boot block, which no group has
	}
	return block
}

// hasSuperblock reports whether a group begins with a copy of the superblock.
func (s *superblock) hasSuperblock(number uint64) bool {
	switch {
	case number == 0:
		return true
	case s.compat&compatSparseSuper2 != 0:
		return number == uint64(s.backupGroups[0]) || number == uint64(s.backupGroups[1])
	case number == 1 || s.roCompat&roCompatSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < number {
			power *= base
		}
		if power == number {
			return true
		}
	}
	return false
}

// descriptorChecksum reports whether a group descriptor has the right checksum, or none.
func (s *superblock) descriptorChecksum(number uint32, raw []byte) bool {
	const field = 0x1e
	want := le.Uint16(raw[field:])
	switch {
	case s.checksums():
		return crc32cWithout(crc32cLE32(s.seed, number), raw, field, 2)&0xffff == uint32(want)
	case s.roCompat&roCompatGDTCsum != 0:
		var group [4]byte
		le.PutUint32(group[:], number)
		crc := crc16(crc16(^uint16(0), s.raw[0x68:0x78]), group[:])
		crc = crc16(crc, raw[:field])
		if s.incompat&incompat64bit != 0 {
			crc = crc16(crc, raw[field+2:])
		}
		return crc == want
	}
	return true
}
