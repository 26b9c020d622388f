package ext

import (
	"bytes"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	superblockOffset = 1024
	superblockSize   = 1024
	magic            = 0xef53

	rootInode    = 2
	journalInode = 8
)

// Features that a reader has to know: s_feature_incompat.
const (
	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatDirdata     = 0x1000
	incompatCsumSeed    = 0x2000
	incompatLargedir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000
	incompatCasefold    = 0x20000

	incompatKnown = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64bit | incompatMMP | incompatFlexBG |
		incompatEAInode | incompatCsumSeed | incompatLargedir | incompatInlineData | incompatEncrypt | incompatCasefold
	// incompatExt3 are those of ext2 and ext3.
	incompatExt3 = incompatFiletype | incompatRecover | incompatMetaBG
)

// Features that change what is read: s_feature_compat and s_feature_ro_compat.
const (
	compatHasJournal   = 0x4
	compatSparseSuper2 = 0x200
	compatOrphanFile   = 0x1000

	roCompatSparseSuper  = 0x1
	roCompatLargeFile    = 0x2
	roCompatBtreeDir     = 0x4
	roCompatGDTCsum      = 0x10
	roCompatBigalloc     = 0x200
	roCompatMetadataCsum = 0x400

	// roCompatExt3 are those of ext2 and ext3.
	roCompatExt3 = roCompatSparseSuper | roCompatLargeFile | roCompatBtreeDir
)

const stateErrors = 0x2 // s_state: errors were detected

var incompatNames = map[uint32]string{
	incompatCompression: "compression",
	incompatJournalDev:  "journal_dev (the device is the external journal of another file system)",
	incompatDirdata:     "dirdata",
}

// superblock is what the superblock says, checked.
type superblock struct {
	raw [superblockSize]byte

	blockSize      int64
	blocks         uint64
	firstDataBlock uint64
	blocksPerGroup uint64
	groups         uint32
	inodes         uint32
	inodesPerGroup uint32
	inodeSize      int64
	firstInode     uint32
	descriptorSize int64
	firstMetaBG    uint32
	backupGroups   [2]uint32

	compat, incompat, roCompat uint32
	// seed begins the checksums of metadata.
	seed uint32
}

func (s *superblock) u16(off int) uint16 { return le.Uint16(s.raw[off:]) }
func (s *superblock) u32(off int) uint32 { return le.Uint32(s.raw[off:]) }

func (s *superblock) checksums() bool { return s.roCompat&roCompatMetadataCsum != 0 }

// readSuperblock reads the first superblock. read fills a buffer from an offset.
func readSuperblock(size int64, read func(p []byte, off int64) error) (*superblock, error) {
	s := &superblock{}
	if size < superblockOffset+superblockSize {
		return nil, fmt.Errorf("a device of %d bytes has no superblock: %w", size, filesystem.ErrOther)
	}
	if err := read(s.raw[:], superblockOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if s.u16(0x38) != magic {
		return nil, fmt.Errorf("the superblock has no magic number of ext2, ext3 or ext4: %w", filesystem.ErrOther)
	}
	if s.u32(0x4c) >= 1 {
		s.compat, s.incompat, s.roCompat = s.u32(0x5c), s.u32(0x60), s.u32(0x64)
	}
	if err := s.checkFeatures(); err != nil {
		return nil, err
	}
	if s.checksums() {
		if s.raw[0x175] != 1 {
			return nil, unsupported("checksum type %d", s.raw[0x175])
		}
		if crc32c(^uint32(0), s.raw[:0x3fc]) != s.u32(0x3fc) {
			return nil, damaged("the superblock fails its checksum")
		}
	}
	if s.incompat&incompatCsumSeed != 0 {
		s.seed = s.u32(0x270)
	} else {
		s.seed = crc32c(^uint32(0), s.raw[0x68:0x78])
	}
	if err := s.geometry(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *superblock) checkFeatures() error {
	unknown := s.incompat &^ incompatKnown
	if unknown == 0 {
		return nil
	}
	var names []string
	for bit := range 32 {
		if unknown&(1<<bit) == 0 {
			continue
		}
		name := incompatNames[1<<bit]
		if name == "" {
			name = fmt.Sprintf("incompatible feature 0x%x", uint32(1)<<bit)
		}
		names = append(names, name)
	}
	return unsupported("%s", strings.Join(names, ", "))
}

// geometry reads sizes and counts. Every later calculation with them stays inside of an int64.
func (s *superblock) geometry() error {
	logSize := s.u32(0x18)
	if logSize > 6 {
		return damaged("the block size is 2^%d KiB, want at most 64 KiB", logSize)
	}
	s.blockSize = 1024 << logSize
	s.blocks = uint64(s.u32(0x4))
	s.descriptorSize = 32
	if s.incompat&incompat64bit != 0 {
		s.blocks |= uint64(s.u32(0x150)) << 32
		s.descriptorSize = int64(s.u16(0xfe))
	}
	if s.blocks == 0 || s.blocks > uint64(1<<62/s.blockSize) {
		return damaged("there are %d blocks of %d bytes", s.blocks, s.blockSize)
	}
	if err := s.structures(); err != nil {
		return err
	}
	return s.layout(logSize)
}

// structures reads the sizes of descriptors and inodes.
func (s *superblock) structures() error {
	if n := s.descriptorSize; n < 32 || n > 1024 || bits.OnesCount64(uint64(n)) != 1 || s.incompat&incompat64bit != 0 && n < 64 {
		return damaged("a group descriptor has %d bytes", n)
	}
	s.inodeSize, s.firstInode = 128, 11
	if s.u32(0x4c) >= 1 {
		s.inodeSize, s.firstInode = int64(s.u16(0x58)), s.u32(0x54)
	}
	if n := s.inodeSize; n < 128 || n > s.blockSize || bits.OnesCount64(uint64(n)) != 1 {
		return damaged("an inode has %d bytes in blocks of %d", n, s.blockSize)
	}
	return nil
}

// layout reads how blocks and inodes are grouped.
func (s *superblock) layout(logSize uint32) error {
	s.firstDataBlock, s.blocksPerGroup = uint64(s.u32(0x14)), uint64(s.u32(0x20))
	s.inodes, s.inodesPerGroup = s.u32(0x0), s.u32(0x28)
	perBitmap := uint64(s.blockSize) * 8
	mostBlocks := perBitmap
	if s.roCompat&roCompatBigalloc != 0 {
		logCluster := s.u32(0x1c)
		if logCluster < logSize || logCluster > 30 {
			return damaged("the cluster size is 2^%d KiB", logCluster)
		}
		mostBlocks <<= logCluster - logSize
	}
	switch {
	case s.firstDataBlock > 1 || s.firstDataBlock >= s.blocks:
		return damaged("the first data block is %d", s.firstDataBlock)
	case s.blocksPerGroup == 0 || s.blocksPerGroup > mostBlocks:
		return damaged("a group has %d blocks of %d bytes", s.blocksPerGroup, s.blockSize)
	case s.inodesPerGroup == 0 || uint64(s.inodesPerGroup) > perBitmap:
		return damaged("a group has %d inodes", s.inodesPerGroup)
	}
	groups := (s.blocks - s.firstDataBlock + s.blocksPerGroup - 1) / s.blocksPerGroup
	if uint64(s.inodes) != groups*uint64(s.inodesPerGroup) {
		return damaged("there are %d inodes in %d groups of %d", s.inodes, groups, s.inodesPerGroup)
	}
	s.groups = uint32(groups) // fits: the inodes do
	s.firstMetaBG = s.u32(0x104)
	s.backupGroups = [2]uint32{s.u32(0x24c), s.u32(0x250)}
	return nil
}

// kind is the name that mount and blkid know.
func (s *superblock) kind() string {
	switch {
	case s.incompat&^incompatExt3 != 0 || s.roCompat&^roCompatExt3 != 0:
		return "ext4"
	case s.compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// special reports whether an inode is none that a directory names.
func (s *superblock) special(number uint32) bool {
	if number == rootInode {
		return false
	}
	return number < s.firstInode || s.compat&compatOrphanFile != 0 && number == s.u32(0x280)
}

func (s *superblock) label() string {
	label, _, _ := bytes.Cut(s.raw[0x78:0x88], []byte{0})
	return strings.ToValidUTF8(string(label), "�")
}

// formatUUID returns an empty string for a UUID of zeros.
func formatUUID(b []byte) string {
	if bytes.Equal(b, make([]byte, 16)) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// readerAt reads from a device of which nothing is known yet.
func readerAt(r io.ReaderAt, size int64) func(p []byte, off int64) error {
	return (&device{r: r, size: size}).readFull
}
