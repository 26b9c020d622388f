package device

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/block"
)

// fileBlockSize is the logical block of a regular file. O_DIRECT works with it on every file
// system in use.
const fileBlockSize = 4096

// File is a block device or a regular file.
//
// It is opened twice: for direct access, and through the page cache for what is not aligned.
// The kernel keeps both views the same: direct writes drop the cached pages, and direct reads
// write dirty pages back first.
type File struct {
	buffered *os.File
	// direct is nil if the file system refuses O_DIRECT.
	direct    *os.File
	isDevice  bool
	size      int64
	blockSize int
}

var _ Writer = (*File)(nil)

// Open opens a block device or regular file for reading.
func Open(path string) (Reader, error) {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	return f, nil
}

// OpenWriter opens a block device or regular file for reading and writing. It refuses a block
// device that is mounted or claimed by something else.
func OpenWriter(path string) (Writer, error) {
	f, err := open(path, os.O_RDWR)
	switch {
	case errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("open device: %w: %w", ErrReadOnly, err)
	case err != nil:
		return nil, fmt.Errorf("open device: %w", err)
	}
	return f, nil
}

// CreateWriter opens the regular file of a disk for reading and writing, and makes it size bytes
// long. It keeps what a file that is there holds up to then.
func CreateWriter(path string, size int64) (Writer, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o660)
	if err != nil {
		return nil, fmt.Errorf("create file of the disk: %w", err)
	}
	if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
		return nil, fmt.Errorf("create file of the disk: %w", err)
	}
	return OpenWriter(path)
}

func open(path string, flag int) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	f := &File{isDevice: info.Mode().Type() == os.ModeDevice}
	switch {
	case f.isDevice && flag == os.O_RDWR:
		// On a block device, O_EXCL fails with EBUSY while the kernel uses the device. Only
		// one open file can have it, the first.
		f.buffered, err = os.OpenFile(path, flag|unix.O_EXCL, 0)
	case f.isDevice || info.Mode().IsRegular():
		f.buffered, err = os.OpenFile(path, flag, 0)
	default:
		err = fmt.Errorf("%s is neither a block device nor a regular file: %s", path, info.Mode().Type())
	}
	if err != nil {
		return nil, err
	}
	if err := f.inspect(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Some file systems refuse O_DIRECT; tmpfs did until Linux 6.6.
	f.direct, err = os.OpenFile(path, flag|unix.O_DIRECT, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// inspect reads the size and the logical block size.
func (f *File) inspect() error {
	if !f.isDevice {
		info, err := f.buffered.Stat()
		if err != nil {
			return err
		}
		f.size, f.blockSize = info.Size(), fileBlockSize
		return nil
	}
	if err := f.ioctl(unix.BLKGETSIZE64, unsafe.Pointer(&f.size)); err != nil {
		return fmt.Errorf("get size of %s: %w", f.buffered.Name(), err)
	}
	var logical int32
	if err := f.ioctl(unix.BLKSSZGET, unsafe.Pointer(&logical)); err != nil {
		return fmt.Errorf("get logical block size of %s: %w", f.buffered.Name(), err)
	}
	if f.size <= 0 || logical <= 0 {
		return fmt.Errorf("%s has %d bytes in blocks of %d", f.buffered.Name(), f.size, logical)
	}
	f.blockSize = int(logical)
	return nil
}

func (f *File) ioctl(request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.buffered.Fd(), uintptr(request), uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		default:
			return errno
		}
	}
}

// Size implements Reader.
func (f *File) Size() int64 { return f.size }

// BlockSize implements Reader.
func (f *File) BlockSize() int { return f.blockSize }

// Direct reports whether aligned accesses bypass the page cache.
func (f *File) Direct() bool { return f.direct != nil }

// through chooses the file for one access.
func (f *File) through(p []byte, off int64) *os.File {
	if f.direct != nil && aligned(p, off, f.blockSize) {
		return f.direct
	}
	return f.buffered
}

// ReadAt implements Reader.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := CheckRange(f.size, p, off); err != nil {
		return 0, fmt.Errorf("read %s: %w", f.buffered.Name(), err)
	}
	n, err := f.through(p, off).ReadAt(p, off)
	if err != nil {
		return n, fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return n, nil
}

// WriteAt implements Writer.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := CheckRange(f.size, p, off); err != nil {
		return 0, fmt.Errorf("write %s: %w", f.buffered.Name(), err)
	}
	n, err := f.through(p, off).WriteAt(p, off)
	if err != nil {
		return n, fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return n, nil
}

// Zero implements Writer.
func (f *File) Zero(e block.Extent) error {
	if err := e.CheckWithin(f.size); err != nil {
		return fmt.Errorf("zero %s: %w", f.buffered.Name(), err)
	}
	unit := int64(f.blockSize)
	start, end := (e.Offset+unit-1)/unit*unit, e.End()/unit*unit
	if !f.isDevice {
		start, end = e.Offset, e.End() // no part is aligned
	}
	if start >= end {
		return f.writeZeros(e)
	}
	inner := block.Extent{Offset: start, Length: end - start}
	if err := f.zeroAligned(inner); err != nil {
		return fmt.Errorf("zero %s: %w", inner, err)
	}
	// The two ends that are not whole blocks.
	return errors.Join(
		f.writeZeros(block.Extent{Offset: e.Offset, Length: start - e.Offset}),
		f.writeZeros(block.Extent{Offset: end, Length: e.End() - end}),
	)
}

// zeroAligned punches a hole, which reads as zeros. Thin storage then frees the space. BLKZEROOUT
// would allocate all of a sparse volume, and where it has to write the zeros, nothing limits or
// cancels it.
func (f *File) zeroAligned(e block.Extent) error {
	err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err // EOPNOTSUPP is errors.ErrUnsupported
}

func (f *File) fallocate(mode uint32, e block.Extent) error {
	for {
		if err := unix.Fallocate(int(f.buffered.Fd()), mode, e.Offset, e.Length); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// writeZeros writes a few zeros.
func (f *File) writeZeros(e block.Extent) error {
	if e.Length == 0 {
		return nil
	}
	_, err := f.WriteAt(zeros[:e.Length], e.Offset)
	return err
}

// Sync implements Writer.
func (f *File) Sync() error {
	if err := f.buffered.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.buffered.Name(), err)
	}
	// This is advice only. If the kernel ignores it, later reads come from the cache.
	_ = unix.Fadvise(int(f.buffered.Fd()), 0, 0, unix.FADV_DONTNEED)
	return nil
}

// Close implements Reader.
func (f *File) Close() error {
	var errs []error
	for _, file := range []*os.File{f.direct, f.buffered} {
		if file != nil {
			errs = append(errs, file.Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close device: %w", err)
	}
	return nil
}
