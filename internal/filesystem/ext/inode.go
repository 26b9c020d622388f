package ext

import (
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// Types of i_mode.
const (
	modeType    = 0xf000
	modeFIFO    = 0x1000
	modeChar    = 0x2000
	modeDir     = 0x4000
	modeBlock   = 0x6000
	modeRegular = 0x8000
	modeLink    = 0xa000
	modeSocket  = 0xc000
)

// Flags of i_flags.
const (
	flagEncrypt    = 0x800
	flagIndex      = 0x1000
	flagExtents    = 0x80000
	flagEAInode    = 0x200000
	flagInlineData = 0x10000000
)

const (
	oldInodeSize = 128
	// blockArea is i_block: extents, block numbers, inline data, a short target, or device numbers.
	blockArea     = 0x28
	blockAreaSize = 60
)

// inode is an inode of which the checksum is right.
type inode struct {
	number uint32
	raw    []byte
	mode   uint16
	flags  uint32
	size   int64
	// seed begins the checksums of what belongs to the inode.
	seed uint32
	// patches are mappings that fast commits have changed, ascending.
	patches []run
}

func (in *inode) u16(off int) uint16 { return le.Uint16(in.raw[off:]) }
func (in *inode) u32(off int) uint32 { return le.Uint32(in.raw[off:]) }

func (in *inode) kind() uint16      { return in.mode & modeType }
func (in *inode) blockArea() []byte { return in.raw[blockArea : blockArea+blockAreaSize] }

func (in *inode) is(flag uint32) bool { return in.flags&flag != 0 }

// extra returns how many bytes of the part behind the first 128 are fields.
func (in *inode) extra() int {
	if len(in.raw) <= oldInodeSize {
		return 0
	}
	n := int(in.u16(0x80))
	if oldInodeSize+n > len(in.raw) {
		return 0
	}
	return n
}

// has reports whether the inode has a field of n bytes behind the first 128.
func (in *inode) has(off, n int) bool { return off+n <= oldInodeSize+in.extra() }

// inode returns the inode of a file that has a name.
func (f *FileSystem) inode(id filesystem.ID) (*inode, error) {
	if id == 0 || id > filesystem.ID(f.super.inodes) || f.super.special(uint32(id)) {
		return nil, fmt.Errorf("inode %d: %w", id, fs.ErrNotExist)
	}
	in, err := f.readInode(uint32(id))
	if err != nil {
		return nil, err
	}
	if in.is(flagEAInode) {
		return nil, damaged("inode %d is no file but the value of an extended attribute", id)
	}
	return in, nil
}

// readInode reads any inode.
func (f *FileSystem) readInode(number uint32) (*inode, error) {
	if fast := f.fast.inodes[number]; fast != nil && fast.raw != nil {
		in, err := f.parseInode(number, fast.raw)
		if err != nil {
			return nil, err
		}
		in.patches = fast.patches
		return in, nil
	}
	raw, err := f.rawInode(number)
	if err != nil {
		return nil, err
	}
	if !f.super.inodeChecksum(number, raw) {
		return nil, damaged("inode %d fails its checksum", number)
	}
	in, err := f.parseInode(number, raw)
	if err != nil {
		return nil, err
	}
	if fast := f.fast.inodes[number]; fast != nil {
		in.patches = fast.patches
	}
	return in, nil
}

// rawInode returns the bytes of an inode, which may be unused.
func (f *FileSystem) rawInode(number uint32) ([]byte, error) {
	s := f.super
	if number == 0 || number > s.inodes {
		return nil, damaged("inode %d is none of %d", number, s.inodes)
	}
	g, err := f.group((number - 1) / s.inodesPerGroup)
	if err != nil {
		return nil, fmt.Errorf("find inode %d: %w", number, err)
	}
	if g.uninitialised {
		return nil, fmt.Errorf("inode %d: %w", number, fs.ErrNotExist)
	}
	off := int64((number-1)%s.inodesPerGroup) * s.inodeSize
	block, err := f.dev.block(g.inodeTable + uint64(off/s.blockSize))
	if err != nil {
		return nil, fmt.Errorf("read inode %d: %w", number, err)
	}
	off %= s.blockSize
	raw := block[off : off+s.inodeSize]
	if le.Uint16(raw) == 0 && le.Uint16(raw[0x1a:]) == 0 {
		return raw, fmt.Errorf("inode %d: %w", number, fs.ErrNotExist)
	}
	return raw, nil
}

func (f *FileSystem) parseInode(number uint32, raw []byte) (*inode, error) {
	in := &inode{number: number, raw: raw, mode: le.Uint16(raw), flags: le.Uint32(raw[0x20:])}
	if in.u16(0x1a) == 0 {
		return nil, fmt.Errorf("inode %d is deleted: %w", number, fs.ErrNotExist)
	}
	size := uint64(in.u32(0x4))
	if in.kind() == modeRegular || f.super.incompat&incompatLargedir != 0 {
		size |= uint64(in.u32(0x6c)) << 32
	}
	if size > math.MaxInt64 {
		return nil, damaged("inode %d has a size of %d bytes", number, size)
	}
	in.size = int64(size)
	in.seed = f.super.inodeSeed(number, raw)
	if len(raw) > oldInodeSize && oldInodeSize+int(in.u16(0x80)) > len(raw) {
		return nil, damaged("inode %d of %d bytes has %d more", number, len(raw), in.u16(0x80))
	}
	return in, nil
}

func (s *superblock) inodeSeed(number uint32, raw []byte) uint32 {
	return crc32cLE32(crc32cLE32(s.seed, number), le.Uint32(raw[0x64:]))
}

// inodeChecksum reports whether an inode has the right checksum, or none.
func (s *superblock) inodeChecksum(number uint32, raw []byte) bool {
	const low, high = 0x7c, 0x82
	if !s.checksums() {
		return true
	}
	crc := crc32cWithout(s.inodeSeed(number, raw), raw[:oldInodeSize], low, 2)
	if len(raw) == oldInodeSize {
		return crc&0xffff == uint32(le.Uint16(raw[low:]))
	}
	if le.Uint16(raw[0x80:]) < 4 {
		return crc32c(crc, raw[oldInodeSize:])&0xffff == uint32(le.Uint16(raw[low:]))
	}
	crc = crc32cWithout(crc, raw[oldInodeSize:], high-oldInodeSize, 2)
	return crc == uint32(le.Uint16(raw[low:]))|uint32(le.Uint16(raw[high:]))<<16
}

// time reads a time. The extra field has two more bits of the seconds, and nanoseconds.
func (in *inode) time(off, extra int) time.Time {
	seconds, nanoseconds := int64(int32(in.u32(off))), int64(0)
	if in.has(extra, 4) {
		field := in.u32(extra)
		seconds += int64(field&3) << 32
		nanoseconds = int64(field >> 2)
	}
	return time.Unix(seconds, nanoseconds).UTC()
}

// device reads the device numbers of a device node: 8 bits each, or else 12 and 20 bits.
func (in *inode) device() (major, minor uint32) {
	if old := in.u32(blockArea); old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	n := in.u32(blockArea + 4)
	return n >> 8 & 0xfff, n&0xff | n>>12&0xfff00
}

func (in *inode) info() filesystem.Info {
	info := filesystem.Info{
		Mode:     filesystem.ModeOf(in.mode),
		UID:      uint32(in.u16(0x2)) | uint32(in.u16(0x78))<<16,
		GID:      uint32(in.u16(0x18)) | uint32(in.u16(0x7a))<<16,
		Links:    uint32(in.u16(0x1a)),
		Size:     in.size,
		Accessed: in.time(0x8, 0x8c),
		Changed:  in.time(0xc, 0x84),
		Modified: in.time(0x10, 0x88),
	}
	if info.Mode&fs.ModeDevice != 0 {
		info.Major, info.Minor = in.device()
	}
	return info
}
