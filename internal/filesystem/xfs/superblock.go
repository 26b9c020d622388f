package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	superblockMagic = 0x58465342 // "XFSB"
	superblockSize  = 264

	// Bits of sb_versionnum, whose lowest four bits are the version.
	versionLog2       = 0x0400
	versionDirectory2 = 0x2000
	versionMoreBits   = 0x8000

	// Bits of sb_features2.
	features2FileType = 0x0200

	// Bits of sb_features_incompat.
	incompatFileType    = 1 << 0
	incompatSparse      = 1 << 1
	incompatMetaUUID    = 1 << 2
	incompatBigTime     = 1 << 3
	incompatNeedsRepair = 1 << 4
	incompatLargeCounts = 1 << 5
	incompatExchange    = 1 << 6
	incompatParent      = 1 << 7
	incompatMetaDir     = 1 << 8
	incompatZoned       = 1 << 9
	incompatZoneGaps    = 1 << 10
	incompatKnown       = incompatFileType | incompatSparse | incompatMetaUUID | incompatBigTime | incompatNeedsRepair |
		incompatLargeCounts | incompatExchange | incompatParent

	// logIncompatAttributes (of sb_features_log_incompat) says that the log may hold attribute intents.
	logIncompatAttributes = 1 << 0

	maxLogBytes = 1 << 31 // XFS_MAX_LOG_BYTES
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// superblock is the geometry. Its numbers have been checked: sums of them do not overflow, and every group is inside of
// the device.
type superblock struct {
	v5, logV2, fileType bool

	blockSize, sectorSize, inodeSize  int64
	blockLog, inodesPerBlockLog       uint
	groupBlocksLog                    uint
	blocks, groupBlocks, groups       uint64
	directoryBlockLog                 uint
	logStart, logBlocks               uint64
	root                              uint64
	incompat, logIncompat             uint32
	label                             string
	uuid, metaUUID                    [16]byte
	logOffset, logSectors, deviceSize int64
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrDamaged, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrUnsupported, fmt.Sprintf(format, args...))
}

// parseSuperblock reads the superblock from the start of the device; b is at least superblockSize long.
func parseSuperblock(b []byte, size int64) (*superblock, error) {
	be := binary.BigEndian
	version := be.Uint16(b[100:])
	features2 := be.Uint32(b[200:]) | be.Uint32(b[204:]) // an old mkfs wrote it to the second place
	s := &superblock{
		v5:                version&0xf == 5,
		logV2:             version&versionLog2 != 0,
		blockSize:         int64(be.Uint32(b[4:])),
		blocks:            be.Uint64(b[8:]),
		logStart:          be.Uint64(b[48:]),
		root:              be.Uint64(b[56:]),
		groupBlocks:       uint64(be.Uint32(b[84:])),
		groups:            uint64(be.Uint32(b[88:])),
		logBlocks:         uint64(be.Uint32(b[96:])),
		sectorSize:        int64(be.Uint16(b[102:])),
		inodeSize:         int64(be.Uint16(b[104:])),
		label:             strings.TrimRight(string(b[108:120]), "\x00"),
		blockLog:          uint(b[120]),
		inodesPerBlockLog: uint(b[123]),
		groupBlocksLog:    uint(b[124]),
		directoryBlockLog: uint(b[192]),
		deviceSize:        size,
	}
	copy(s.uuid[:], b[32:48])
	s.metaUUID = s.uuid
	switch {
	case s.v5:
		s.incompat, s.logIncompat = be.Uint32(b[216:]), be.Uint32(b[220:])
		s.fileType = s.incompat&incompatFileType != 0
		if s.incompat&incompatMetaUUID != 0 {
			copy(s.metaUUID[:], b[248:264])
		}
	case version&0xf == 4:
		s.fileType = version&versionMoreBits != 0 && features2&features2FileType != 0
	default:
		return nil, unsupported("version %d of the format", version&0xf)
	}
	if version&versionDirectory2 == 0 && !s.v5 {
		return nil, unsupported("directories of version 1")
	}
	if b[126] != 0 {
		return nil, damaged("mkfs.xfs did not finish")
	}
	if err := s.checkFeatures(); err != nil {
		return nil, err
	}
	if err := s.checkGeometry(uint(b[122])); err != nil {
		return nil, err
	}
	if err := s.locate(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *superblock) checkFeatures() error {
	for _, f := range []struct {
		bit  uint32
		name string
	}{{incompatMetaDir, "metadata directories (metadir)"}, {incompatZoned, "zoned devices (zoned)"}, {incompatZoneGaps, "zoned devices (zone gaps)"}} {
		if s.incompat&f.bit != 0 {
			return unsupported("%s", f.name)
		}
	}
	if unknown := s.incompat &^ incompatKnown; unknown != 0 {
		return unsupported("incompatible features %#x, which are newer than this reader", unknown)
	}
	return nil
}

// isPower reports whether n is 2^log, and between low and high.
func isPower(n, low, high int64, log uint) bool {
	return n >= low && n <= high && bits.OnesCount64(uint64(n)) == 1 && uint(bits.TrailingZeros64(uint64(n))) == log
}

// checkGeometry checks the sizes against each other.
func (s *superblock) checkGeometry(inodeLog uint) error {
	switch {
	case !isPower(s.blockSize, 512, 64<<10, s.blockLog):
		return damaged("block size %d (log %d)", s.blockSize, s.blockLog)
	case !isPower(s.sectorSize, 512, 32<<10, uint(bits.TrailingZeros64(uint64(s.sectorSize)))):
		return damaged("sector size %d", s.sectorSize)
	case !isPower(s.inodeSize, 256, 2048, inodeLog) || s.inodeSize > s.blockSize:
		return damaged("inode size %d (log %d) in blocks of %d bytes", s.inodeSize, inodeLog, s.blockSize)
	case s.inodesPerBlockLog != s.blockLog-inodeLog:
		return damaged("2^%d inodes of %d bytes in a block of %d bytes", s.inodesPerBlockLog, s.inodeSize, s.blockSize)
	case s.directoryBlockLog > 7 || s.blockLog+s.directoryBlockLog > 16:
		return damaged("directory blocks of %d << %d bytes", s.blockSize, s.directoryBlockLog)
	}
	return nil
}

// locate checks the groups, the log and the root directory against the device.
func (s *superblock) locate() error {
	switch {
	case s.groupBlocks == 0 || s.groupBlocksLog > 31 || s.groupBlocks > 1<<s.groupBlocksLog:
		return damaged("allocation groups of %d blocks (log %d)", s.groupBlocks, s.groupBlocksLog)
	case s.blocks > uint64(s.deviceSize)>>s.blockLog:
		return damaged("it has %d blocks of %d bytes, and the device has only %d bytes", s.blocks, s.blockSize, s.deviceSize)
	case s.groups == 0 || s.blocks > s.groups*s.groupBlocks || s.blocks <= (s.groups-1)*s.groupBlocks:
		return damaged("%d blocks in %d groups of %d", s.blocks, s.groups, s.groupBlocks)
	case s.logStart == 0:
		return unsupported("an external log (logdev), which is on a device of its own")
	case s.logBlocks == 0 || s.logBlocks<<s.blockLog > maxLogBytes:
		return damaged("a log of %d blocks", s.logBlocks)
	}
	var err error
	if s.logOffset, err = s.blockOffset(s.logStart, s.logBlocks); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	s.logSectors = int64(s.logBlocks << s.blockLog >> 9)
	if _, err := s.inodeOffset(s.root); err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	return nil
}

// blockOffset returns where n blocks are on the device, in bytes. They are in one group.
func (s *superblock) blockOffset(block, n uint64) (int64, error) {
	group, inGroup := block>>s.groupBlocksLog, block&(1<<s.groupBlocksLog-1)
	if group >= s.groups || inGroup >= s.groupBlocks || n > s.groupBlocks-inGroup || group*s.groupBlocks+inGroup+n > s.blocks {
		return 0, damaged("%d blocks at block %d of group %d are outside of the file system", n, inGroup, group)
	}
	return int64((group*s.groupBlocks + inGroup) << s.blockLog), nil
}

// inodeOffset returns where an inode is on the device, in bytes.
func (s *superblock) inodeOffset(ino uint64) (int64, error) {
	// The kernel has at most 56 bits of inode numbers (XFS_MAXINUMBER).
	if ino >= 1<<56 {
		return 0, damaged("there is no inode %d", ino)
	}
	off, err := s.blockOffset(ino>>s.inodesPerBlockLog, 1)
	if err != nil || ino == 0 {
		return 0, damaged("there is no inode %d", ino)
	}
	return off + int64(ino&(1<<s.inodesPerBlockLog-1))*s.inodeSize, nil
}

// checkSum reports whether the CRC32C at position at, which counts as zero, fits b.
func checkSum(b []byte, at int) bool {
	sum := crc32.Update(0, castagnoli, b[:at])
	sum = crc32.Update(sum, castagnoli, []byte{0, 0, 0, 0})
	sum = crc32.Update(sum, castagnoli, b[at+4:])
	return sum == binary.LittleEndian.Uint32(b[at:])
}

// identity is where a version 5 metadata block keeps what identifies it. The LSN is there for replay.
type identity struct{ crc, blkno, lsn, uuid, owner int }

// check checks a version 5 metadata block that is at off on the device and belongs to inode owner. Replayed blocks
// have no valid checksum. owner 0 is not checked.
func (s *superblock) check(b []byte, at identity, off int64, owner uint64, replayed bool) error {
	be := binary.BigEndian
	switch {
	case !replayed && !checkSum(b, at.crc):
		return damaged("the checksum of the block at byte %d is wrong", off)
	case !bytes.Equal(b[at.uuid:at.uuid+16], s.metaUUID[:]):
		return damaged("the block at byte %d belongs to another file system", off)
	case be.Uint64(b[at.blkno:]) != uint64(off>>9):
		return damaged("the block at byte %d says that it is at byte %d", off, be.Uint64(b[at.blkno:])<<9)
	case owner != 0 && be.Uint64(b[at.owner:]) != owner:
		return damaged("the block at byte %d belongs to inode %d, not to %d", off, be.Uint64(b[at.owner:]), owner)
	}
	return nil
}
