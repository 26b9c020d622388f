package extent

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// fsIocFiemap is _IOWR('f', 11, struct fiemap) of linux/fs.h.
	fsIocFiemap = 0xc020660b
	// fiemapFlagSync writes the file's dirty pages first, so that they have a place.
	fiemapFlagSync = 0x1

	extentLast      = 0x1   // no extent follows
	extentUnwritten = 0x800 // allocated, reads as zeros
	// extentUnstable are the flags of an extent whose place says nothing of its
	// content: UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE and DATA_TAIL.
	extentUnstable = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400

	// extentsPerCall makes a request of 256 × 56 bytes = 14 KiB.
	extentsPerCall = 256
)

// fiemapExtent is struct fiemap_extent of linux/fiemap.h.
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// fiemapRequest is struct fiemap of linux/fiemap.h with room for the answer.
type fiemapRequest struct {
	start, length         uint64
	flags, mapped, count_ uint32
	_                     uint32
	extents               [extentsPerCall]fiemapExtent
}

// Map returns where the bytes of [from, to) of file lie, ascending; what it
// leaves out are holes. Dirty pages are written first.
func Map(file *os.File, from, to int64) ([]Extent, error) {
	var extents []Extent
	for from < to {
		request := fiemapRequest{start: uint64(from), length: uint64(to - from), flags: fiemapFlagSync, count_: extentsPerCall}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return nil, fmt.Errorf("map extents of %s: %w", file.Name(), errno)
		}
		if request.mapped == 0 {
			break
		}
		for _, raw := range request.extents[:request.mapped] {
			extents = appendClipped(extents, raw, from, to)
		}
		last := request.extents[request.mapped-1]
		if last.flags&extentLast != 0 {
			break
		}
		from = int64(last.logical + last.length)
	}
	return extents, nil
}

// appendClipped appends the part of a raw extent that lies in [from, to).
func appendClipped(extents []Extent, raw fiemapExtent, from, to int64) []Extent {
	start := max(int64(raw.logical), from)
	end := min(int64(raw.logical+raw.length), to)
	if start >= end {
		return extents
	}
	return append(extents, Extent{
		Range:     Range{Start: start, End: end},
		Physical:  int64(raw.physical) + start - int64(raw.logical),
		Unwritten: raw.flags&extentUnwritten != 0,
		Unstable:  raw.flags&extentUnstable != 0,
	})
}
