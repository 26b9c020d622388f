package extract_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/extract"
)

// node is a file of a file system that shows whatever a test wants, also what is no file system.
type node struct {
	info       filesystem.Info
	names      []filesystem.Entry
	target     string
	data       []byte
	err        error // of reading the content
	extents    []block.Extent
	attributes map[string][]byte
}

type tree map[filesystem.ID]*node

func (tree) Describe() filesystem.Description { return filesystem.Description{} }
func (tree) Root() filesystem.ID              { return 0 }

func (t tree) Stat(id filesystem.ID) (filesystem.Info, error) {
	if t[id] == nil {
		return filesystem.Info{}, fs.ErrNotExist
	}
	return t[id].info, nil
}

func (t tree) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		for _, e := range t[id].names {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (t tree) ReadLink(id filesystem.ID) (string, error)              { return t[id].target, nil }
func (t tree) Attributes(id filesystem.ID) (map[string][]byte, error) { return t[id].attributes, nil }
func (t tree) Open(id filesystem.ID) (io.ReaderAt, error)             { return t[id], nil }
func (n *node) ReadAt(p []byte, off int64) (int, error) {
	if n.err != nil {
		return 0, n.err
	}
	if off >= n.info.Size {
		return 0, io.EOF
	}
	clear(p)
	if off < int64(len(n.data)) {
		copy(p, n.data[off:])
	}
	return int(min(int64(len(p)), n.info.Size-off)), nil
}

func (t tree) Extents(id filesystem.ID) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		extents := t[id].extents
		if extents == nil && len(t[id].data) > 0 {
			extents = []block.Extent{{Length: int64(len(t[id].data))}}
		}
		for _, e := range extents {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func file(text string) *node {
	return &node{info: filesystem.Info{Mode: 0o640, Links: 1, Size: int64(len(text)), Modified: time.Unix(1e9, 123).UTC()}, data: []byte(text)}
}

func directory(names ...filesystem.Entry) *node {
	return &node{info: filesystem.Info{Mode: fs.ModeDir | 0o750, Links: 2, Modified: time.Unix(1e9, 0).UTC()}, names: names}
}

func link(target string) *node {
	return &node{info: filesystem.Info{Mode: fs.ModeSymlink | 0o777, Links: 1}, target: target}
}

// problems collects what could not be copied.
type problems struct {
	mu    sync.Mutex
	found map[string]string
}

func (p *problems) add(path string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found == nil {
		p.found = map[string]string{}
	}
	p.found[path] += err.Error()
}

func copyTree(t *testing.T, files tree, dir string, o extract.Options) (extract.Result, map[string]string) {
	t.Helper()
	p := problems{}
	o.Problem = p.add
	c, err := extract.NewCopier(dir, o)
	require.NoError(t, err)
	require.NoError(t, c.Add(t.Context(), files, 0, ""))
	result, err := c.Close()
	require.NoError(t, err)
	require.Equal(t, len(p.found) > 0, result.Failed > 0)
	return result, p.found
}

// TestNothingOutside: whatever names and links a file system has, nothing outside of the directory changes.
func TestNothingOutside(t *testing.T) {
	above := t.TempDir()
	dir, outside := filepath.Join(above, "dir"), filepath.Join(above, "outside")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Mkdir(outside, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(outside, "mine"), []byte("mine"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "planted")))
	files := tree{
		0: directory(
			filesystem.Entry{Name: "a", ID: 1}, filesystem.Entry{Name: "a", ID: 2}, // a link, and a directory of the same name
			filesystem.Entry{Name: "..", ID: 3}, filesystem.Entry{Name: ".", ID: 3}, filesystem.Entry{Name: "", ID: 3},
			filesystem.Entry{Name: "../outside/x", ID: 3}, filesystem.Entry{Name: "/etc/x", ID: 3}, filesystem.Entry{Name: "x\x00y", ID: 3},
			filesystem.Entry{Name: "f", ID: 4}, filesystem.Entry{Name: "f", ID: 3}, // a link to a file, and a file
			filesystem.Entry{Name: "planted", ID: 2},
			filesystem.Entry{Name: "good", ID: 3},
		),
		1: link("../outside"), 2: directory(filesystem.Entry{Name: "mine", ID: 3}), 3: file("evil"), 4: link("../outside/mine"),
	}
	for _, overwrite := range []bool{false, true} {
		result, found := copyTree(t, files, dir, extract.Options{Overwrite: overwrite})
		require.GreaterOrEqual(t, result.Failed, int64(5))
		require.NotEmpty(t, found)
		got, err := os.ReadFile(filepath.Join(outside, "mine"))
		require.NoError(t, err)
		require.Equal(t, "mine", string(got))
		entries, err := os.ReadDir(outside)
		require.NoError(t, err)
		require.Len(t, entries, 1)
		got, err = os.ReadFile(filepath.Join(dir, "good"))
		require.NoError(t, err)
		require.Equal(t, "evil", string(got))
		entries, err = os.ReadDir(above)
		require.NoError(t, err)
		require.Len(t, entries, 2)
	}
}

// TestLoops: directories that contain themselves, or each other, come to an end.
func TestLoops(t *testing.T) {
	files := tree{
		0: directory(filesystem.Entry{Name: "self", ID: 0}, filesystem.Entry{Name: "a", ID: 1}, filesystem.Entry{Name: "b", ID: 2}),
		1: directory(filesystem.Entry{Name: "b", ID: 2}), 2: directory(filesystem.Entry{Name: "a", ID: 1}, filesystem.Entry{Name: "f", ID: 3}),
		3: file("x"),
	}
	_, found := copyTree(t, files, t.TempDir(), extract.Options{})
	require.Contains(t, found["self"], "a directory has two names")
	require.Len(t, found, 3)
	deep := tree{}
	for id := range filesystem.ID(3000) {
		deep[id] = directory(filesystem.Entry{Name: "deeper", ID: id + 1})
	}
	_, found = copyTree(t, deep, t.TempDir(), extract.Options{})
	require.Len(t, found, 1)
	for _, text := range found {
		require.Contains(t, text, "directories deep")
	}
}

// TestProblemsAreNamed: what cannot be read is named and leaves nothing, and the others are copied.
func TestProblemsAreNamed(t *testing.T) {
	bad := file("bad")
	bad.err, bad.info.Links = errors.New("pack is gone"), 2
	overlap := file("0123456789")
	overlap.extents = []block.Extent{{Offset: 0, Length: 5}, {Offset: 3, Length: 5}}
	outside := file("0123456789")
	outside.extents = []block.Extent{{Offset: 5, Length: 50}}
	files := tree{
		0: directory(
			filesystem.Entry{Name: "bad", ID: 1}, filesystem.Entry{Name: "other", ID: 1}, filesystem.Entry{Name: "overlap", ID: 2},
			filesystem.Entry{Name: "outside", ID: 3}, filesystem.Entry{Name: "gone", ID: 9}, filesystem.Entry{Name: "good", ID: 4},
		), 1: bad, 2: overlap, 3: outside, 4: file("good"),
	}
	dir := t.TempDir()
	result, found := copyTree(t, files, dir, extract.Options{})
	require.Equal(t, int64(1), result.Files)
	require.Len(t, found, 5)
	require.Contains(t, found["bad"], "pack is gone")
	require.Contains(t, found["other"], "pack is gone", "its other name is tried, too")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "good", entries[0].Name())

	var stream bytes.Buffer
	p := problems{}
	a := extract.NewArchiver(&stream, extract.Options{Problem: p.add})
	require.NoError(t, a.Add(t.Context(), files, 0, "top"))
	result, err = a.Close()
	require.NoError(t, err)
	require.Equal(t, int64(5), result.Failed)
	names, _ := members(t, &stream)
	require.Equal(t, []string{"top/", "top/good"}, names)
}

// TestRefusedHeader: what a stream cannot express is a problem of one name. The other names of the file do not refer to it.
func TestRefusedHeader(t *testing.T) {
	bad, odd := link("a\x00b"), file("odd")
	bad.info.Links = 2
	odd.attributes = map[string][]byte{"user.\x00": []byte("v"), "user.good": []byte("v")}
	files := tree{0: directory(
		filesystem.Entry{Name: "bad", ID: 1}, filesystem.Entry{Name: "other", ID: 1}, filesystem.Entry{Name: "odd", ID: 2},
	), 1: bad, 2: odd}
	var stream bytes.Buffer
	p := problems{}
	a := extract.NewArchiver(&stream, extract.Options{Problem: p.add})
	require.NoError(t, a.Add(t.Context(), files, 0, "top"))
	result, err := a.Close()
	require.NoError(t, err)
	require.Len(t, p.found, 2)
	require.EqualValues(t, 1, result.Lost[extract.LostAttribute])
	names, _ := members(t, &stream)
	require.Equal(t, []string{"top/", "top/odd"}, names)
}

// full is a disk with room for so many bytes.
type full int

var errFull = errors.New("no space left")

func (f *full) Write(p []byte) (int, error) {
	if *f -= full(len(p)); *f < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// TestFullDisk: a stream that cannot be written ends at once. It is no problem of the files.
func TestFullDisk(t *testing.T) {
	files := tree{0: directory()}
	for id := range filesystem.ID(20) {
		files[0].names = append(files[0].names, filesystem.Entry{Name: fmt.Sprint(id + 1), ID: id + 1})
		files[id+1] = file("x")
	}
	for blocks := range 16 {
		room := full(blocks * 512)
		p := problems{}
		a := extract.NewArchiver(&room, extract.Options{Problem: p.add})
		require.ErrorIs(t, a.Add(t.Context(), files, 0, "top"), errFull)
		require.Empty(t, p.found)
	}
}

func members(t *testing.T, stream io.Reader) (names []string, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, contents
		}
		require.NoError(t, err)
		names = append(names, h.Name)
		contents[h.Name], err = io.ReadAll(r)
		require.NoError(t, err)
	}
}

// TestSpecial: what gives rights is kept only if that is asked for.
func TestSpecial(t *testing.T) {
	if os.Geteuid() != 0 {
		_, err := extract.NewCopier(t.TempDir(), extract.Options{Special: true})
		require.ErrorContains(t, err, "only root")
		t.Skip("needs root")
	}
	setuid := file("su")
	setuid.info.Mode = 0o755 | fs.ModeSetuid | fs.ModeSetgid
	setuid.attributes = map[string][]byte{"security.capability": {1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "user.x": []byte("y")}
	files := tree{
		0: directory(filesystem.Entry{Name: "su", ID: 1}, filesystem.Entry{Name: "sda", ID: 2}, filesystem.Entry{Name: "socket", ID: 3}, filesystem.Entry{Name: "pipe", ID: 4}),
		1: setuid,
		2: {info: filesystem.Info{Mode: fs.ModeDevice | 0o600, Links: 1, Major: 8}},
		3: {info: filesystem.Info{Mode: fs.ModeSocket | 0o600, Links: 1}},
		4: {info: filesystem.Info{Mode: fs.ModeNamedPipe | 0o600, Links: 1}},
	}
	dir := t.TempDir()
	result, found := copyTree(t, files, dir, extract.Options{})
	require.Empty(t, found)
	require.Equal(t, map[string]int64{extract.LostSpecial: 1, extract.LostDevice: 1, extract.LostSocket: 1, extract.LostAttribute: 1}, result.Lost)
	info, err := os.Lstat(filepath.Join(dir, "su"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), info.Mode())

	dir = t.TempDir()
	result, found = copyTree(t, files, dir, extract.Options{Special: true})
	require.Empty(t, found)
	require.Equal(t, map[string]int64{extract.LostSocket: 1}, result.Lost)
	info, err = os.Lstat(filepath.Join(dir, "su"))
	require.NoError(t, err)
	require.Equal(t, setuid.info.Mode, info.Mode())
	info, err = os.Lstat(filepath.Join(dir, "sda"))
	require.NoError(t, err)
	require.Equal(t, fs.ModeDevice|0o600, info.Mode())
}

// TestSparseStream: GNU tar and the library of Go read what the library of Go does not write.
func TestSparseStream(t *testing.T) {
	sparse := &node{info: filesystem.Info{Mode: 0o640, Links: 1, Size: 300 << 20, Modified: time.Unix(-5, 250000000).UTC()}, data: make([]byte, 9<<20)}
	copy(sparse.data[8<<20:], bytes.Repeat([]byte("x"), 5000))
	sparse.extents = []block.Extent{{Offset: 8 << 20, Length: 5000}, {Offset: 299 << 20, Length: 1 << 20}}
	sparse.attributes = map[string][]byte{"user.x": []byte("a\x00b")}
	hole := &node{info: filesystem.Info{Mode: 0o600, Links: 1, Size: 1 << 40}}
	large := file(strings.Repeat("large ", 1<<20))
	files := tree{0: directory(filesystem.Entry{Name: "sparse \xff", ID: 1}, filesystem.Entry{Name: "large", ID: 2}, filesystem.Entry{Name: "last", ID: 3}), 1: sparse, 2: large, 3: file("last")}
	var stream bytes.Buffer
	p := problems{}
	a := extract.NewArchiver(&stream, extract.Options{Problem: p.add})
	require.NoError(t, a.Add(t.Context(), files, 0, "d"))
	_, err := a.Close()
	require.NoError(t, err)
	require.Less(t, stream.Len(), 10<<20)
	_, contents := members(t, bytes.NewReader(stream.Bytes()))
	require.Len(t, contents["d/sparse \xff"], 300<<20)
	require.True(t, bytes.Equal(sparse.data, contents["d/sparse \xff"][:9<<20]))
	require.Equal(t, string(large.data), string(contents["d/large"]))
	require.Equal(t, "last", string(contents["d/last"]))

	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	files[0].names = append(files[0].names, filesystem.Entry{Name: "hole", ID: 4})
	files[4] = hole
	stream.Reset()
	a = extract.NewArchiver(&stream, extract.Options{Problem: p.add})
	require.NoError(t, a.Add(t.Context(), files, 0, "d"))
	_, err = a.Close()
	require.NoError(t, err)
	dir := t.TempDir()
	cmd := exec.Command("tar", "-C", dir, "-xf", "-")
	cmd.Stdin = &stream
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	info, err := os.Stat(filepath.Join(dir, "d", "hole"))
	require.NoError(t, err)
	require.Equal(t, int64(1<<40), info.Size())
	info, err = os.Stat(filepath.Join(dir, "d", "sparse \xff"))
	require.NoError(t, err)
	require.Equal(t, sparse.info.Modified, info.ModTime().UTC())
	f, err := os.Open(filepath.Join(dir, "d", "sparse \xff"))
	require.NoError(t, err)
	defer f.Close()
	got := make([]byte, 9<<20)
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(sparse.data, got))
	require.Empty(t, p.found)
}

func TestCanceled(t *testing.T) {
	names := make([]filesystem.Entry, 0, 1000)
	files := tree{}
	for id := range filesystem.ID(1000) {
		names = append(names, filesystem.Entry{Name: fmt.Sprint(id + 1), ID: id + 1})
		files[id+1] = file("x")
	}
	files[0] = directory(names...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, err := extract.NewCopier(t.TempDir(), extract.Options{Problem: func(string, error) {}})
	require.NoError(t, err)
	require.ErrorIs(t, c.Add(ctx, files, 0, ""), context.Canceled)
	_, err = c.Close()
	require.NoError(t, err)
	a := extract.NewArchiver(io.Discard, extract.Options{Problem: func(string, error) {}})
	require.ErrorIs(t, a.Add(ctx, files, 0, ""), context.Canceled)
}
