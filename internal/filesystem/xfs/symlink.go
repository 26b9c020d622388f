package xfs

import (
	"encoding/binary"
	"strings"
)

const (
	symlinkMagic  = 0x58534c4d // "XSLM"
	symlinkHeader = 56
	maxSymlink    = 1024 // XFS_SYMLINK_MAXLEN
)

var symlinkIdentity = identity{crc: 12, blkno: 40, lsn: 48, uuid: 16, owner: 32}

// target returns where a symbolic link points to.
func (f *FileSystem) target(n *inode) (string, error) {
	if n.size == 0 || n.size > maxSymlink {
		return "", damaged("its target has %d bytes", n.size)
	}
	if n.data.format == formatLocal {
		if n.size > int64(len(n.data.b)) {
			return "", damaged("its target has %d bytes, of which %d are in the inode", n.size, len(n.data.b))
		}
		return string(n.data.b[:n.size]), nil
	}
	target := make([]byte, 0, n.size)
	next := uint64(0)
	for e, err := range f.extents(n, &n.data, 0) {
		if err != nil {
			return "", err
		}
		if e.start != next || e.unwritten || e.blocks<<f.super.blockLog > 64<<10 {
			return "", damaged("a block of its target is missing")
		}
		next = e.end()
		b, err := f.symlinkBlocks(n, e, len(target))
		if err != nil {
			return "", err
		}
		target = append(target, b[:min(len(b), int(n.size)-len(target))]...)
		if len(target) == int(n.size) {
			break
		}
	}
	if len(target) < int(n.size) {
		return "", damaged("only %d bytes of its target of %d are there", len(target), n.size)
	}
	if strings.IndexByte(string(target), 0) >= 0 {
		return "", damaged("its target has a zero byte")
	}
	return string(target), nil
}

// symlinkBlocks returns the part of the target, from byte at on, that is in an extent. In version 5 each extent has one header.
func (f *FileSystem) symlinkBlocks(n *inode, e extent, at int) ([]byte, error) {
	b, replayed, err := f.read(e.device, int(e.blocks<<f.super.blockLog))
	if err != nil || !f.super.v5 {
		return b, err
	}
	be := binary.BigEndian
	offset, length := be.Uint32(b[4:]), be.Uint32(b[8:])
	if be.Uint32(b) != symlinkMagic {
		return nil, damaged("the block at byte %d is no target of a symbolic link", e.device)
	}
	if err := f.super.check(b, symlinkIdentity, e.device, n.number, replayed); err != nil {
		return nil, err
	}
	if int64(offset) != int64(at) || int64(length) > int64(len(b)-symlinkHeader) {
		return nil, damaged("the block at byte %d has %d bytes of the target, from byte %d on", e.device, length, offset)
	}
	return b[symlinkHeader : symlinkHeader+int(length)], nil
}
