package xfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/pages"
)

// FileSystem is an XFS file system.
type FileSystem struct {
	device  *device
	super   *superblock
	overlay *overlay
	notes   []string
}

var _ filesystem.FileSystem = (*FileSystem)(nil)

// Open reads the superblock and the log of the file system on a device of size bytes. The error wraps filesystem.ErrOther
// if there is none. The device must not change, and must be safe for concurrent use.
func Open(r io.ReaderAt, size int64) (*FileSystem, error) {
	f := &FileSystem{device: newDevice(r, size), overlay: newOverlay()}
	if size < pages.Size {
		return nil, fmt.Errorf("%w: the device has only %d bytes", filesystem.ErrOther, size)
	}
	b, err := f.device.read(0, superblockSize)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if binary.BigEndian.Uint32(b) != superblockMagic {
		return nil, fmt.Errorf("%w: the superblock does not begin with XFSB", filesystem.ErrOther)
	}
	if err := f.readSuperblock(size); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	replayed := 0
	if f.overlay, replayed, err = replay(f.device, f.super); err != nil {
		return nil, fmt.Errorf("replay log: %w", err)
	}
	// The log may have made it larger.
	if err := f.readSuperblock(size); err != nil {
		return nil, fmt.Errorf("read superblock after the replay of the log: %w", err)
	}
	f.note(replayed)
	return f, nil
}

// readSuperblock reads the superblock, with the changes of the log once they are known.
func (f *FileSystem) readSuperblock(size int64) error {
	b, err := f.device.read(0, superblockSize)
	replayed := false
	if err == nil && f.super != nil {
		b, replayed, err = f.read(0, superblockSize)
	}
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(b) != superblockMagic {
		return damaged("it does not begin with XFSB")
	}
	s, err := parseSuperblock(b, size)
	if err != nil {
		return err
	}
	if s.v5 && !replayed {
		whole, err := f.device.read(0, int(s.sectorSize))
		if err != nil {
			return err
		}
		if !checkSum(whole, 224) {
			return damaged("its checksum is wrong")
		}
	}
	f.super = s
	return nil
}

func (f *FileSystem) note(replayed int) {
	if replayed > 0 {
		f.notes = append(f.notes, fmt.Sprintf("The file system was in use. What is shown includes %d transactions of its log, which was replayed in memory.", replayed))
	}
	if f.super.incompat&incompatNeedsRepair != 0 {
		f.notes = append(f.notes, "The file system is marked as in need of xfs_repair. The kernel would not mount it; what is shown may be inconsistent.")
	}
	for _, part := range []struct {
		of   string
		half func(unfinished) bool
	}{
		{"content", func(u unfinished) bool { return u.content }},
		{"extended attributes", func(u unfinished) bool { return u.attributes }},
	} {
		var inodes []string
		for _, ino := range slices.Sorted(maps.Keys(f.overlay.unfinished)) {
			if part.half(f.overlay.unfinished[ino]) {
				inodes = append(inodes, fmt.Sprint(ino))
			}
		}
		if len(inodes) > 0 {
			f.notes = append(f.notes, fmt.Sprintf("The log has changes that a mount would finish. They affect the %s of these inodes, which cannot be read: %s.",
				part.of, strings.Join(inodes[:min(len(inodes), 20)], ", ")+strings.Repeat(" and others", btoi(len(inodes) > 20))))
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Describe implements filesystem.FileSystem.
func (f *FileSystem) Describe() filesystem.Description {
	return filesystem.Description{Kind: "xfs", Label: f.super.label, UUID: formatUUID(f.super.uuid), Notes: slices.Clone(f.notes)}
}

// Root implements filesystem.FileSystem.
func (f *FileSystem) Root() filesystem.ID { return filesystem.ID(f.super.root) }

// Stat implements filesystem.FileSystem.
func (f *FileSystem) Stat(id filesystem.ID) (filesystem.Info, error) {
	n, err := f.inode(uint64(id))
	if err != nil {
		return filesystem.Info{}, err
	}
	return n.info(), nil
}

// of returns an inode of one kind whose content may be read.
func (f *FileSystem) of(id filesystem.ID, kind fs.FileMode, name string) (*inode, error) {
	n, err := f.inode(uint64(id))
	if err != nil {
		return nil, err
	}
	if filesystem.ModeOf(n.mode).Type() != kind {
		return nil, fmt.Errorf("inode %d is no %s", id, name)
	}
	if n.realtime && kind == 0 {
		return nil, fmt.Errorf("inode %d: %w", id, unsupported("its content is on the realtime device (rtdev), which is another volume"))
	}
	if f.overlay.unfinished[uint64(id)].content {
		return nil, fmt.Errorf("inode %d: %w", id, unsupported("the log has a change of its content that is not finished; a mount would finish it"))
	}
	return n, nil
}

// ReadDir implements filesystem.FileSystem. The order is that of the directory's blocks.
func (f *FileSystem) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		n, err := f.of(id, fs.ModeDir, "directory")
		if err != nil {
			yield(filesystem.Entry{}, err)
			return
		}
		if err := f.entries(n, func(e filesystem.Entry) bool { return yield(e, nil) }); err != nil {
			yield(filesystem.Entry{}, fmt.Errorf("read directory, inode %d: %w", id, err))
		}
	}
}

// ReadLink implements filesystem.FileSystem.
func (f *FileSystem) ReadLink(id filesystem.ID) (string, error) {
	n, err := f.of(id, fs.ModeSymlink, "symbolic link")
	if err != nil {
		return "", err
	}
	target, err := f.target(n)
	if err != nil {
		return "", fmt.Errorf("read symbolic link, inode %d: %w", id, err)
	}
	return target, nil
}

// Attributes implements filesystem.FileSystem.
func (f *FileSystem) Attributes(id filesystem.ID) (map[string][]byte, error) {
	n, err := f.inode(uint64(id))
	if err != nil {
		return nil, err
	}
	if f.overlay.unfinished[uint64(id)].attributes {
		return nil, fmt.Errorf("inode %d: %w", id, unsupported("the log has a change of its extended attributes that is not finished; a mount would finish it"))
	}
	a, err := f.attributes(n)
	if err != nil {
		return nil, fmt.Errorf("read extended attributes of inode %d: %w", id, err)
	}
	return a, nil
}

// Extents implements filesystem.FileSystem.
func (f *FileSystem) Extents(id filesystem.ID) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		n, err := f.of(id, 0, "regular file")
		if err != nil {
			yield(block.Extent{}, err)
			return
		}
		for e, err := range f.extents(n, &n.data, 0) {
			if err != nil {
				yield(block.Extent{}, fmt.Errorf("read extents of inode %d: %w", id, err))
				return
			}
			if e.start > uint64(n.size)>>f.super.blockLog {
				return
			}
			off := int64(e.start << f.super.blockLog)
			length := min(int64(e.blocks<<f.super.blockLog), n.size-off)
			if e.unwritten || length <= 0 {
				continue
			}
			if !yield(block.Extent{Offset: off, Length: length}, nil) {
				return
			}
		}
	}
}

// Open implements filesystem.FileSystem.
func (f *FileSystem) Open(id filesystem.ID) (io.ReaderAt, error) {
	n, err := f.of(id, 0, "regular file")
	if err != nil {
		return nil, err
	}
	return &file{f, n}, nil
}

// file is the content of a regular file.
type file struct {
	f *FileSystem
	n *inode
}

// ReadAt reads each extent with one read of the device.
func (r *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read inode %d: offset %d is negative", r.n.number, off)
	}
	if off >= r.n.size {
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > r.n.size-off {
		p, atEnd = p[:r.n.size-off], io.EOF
	}
	done, err := r.read(p, off)
	if err != nil {
		return done, fmt.Errorf("read inode %d at byte %d: %w", r.n.number, off, err)
	}
	return len(p), atEnd
}

// read fills p, which is inside of the file, and returns how much is filled in case of an error.
func (r *file) read(p []byte, off int64) (int, error) {
	log := r.f.super.blockLog
	done := 0
	for e, err := range r.f.extents(r.n, &r.n.data, uint64(off)>>log) {
		if err != nil {
			return done, err
		}
		if e.start > uint64(math.MaxInt64)>>log {
			break
		}
		start := int64(e.start << log)
		if start >= off+int64(len(p)) {
			break
		}
		if at := int(max(start-off, int64(done))); at > done {
			clear(p[done:at])
			done = at
		}
		// done bytes are filled. The extent goes on from there.
		skip := off + int64(done) - start
		n := int(min(int64(e.blocks<<log)-skip, int64(len(p)-done)))
		if e.unwritten {
			clear(p[done : done+n])
		} else if err := r.f.device.direct(p[done:done+n], e.device+skip); err != nil {
			return done, err
		}
		if done += n; done == len(p) {
			return done, nil
		}
	}
	clear(p[done:])
	return len(p), nil
}
