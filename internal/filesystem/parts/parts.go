// Package parts opens what is on a disk: the file system that begins where the disk begins, or one for each partition and
// logical volume. It finds files by path.
package parts

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/blockmover/blockmover/internal/disk"
	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/ext"
	"github.com/blockmover/blockmover/internal/filesystem/fat"
	"github.com/blockmover/blockmover/internal/filesystem/xfs"
)

// Part is a part of a disk.
type Part struct {
	// Name, Size, Kind and Reason are those of the disk.Part. With a file system, Kind is that of the file system. The Reason says why the
	// files cannot be read.
	Name   string
	Size   int64
	Kind   string
	Label  string
	UUID   string
	Notes  []string
	Reason string
	// Files is nil if there is a Reason.
	Files filesystem.FileSystem
}

// Disk is what is on a disk.
type Disk struct {
	Parts []Part
}

// kinds are the file systems that can be read. One whose structures are the weakest sign comes last.
var kinds = []struct {
	name string
	open func(r io.ReaderAt, size int64) (filesystem.FileSystem, error)
}{
	{"ext4", func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) { return ext.Open(r, size) }},
	{"xfs", func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) { return xfs.Open(r, size) }},
	{"vfat", func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) { return fat.Open(r, size) }},
}

// opened is a file system, or why it cannot be read.
type opened struct {
	kind  string
	files filesystem.FileSystem
	err   error
}

// Open finds what is on a disk. Its errors are those of reading; what is damaged is a part with a Reason. r must be a pointer.
func Open(r io.ReaderAt, size int64) (*Disk, error) {
	all := map[io.ReaderAt]opened{}
	found, err := disk.Find(r, size, func(r io.ReaderAt, size int64) (bool, error) {
		o, err := open(r, size)
		if err == nil && o.kind != "" {
			all[r] = o
		}
		return o.kind != "", err
	})
	if err != nil {
		return nil, err
	}
	d := &Disk{}
	for _, p := range found {
		part := Part{Name: p.Name, Size: p.Size, Kind: p.Kind, Label: p.Label, Reason: p.Reason}
		if o := all[p.Content]; p.Content != nil {
			part.Kind = o.kind
			if o.err != nil {
				part.Reason = o.err.Error()
			} else {
				part.describe(o.files)
			}
		}
		d.Parts = append(d.Parts, part)
	}
	return d, nil
}

// open tries all kinds. Without a kind there is none.
func open(r io.ReaderAt, size int64) (opened, error) {
	for _, k := range kinds {
		files, err := k.open(r, size)
		switch {
		case err == nil:
			return opened{kind: k.name, files: files}, nil
		case errors.Is(err, filesystem.ErrOther):
		case errors.Is(err, filesystem.ErrDamaged), errors.Is(err, filesystem.ErrUnsupported):
			return opened{kind: k.name, err: err}, nil
		default:
			return opened{}, err
		}
	}
	return opened{}, nil
}

func (p *Part) describe(files filesystem.FileSystem) {
	d := files.Describe()
	p.Files, p.Kind, p.UUID, p.Notes = files, d.Kind, d.UUID, d.Notes
	if d.Label != "" {
		p.Label = d.Label
	}
}

// Single reports whether the disk has one part, which is all of it.
func (d *Disk) Single() bool { return len(d.Parts) == 1 && d.Parts[0].Name == disk.Whole }

// Resolve returns the part that a path begins with, and the path in it. If the disk is one part, it is no part of the path.
func (d *Disk) Resolve(path string) (Part, string, error) {
	if d.Single() {
		return readable(d.Parts[0], path)
	}
	path = strings.TrimLeft(path, "/")
	for _, p := range d.Parts {
		if path == p.Name || strings.HasPrefix(path, p.Name+"/") {
			return readable(p, strings.TrimPrefix(path, p.Name))
		}
	}
	names := make([]string, len(d.Parts))
	for i, p := range d.Parts {
		names[i] = p.Name
	}
	return Part{}, "", fmt.Errorf("path %q does not begin with a part of the disk: %s", path, strings.Join(names, ", "))
}

func readable(p Part, path string) (Part, string, error) {
	if p.Files == nil {
		return p, "", fmt.Errorf("%s can't be read: %s", p.Name, p.Reason)
	}
	return p, path, nil
}
