package xfs

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"time"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	inodeMagic = 0x494e // "IN"

	formatDevice  = 0
	formatLocal   = 1
	formatExtents = 2
	formatTree    = 3

	flagRealtime     = 1 << 0 // di_flags
	flags2BigTime    = 1 << 3 // di_flags2
	flags2LargeCount = 1 << 4

	core4 = 100 // where the forks begin, in version 4 and 5
	core5 = 176

	// loggedCore4 is how much of the core version 4 logs.
	loggedCore4 = 96
)

func (s *superblock) coreSize() int {
	if s.v5 {
		return core5
	}
	return core4
}

func (s *superblock) loggedCore() int {
	if s.v5 {
		return core5
	}
	return loggedCore4
}

// inode is an inode in use.
type inode struct {
	number uint64
	raw    []byte // all of it

	mode       uint16
	size       int64
	realtime   bool
	data, attr fork
}

// fork is one of the two parts of an inode.
type fork struct {
	format  byte
	extents uint64 // their number
	b       []byte
}

// inode returns an inode in use. Of others it says that they do not exist.
func (f *FileSystem) inode(ino uint64) (*inode, error) {
	n, err := f.loadInode(ino)
	if err != nil {
		return nil, fmt.Errorf("read inode %d: %w", ino, err)
	}
	return n, nil
}

func (f *FileSystem) loadInode(ino uint64) (*inode, error) {
	off, err := f.super.inodeOffset(ino)
	if err != nil {
		return nil, err
	}
	b, replayed, err := f.inodeBytes(off)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if err := f.super.checkInode(b, ino, replayed); err != nil {
		return nil, err
	}
	n := &inode{number: ino, raw: b, mode: be.Uint16(b[2:]), size: int64(be.Uint64(b[56:])), realtime: be.Uint16(b[90:])&flagRealtime != 0}
	if n.size < 0 {
		return nil, damaged("its size is %d bytes", n.size)
	}
	if n.links() == 0 {
		return nil, fmt.Errorf("%w: it is deleted", fs.ErrNotExist)
	}
	if err := n.parseForks(f.super.coreSize()); err != nil {
		return nil, err
	}
	return n, nil
}

// checkInode checks what identifies an inode that should be in use.
func (s *superblock) checkInode(b []byte, ino uint64, replayed bool) error {
	be := binary.BigEndian
	version := b[4]
	switch {
	case be.Uint16(b) != inodeMagic:
		return damaged("there is no inode in its place")
	case s.v5 != (version == 3) || version == 0 || version > 3:
		return damaged("it has version %d", version)
	case s.v5 && !replayed && !checkSum(b, 100):
		return damaged("its checksum is wrong")
	case be.Uint16(b[2:]) == 0:
		return fmt.Errorf("%w: it is not in use", fs.ErrNotExist)
	case s.v5 && be.Uint64(b[152:]) != ino:
		return damaged("it says that it is inode %d", be.Uint64(b[152:]))
	case s.v5 && [16]byte(b[160:176]) != s.metaUUID:
		return damaged("it belongs to another file system")
	}
	return nil
}

func (n *inode) links() uint32 {
	if n.raw[4] == 1 {
		return uint32(binary.BigEndian.Uint16(n.raw[6:]))
	}
	return binary.BigEndian.Uint32(n.raw[16:])
}

func (n *inode) flags2() uint64 {
	if n.raw[4] < 3 {
		return 0
	}
	return binary.BigEndian.Uint64(n.raw[120:])
}

func (n *inode) parseForks(core int) error {
	be := binary.BigEndian
	n.data, n.attr = fork{format: n.raw[5], b: n.raw[core:]}, fork{format: n.raw[83]}
	if n.flags2()&flags2LargeCount != 0 {
		n.data.extents, n.attr.extents = be.Uint64(n.raw[24:]), uint64(be.Uint32(n.raw[76:]))
	} else {
		n.data.extents, n.attr.extents = uint64(be.Uint32(n.raw[76:])), uint64(be.Uint16(n.raw[80:]))
	}
	if at := int(n.raw[82]) * 8; at != 0 {
		if at >= len(n.data.b) {
			return damaged("its attributes begin at byte %d of %d", at, len(n.data.b))
		}
		n.data.b, n.attr.b = n.data.b[:at], n.data.b[at:]
	}
	return nil
}

// time returns the timestamp at an offset. The new form counts nanoseconds from the year 1901 on.
func (n *inode) time(at int) time.Time {
	be := binary.BigEndian
	if n.flags2()&flags2BigTime != 0 {
		t := be.Uint64(n.raw[at:])
		return time.Unix(int64(t/1e9)-1<<31, int64(t%1e9)).UTC()
	}
	return time.Unix(int64(int32(be.Uint32(n.raw[at:]))), int64(int32(be.Uint32(n.raw[at+4:])))).UTC()
}

func (n *inode) info() filesystem.Info {
	be := binary.BigEndian
	i := filesystem.Info{
		Mode: filesystem.ModeOf(n.mode), UID: be.Uint32(n.raw[8:]), GID: be.Uint32(n.raw[12:]), Links: n.links(), Size: n.size,
		Accessed: n.time(32), Modified: n.time(40), Changed: n.time(48),
	}
	if i.Mode&fs.ModeDevice != 0 && n.data.format == formatDevice && len(n.data.b) >= 4 {
		// As System V has it: 14 bits of major, 18 of minor.
		dev := be.Uint32(n.data.b)
		i.Major, i.Minor = dev>>18&0x3fff, dev&0x3ffff
	}
	return i
}
