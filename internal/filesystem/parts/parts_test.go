package parts_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"iter"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/parts"
)

// names is a file system of directories, files ("") and links (their targets). A directory has an ID that is a multiple of 10.
type names map[filesystem.ID]map[string]filesystem.ID

// links has the targets of links, by ID.
var links = map[filesystem.ID]string{1: "/a/b", 2: "../f", 3: "loop", 4: "missing", 5: "/a"}

func (n names) Describe() filesystem.Description { return filesystem.Description{} }
func (n names) Root() filesystem.ID              { return 0 }

func (n names) Stat(id filesystem.ID) (filesystem.Info, error) {
	switch {
	case links[id] != "":
		return filesystem.Info{Mode: fs.ModeSymlink}, nil
	case n[id] != nil:
		return filesystem.Info{Mode: fs.ModeDir}, nil
	}
	return filesystem.Info{}, nil
}

func (n names) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		for name, id := range n[id] {
			if !yield(filesystem.Entry{Name: name, ID: id}, nil) {
				return
			}
		}
	}
}

func (n names) ReadLink(id filesystem.ID) (string, error)            { return links[id], nil }
func (n names) Open(filesystem.ID) (io.ReaderAt, error)              { return nil, nil }
func (n names) Extents(filesystem.ID) iter.Seq2[block.Extent, error] { return nil }
func (n names) Attributes(filesystem.ID) (map[string][]byte, error)  { return nil, nil }

func TestLookup(t *testing.T) {
	files := names{
		0:  {"a": 10, "f": 7, "toB": 1, "loop": 3, "dangling": 4, "toA": 5},
		10: {"b": 20, "toF": 2}, 20: {"x": 8},
	}
	for path, want := range map[string]filesystem.ID{
		"": 0, "/": 0, "//a": 10, "a/b/x": 8, "/a/./b/../b/x": 8, "../../f": 7, "toB": 1, "toB/": 20, "toB/x": 8, "toA/toF": 2, "toA/toF/": 7, "a/": 10,
	} {
		got, err := parts.Lookup(files, path, false)
		require.NoError(t, err, path)
		require.Equal(t, want, got, path)
	}
	got, err := parts.Lookup(files, "a/toF", true)
	require.NoError(t, err)
	require.Equal(t, filesystem.ID(7), got)
	for path, want := range map[string]string{"missing": "does not exist", "f/x": "is no directory", "loop/": "symbolic links", "dangling/": "does not exist"} {
		_, err := parts.Lookup(files, path, false)
		require.ErrorContains(t, err, want, path)
	}
}

// TestResolve: a disk with a partition that holds FAT, one with FAT that is damaged, and one that is empty.
func TestResolve(t *testing.T) {
	const mib = 1 << 20
	image := make([]byte, 4*mib)
	le := binary.LittleEndian
	for i := range 3 {
		e := image[446+16*i:]
		e[4] = 0x0c
		le.PutUint32(e[8:], uint32(i+1)*2048)
		le.PutUint32(e[12:], 128)
	}
	le.PutUint16(image[510:], 0xaa55)
	for i := range 2 {
		b := image[(i+1)*mib:]
		copy(b, "\xeb\x3c\x90MSDOS5.0")
		le.PutUint16(b[11:], 512)
		b[13], b[16], b[21] = 1, 1, 0xf8
		le.PutUint16(b[14:], 1)
		le.PutUint16(b[17:], 16)
		le.PutUint16(b[19:], 128)
		le.PutUint16(b[22:], uint16(1+i*500))
		le.PutUint16(b[510:], 0xaa55)
	}
	d, err := parts.Open(bytes.NewReader(image), int64(len(image)))
	require.NoError(t, err)
	require.False(t, d.Single())
	require.Len(t, d.Parts, 3)
	p, inside, err := d.Resolve("/1/x/y")
	require.NoError(t, err)
	require.Equal(t, []string{"1", "/x/y", "vfat"}, []string{p.Name, inside, p.Kind})
	for path, want := range map[string]string{"2": "is damaged", "3": "it has no file system", "11": "does not begin with a part of the disk: 1, 2, 3"} {
		_, _, err := d.Resolve(path)
		require.ErrorContains(t, err, want)
	}
	one, err := parts.Open(bytes.NewReader(image[mib:mib+64<<10]), 64<<10)
	require.NoError(t, err)
	require.True(t, one.Single())
	_, inside, err = one.Resolve("/1/x")
	require.NoError(t, err)
	require.Equal(t, "/1/x", inside)
	_, err = parts.Open(broken{}, 4*mib)
	require.ErrorIs(t, err, errBroken, "what cannot be read is no verdict about a disk")
}

type broken struct{}

var errBroken = errors.New("broken")

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }
