// Package device reads and writes block devices, and regular files in their place.
//
// A device has a fixed size in bytes and a logical block size. Any range inside the device
// can be read and written. An access that is aligned to the logical block, with a buffer from
// NewBuffer, bypasses the page cache (O_DIRECT) if the system allows it.
//
// A device is complete only after Sync and Close have returned without an error.
package device

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/blockmover/blockmover/internal/block"
)

// ErrReadOnly is wrapped by the errors of a device that cannot be written.
var ErrReadOnly = errors.New("device is read-only")

// Disk is something to read of a known size.
type Disk interface {
	io.ReaderAt
	// Size is the size in bytes.
	Size() int64
}

// Reader reads a device. It is safe for concurrent use. An access that is not wholly inside
// the device is an error that is not io.EOF itself.
type Reader interface {
	Disk
	// BlockSize is the logical block size in bytes.
	BlockSize() int
	io.Closer
}

// Writer reads and writes a device. It is safe for concurrent use on ranges that do not
// overlap.
type Writer interface {
	Reader
	io.WriterAt
	// Zero makes the range read as zeros without sending them to the device. If the device has no way
	// for that, the error wraps errors.ErrUnsupported: see the function Zero.
	Zero(e block.Extent) error
	// Sync returns when everything written is durable. If the system allows it, later reads
	// come from the device and not from a cache.
	Sync() error
}

// Alignment of buffers suits every logical block size in use, and the page size.
const Alignment = 4096

// NewBuffer returns a buffer that is aligned for direct access.
func NewBuffer(size int) []byte {
	b := make([]byte, size+Alignment-1)
	skip := 0
	if r := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % Alignment); r != 0 {
		skip = Alignment - r
	}
	return b[skip : skip+size : skip+size]
}

// aligned reports whether a buffer and its offset suit direct access.
func aligned(p []byte, off int64, blockSize int) bool {
	return off%int64(blockSize) == 0 && len(p)%blockSize == 0 && len(p) > 0 &&
		uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Alignment == 0
}

// CheckRange refuses an access outside a device of size bytes. The error wraps io.EOF.
func CheckRange(size int64, p []byte, off int64) error {
	if off < 0 || int64(len(p)) > size-off {
		return fmt.Errorf("%d bytes at %d are outside the device of %d bytes: %w", len(p), off, size, io.EOF)
	}
	return nil
}
