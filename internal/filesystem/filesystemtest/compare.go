package filesystemtest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
)

// Differ says what a file system does not keep as the kernel shows it.
type Differ struct {
	// NoPosix leaves out owners, links and the change time, which the kernel makes up.
	NoPosix bool
	// AccessedDays compares access times to the day.
	AccessedDays bool
}

// RequireEqual compares everything below the root that the kernel has mounted at dir, read-only, with what the
// reader shows: names, kinds, content, holes, modes, owners, times, links and extended attributes.
func RequireEqual(t testing.TB, dir string, fsys filesystem.FileSystem, differ Differ) {
	t.Helper()
	c := comparison{t: t, fsys: fsys, differ: differ, inodes: map[uint64]filesystem.ID{}, got: make([]byte, 1<<20), want: make([]byte, 1<<20)}
	c.directory(dir, fsys.Root())
	require.Positive(t, c.files, "nothing was compared")
}

type comparison struct {
	t      testing.TB
	fsys   filesystem.FileSystem
	differ Differ
	// inodes has the ID of each inode that the kernel showed: two names of one file have one ID.
	inodes map[uint64]filesystem.ID
	files  int
	// got and want are buffers for content.
	got, want []byte
}

func (c *comparison) directory(dir string, id filesystem.ID) {
	c.t.Helper()
	want, err := os.ReadDir(dir)
	require.NoError(c.t, err)
	got := map[string]filesystem.ID{}
	for entry, err := range c.fsys.ReadDir(id) {
		require.NoError(c.t, err, dir)
		_, twice := got[entry.Name] // NotContains copies the map
		require.False(c.t, twice, "%q is twice in %q", entry.Name, dir)
		got[entry.Name] = entry.ID
	}
	for _, entry := range want {
		child, found := got[entry.Name()]
		require.True(c.t, found, "%q is missing in %q", entry.Name(), dir)
		delete(got, entry.Name())
		c.file(filepath.Join(dir, entry.Name()), child)
	}
	require.Empty(c.t, got, "%q has names that the kernel does not show", dir)
}

func (c *comparison) file(path string, id filesystem.ID) {
	c.t.Helper()
	var stat unix.Stat_t
	require.NoError(c.t, unix.Lstat(path, &stat))
	if known, found := c.inodes[stat.Ino]; found {
		require.Equal(c.t, known, id, "%q is another name of a known file", path)
		return
	}
	c.inodes[stat.Ino] = id
	c.files++
	info, err := c.fsys.Stat(id)
	require.NoError(c.t, err, path)
	c.info(path, stat, info)
	switch info.Mode.Type() {
	case fs.ModeDir:
		c.directory(path, id)
	case fs.ModeSymlink:
		want, err := os.Readlink(path)
		require.NoError(c.t, err)
		got, err := c.fsys.ReadLink(id)
		require.NoError(c.t, err, path)
		require.Equal(c.t, want, got, path)
	case 0:
		c.content(path, id, info.Size)
	default: // has no content
	}
	got, err := c.fsys.Attributes(id)
	require.NoError(c.t, err, path)
	require.Equal(c.t, attributesOf(c.t, path), got, "extended attributes of %q", path)
}

func (c *comparison) info(path string, want unix.Stat_t, got filesystem.Info) {
	c.t.Helper()
	kernel, err := os.Lstat(path)
	require.NoError(c.t, err)
	require.Equal(c.t, kernel.Mode(), got.Mode, "mode of %q", path)
	if got.Mode.IsRegular() || got.Mode.Type() == fs.ModeSymlink {
		require.Equal(c.t, want.Size, got.Size, "size of %q", path)
	}
	if got.Mode&fs.ModeDevice != 0 {
		require.Equal(c.t, [2]uint32{unix.Major(want.Rdev), unix.Minor(want.Rdev)}, [2]uint32{got.Major, got.Minor}, "device of %q", path)
	}
	require.Equal(c.t, timeOf(want.Mtim), got.Modified, "modification time of %q", path)
	accessed := func(at time.Time) time.Time {
		if c.differ.AccessedDays {
			return at.Truncate(24 * time.Hour)
		}
		return at
	}
	require.Equal(c.t, accessed(timeOf(want.Atim)), accessed(got.Accessed), "access time of %q", path)
	if c.differ.NoPosix {
		return
	}
	require.Equal(c.t, timeOf(want.Ctim), got.Changed, "change time of %q", path)
	require.Equal(c.t, [2]uint32{want.Uid, want.Gid}, [2]uint32{got.UID, got.GID}, "owner of %q", path)
	require.Equal(c.t, want.Nlink, uint64(got.Links), "links of %q", path)
}

func timeOf(at unix.Timespec) time.Time { return time.Unix(at.Unix()).UTC() }

// content compares the bytes, and that everything outside of the extents is zero. Then Extents may name more than the
// kernel's SEEK_DATA does, but no less.
func (c *comparison) content(path string, id filesystem.ID, size int64) {
	c.t.Helper()
	f, err := os.Open(path)
	require.NoError(c.t, err)
	defer f.Close() //nolint:errcheck // it was only read
	r, err := c.fsys.Open(id)
	require.NoError(c.t, err, path)

	var extents []block.Extent //nolint:prealloc // their number is not known
	end := int64(0)
	for e, err := range c.fsys.Extents(id) {
		require.NoError(c.t, err, path)
		require.NoError(c.t, e.CheckWithin(size), path)
		require.GreaterOrEqual(c.t, e.Offset, end, "extents of %q overlap", path)
		end = e.End()
		extents = append(extents, e)
	}
	got, want := c.got, c.want
	compare := func(e block.Extent, hole bool) {
		for off := e.Offset; off < e.End(); off += int64(len(got)) {
			n := int(min(e.End()-off, int64(len(got))))
			_, err := f.ReadAt(want[:n], off)
			require.True(c.t, err == nil || errors.Is(err, io.EOF), "read %q: %v", path, err)
			if hole {
				require.True(c.t, allZero(want[:n]), "%q has data at %d, outside of its extents", path, off)
			}
			read, err := r.ReadAt(got[:n], off)
			require.True(c.t, err == nil || errors.Is(err, io.EOF), "read %q at %d: %v", path, off, err)
			require.Equal(c.t, n, read, path)
			require.True(c.t, bytes.Equal(want[:n], got[:n]), "%q differs in the %d bytes at %d", path, n, off)
		}
	}
	for i, at := 0, int64(0); at < size; i++ {
		if i == len(extents) {
			compare(block.Extent{Offset: at, Length: min(size-at, 64<<20)}, true)
			break
		}
		compare(block.Extent{Offset: at, Length: min(extents[i].Offset-at, 64<<20)}, true)
		compare(extents[i], false)
		at = extents[i].End()
	}
	n, err := r.ReadAt(got[:1], size)
	require.Zero(c.t, n, path)
	require.ErrorIs(c.t, err, io.EOF, path)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// attributesOf returns what the kernel shows.
func attributesOf(t testing.TB, path string) map[string][]byte {
	t.Helper()
	attributes := map[string][]byte{}
	if n, err := unix.Llistxattr(path, nil); err == nil && n == 0 {
		return attributes
	}
	names, value := make([]byte, 64<<10), make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return attributes
	}
	require.NoError(t, err)
	for _, name := range bytes.Split(names[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		n, err := unix.Lgetxattr(path, string(name), value)
		require.NoError(t, err, "%s of %q", name, path)
		attributes[string(name)] = append([]byte{}, value[:n]...)
	}
	return attributes
}
