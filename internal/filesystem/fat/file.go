package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
)

// rootID is the ID of the root directory. No entry is in the first sector of the device.
const rootID filesystem.ID = 1

// Root implements filesystem.FileSystem.
func (f *FileSystem) Root() filesystem.ID { return rootID }

// idOf is the ID of an entry at a place on the device.
func idOf(at int64) filesystem.ID { return filesystem.ID(at) }

// entry reads the entry with an ID.
func (f *FileSystem) entry(id filesystem.ID) (rawEntry, error) {
	var raw rawEntry
	if id%entrySize != 0 || int64(id) < f.rootAt || int64(id) > f.size-entrySize {
		return raw, fmt.Errorf("file %d: %w", id, fs.ErrNotExist)
	}
	if err := f.read(raw[:], int64(id)); err != nil {
		return raw, err
	}
	if raw[0] == 0 || raw[0] == freed || raw.attributes()&attrLabel != 0 {
		return raw, fmt.Errorf("file %d: %w", id, fs.ErrNotExist)
	}
	return raw, nil
}

// Stat implements filesystem.FileSystem.
func (f *FileSystem) Stat(id filesystem.ID) (filesystem.Info, error) {
	if id == rootID {
		return filesystem.Info{Mode: fs.ModeDir | 0o755, Links: 1}, nil
	}
	raw, err := f.entry(id)
	if err != nil {
		return filesystem.Info{}, err
	}
	le := binary.LittleEndian
	info := filesystem.Info{
		Mode:     modeOf(&raw),
		Links:    1,
		Modified: timeOf(le.Uint16(raw[24:]), le.Uint16(raw[22:])),
		Accessed: timeOf(le.Uint16(raw[18:]), 0),
	}
	if !raw.directory() {
		info.Size = raw.size()
	}
	return info, nil
}

// ReadDir implements filesystem.FileSystem.
func (f *FileSystem) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		for e, err := range f.entries(id) {
			switch {
			case err != nil:
				yield(filesystem.Entry{}, fmt.Errorf("read directory: %w", err))
				return
			case e.label:
			case !yield(filesystem.Entry{Name: e.name, ID: idOf(e.at)}, nil):
				return
			}
		}
	}
}

// ReadLink implements filesystem.FileSystem.
func (f *FileSystem) ReadLink(filesystem.ID) (string, error) {
	return "", errors.New("FAT has no symbolic links")
}

// regular returns the entry of a regular file.
func (f *FileSystem) regular(id filesystem.ID) (rawEntry, error) {
	if id == rootID {
		return rawEntry{}, errors.New("the root is no regular file")
	}
	raw, err := f.entry(id)
	if err == nil && raw.directory() {
		err = fmt.Errorf("file %d is no regular file", id)
	}
	return raw, err
}

// Open implements filesystem.FileSystem.
func (f *FileSystem) Open(id filesystem.ID) (io.ReaderAt, error) {
	raw, err := f.regular(id)
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	if raw.size() == 0 {
		return io.NewSectionReader(nil, 0, 0), nil
	}
	c, err := f.newChain(raw.first(f.bits), raw.size())
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	return c, nil
}

// Extents implements filesystem.FileSystem. FAT has no holes.
func (f *FileSystem) Extents(id filesystem.ID) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		raw, err := f.regular(id)
		switch {
		case err != nil:
			yield(block.Extent{}, fmt.Errorf("find extents: %w", err))
		case raw.size() > 0:
			yield(block.Extent{Length: raw.size()}, nil)
		}
	}
}

// Attributes implements filesystem.FileSystem. FAT has none.
func (f *FileSystem) Attributes(filesystem.ID) (map[string][]byte, error) {
	return map[string][]byte{}, nil
}
