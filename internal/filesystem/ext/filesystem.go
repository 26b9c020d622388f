package ext

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
)

var _ filesystem.FileSystem = (*FileSystem)(nil)

// FileSystem is a file system of kind ext2, ext3 or ext4.
type FileSystem struct {
	dev   *device
	super *superblock
	fast  *fastCommits
	notes []string
}

// Open reads the superblock of a device of size bytes, and replays its journal in memory. The error wraps
// filesystem.ErrOther if the device has no superblock of this kind, filesystem.ErrUnsupported if the file system has a
// feature that is not known or a journal on another device, and filesystem.ErrDamaged.
func Open(r io.ReaderAt, size int64) (*FileSystem, error) {
	super, err := readSuperblock(size, readerAt(r, size))
	if err != nil {
		return nil, err
	}
	f := &FileSystem{dev: newDevice(r, size, super), super: super, fast: &fastCommits{}}
	if err := f.recover(); err != nil {
		return nil, fmt.Errorf("replay journal: %w", err)
	}
	if super.u16(0x3a)&stateErrors != 0 {
		f.note("The file system is marked as having errors. Something in it may be damaged.")
	}
	if n := uint64(size / super.blockSize); n < f.super.blocks {
		f.note("The device has %d blocks, and the file system %d. What is beyond the end cannot be read.", n, f.super.blocks)
	}
	if _, err := f.inode(rootInode); err != nil {
		return nil, fmt.Errorf("read root directory: %w", err)
	}
	return f, nil
}

func (f *FileSystem) note(format string, args ...any) {
	f.notes = append(f.notes, fmt.Sprintf(format, args...))
}

// Describe implements filesystem.FileSystem.
func (f *FileSystem) Describe() filesystem.Description {
	return filesystem.Description{
		Kind:  f.super.kind(),
		Label: f.super.label(),
		UUID:  formatUUID(f.super.raw[0x68:0x78]),
		Notes: slices.Clone(f.notes),
	}
}

// Root implements filesystem.FileSystem.
func (f *FileSystem) Root() filesystem.ID { return rootInode }

// Stat implements filesystem.FileSystem.
func (f *FileSystem) Stat(id filesystem.ID) (filesystem.Info, error) {
	in, err := f.inode(id)
	if err != nil {
		return filesystem.Info{}, err
	}
	return in.info(), nil
}

// ReadLink implements filesystem.FileSystem.
func (f *FileSystem) ReadLink(id filesystem.ID) (string, error) {
	in, err := f.inode(id)
	switch {
	case err != nil:
		return "", err
	case in.kind() != modeLink:
		return "", fmt.Errorf("inode %d is no symbolic link", id)
	case in.is(flagEncrypt):
		return "", unsupported("the symbolic link of inode %d is encrypted", id)
	case in.size == 0 || in.size > max(f.super.blockSize, 4096):
		return "", damaged("the target of symbolic link %d has %d bytes", id, in.size)
	}
	target := make([]byte, in.size)
	if f.isFastLink(in) {
		copy(target, in.blockArea())
	} else if _, err := f.content(in).ReadAt(target, 0); err != nil {
		return "", err
	}
	if strings.ContainsRune(string(target), 0) {
		return "", damaged("the target of symbolic link %d is %q", id, target)
	}
	return string(target), nil
}

// isFastLink reports whether a target is where other inodes have their blocks.
func (f *FileSystem) isFastLink(in *inode) bool {
	return in.size < blockAreaSize && !in.is(flagInlineData|flagExtents)
}

// regular returns the inode of a regular file that can be read.
func (f *FileSystem) regular(id filesystem.ID) (*inode, error) {
	in, err := f.inode(id)
	switch {
	case err != nil:
		return nil, err
	case in.kind() != modeRegular:
		return nil, fmt.Errorf("inode %d is no regular file", id)
	case in.is(flagEncrypt):
		return nil, unsupported("the file of inode %d is encrypted", id)
	}
	return in, nil
}

// Open implements filesystem.FileSystem.
func (f *FileSystem) Open(id filesystem.ID) (io.ReaderAt, error) {
	in, err := f.regular(id)
	if err != nil {
		return nil, err
	}
	return f.content(in), nil
}

// Extents implements filesystem.FileSystem.
func (f *FileSystem) Extents(id filesystem.ID) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		in, err := f.regular(id)
		if err != nil {
			yield(block.Extent{}, err)
			return
		}
		if in.is(flagInlineData) {
			if in.size > 0 {
				yield(block.Extent{Length: in.size}, nil)
			}
			return
		}
		var last block.Extent // extents that touch are joined
		for r, err := range f.runs(in, f.blocksOf(in)) {
			if err != nil {
				if last.Length == 0 || yield(last, nil) {
					yield(block.Extent{}, err)
				}
				return
			}
			if r.state != data {
				continue
			}
			e := block.Extent{Offset: int64(r.logical) * f.super.blockSize}
			e.Length = min(int64(r.length), (in.size-e.Offset+f.super.blockSize-1)/f.super.blockSize) * f.super.blockSize
			e.Length = min(e.Length, in.size-e.Offset)
			if last.Length > 0 && last.End() == e.Offset {
				last.Length += e.Length
				continue
			}
			if last.Length > 0 && !yield(last, nil) {
				return
			}
			last = e
		}
		if last.Length > 0 {
			yield(last, nil)
		}
	}
}

// blocksOf returns how many blocks the size of a file needs.
func (f *FileSystem) blocksOf(in *inode) uint64 {
	return (uint64(in.size) + uint64(f.super.blockSize) - 1) / uint64(f.super.blockSize)
}

// content reads the content of an inode.
func (f *FileSystem) content(in *inode) io.ReaderAt { return &file{fsys: f, in: in} }

type file struct {
	fsys *FileSystem
	in   *inode
}

// ReadAt implements io.ReaderAt.
func (c *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read file: the offset is negative")
	}
	if off >= c.in.size {
		return 0, io.EOF
	}
	var end error
	if rest := c.in.size - off; int64(len(p)) > rest {
		p, end = p[:rest], io.EOF
	}
	if c.in.is(flagInlineData) {
		content, err := c.fsys.inlineData(c.in)
		if err != nil {
			return 0, err
		}
		return copy(p, content[off:]), end
	}
	n := 0
	for n < len(p) {
		read, err := c.readRun(p[n:], off+int64(n))
		n += read
		if err != nil {
			return n, err
		}
	}
	return n, end
}

// readRun reads up to the end of the run at an offset.
func (c *file) readRun(p []byte, off int64) (int, error) {
	f := c.fsys
	size := f.super.blockSize
	r, err := f.lookup(c.in, uint64(off/size))
	if err != nil {
		return 0, err
	}
	within := off % size
	// At most what p has: the product stays small.
	length := min(r.length, uint64(len(p))/uint64(size)+2)
	p = p[:min(int64(len(p)), int64(length)*size-within)]
	if r.state != data {
		clear(p)
		return len(p), nil
	}
	if err := f.dev.readData(p, int64(r.physical)*size+within); err != nil {
		return 0, fmt.Errorf("read inode %d at %d: %w", c.in.number, off, err)
	}
	return len(p), nil
}
