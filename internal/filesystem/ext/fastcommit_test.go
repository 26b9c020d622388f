package ext_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/ext"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// changes are what fast commits hold. The mount has files of 35,000 bytes that are old.
var changes = []struct {
	name string
	make func(c *changer)
}{
	{"create", func(c *changer) { c.write("created", "new", 0) }},
	{"many", func(c *changer) {
		for i := range 300 {
			c.write(fmt.Sprintf("file-%d", i), strings.Repeat("c", i*20), 0)
		}
	}},
	{"grow", func(c *changer) {
		c.write("old-0", strings.Repeat("g", 50000), 1<<20)
		c.write("old-0", strings.Repeat("h", 50000), 3<<20)
		c.write("old-0", strings.Repeat("i", 50000), 1<<20+20000)
	}},
	{"remove", func(c *changer) {
		require.NoError(c.t, os.Remove(c.path("old-0")))
		c.fsync("old-1")
	}},
	{"remove and create", func(c *changer) {
		require.NoError(c.t, os.Remove(c.path("old-0")))
		c.write("created", "has the inode of old-0", 0)
		require.NoError(c.t, os.Remove(c.path("created")))
		c.write("again", "has it, too", 5000)
	}},
	{"rename", func(c *changer) {
		require.NoError(c.t, os.Rename(c.path("old-0"), c.path("new-name")))
		c.fsync("new-name")
		require.NoError(c.t, os.Rename(c.path("new-name"), c.path("old-dir/newer-name")))
		c.fsync("old-1")
	}},
	{"replace", func(c *changer) {
		c.write("temporary", "the new content", 0)
		require.NoError(c.t, os.Rename(c.path("temporary"), c.path("old-0")))
		c.fsync("old-0")
	}},
	{"link", func(c *changer) {
		require.NoError(c.t, os.Link(c.path("old-0"), c.path("second")))
		require.NoError(c.t, os.Link(c.path("old-0"), c.path("third")))
		require.NoError(c.t, os.Remove(c.path("second")))
		c.fsync("old-0")
	}},
	{"truncate", func(c *changer) {
		require.NoError(c.t, os.Truncate(c.path("old-0"), 5000))
		c.fsync("old-0")
		require.NoError(c.t, os.Truncate(c.path("old-0"), 25000))
		c.fsync("old-0")
		require.NoError(c.t, os.Truncate(c.path("old-1"), 0))
		c.fsync("old-1")
	}},
	{"punch", func(c *changer) {
		f, err := os.OpenFile(c.path("old-0"), os.O_RDWR, 0)
		require.NoError(c.t, err)
		require.NoError(c.t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192))
		require.NoError(c.t, f.Sync())
		require.NoError(c.t, unix.Fallocate(int(f.Fd()), 0, 40960, 81920))
		require.NoError(c.t, f.Sync())
		require.NoError(c.t, f.Close())
		c.write("old-0", "in the middle", 60000)
	}},
	{"directory", func(c *changer) {
		require.NoError(c.t, os.Mkdir(c.path("directory"), 0o755))
		c.write("directory/inside", "inside", 0)
		require.NoError(c.t, os.Mkdir(c.path("directory/below"), 0o711))
		c.write("directory/below/inside", "inside", 0)
		c.fsync("old-0")
	}},
	{"symbolic link", func(c *changer) {
		require.NoError(c.t, os.Symlink("target", c.path("short")))
		require.NoError(c.t, os.Symlink(strings.Repeat("t", 100), c.path("long")))
		c.fsync("old-0")
	}},
	{"node", func(c *changer) {
		require.NoError(c.t, unix.Mknod(c.path("node"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))))
		c.fsync("old-0")
	}},
	{"attribute", func(c *changer) {
		require.NoError(c.t, unix.Setxattr(c.path("old-0"), "user.key", []byte("value"), 0))
		c.fsync("old-0")
	}},
	{"mode", func(c *changer) {
		require.NoError(c.t, os.Chmod(c.path("old-0"), 0o4711))
		require.NoError(c.t, os.Chown(c.path("old-0"), 70000, 80000))
		c.fsync("old-0")
	}},
	{"full commit between", func(c *changer) {
		c.write("before", "before", 0)
		unix.Sync()
		c.write("after", "after", 0)
	}},
}

type changer struct {
	t    testing.TB
	root string
}

func (c *changer) path(name string) string { return filepath.Join(c.root, name) }

func (c *changer) fsync(name string) {
	f, err := os.Open(c.path(name))
	require.NoError(c.t, err)
	require.NoError(c.t, f.Sync())
	require.NoError(c.t, f.Close())
}

func (c *changer) write(name, content string, off int64) {
	f, err := os.OpenFile(c.path(name), os.O_RDWR|os.O_CREATE, 0o640)
	require.NoError(c.t, err)
	_, err = f.WriteAt([]byte(content), off)
	require.NoError(c.t, err)
	require.NoError(c.t, f.Sync())
	require.NoError(c.t, f.Close())
}

// TestFastCommits compares with what the kernel shows after it has replayed a copy.
func TestFastCommits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	fast := 0
	for _, change := range changes {
		t.Run(change.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			require.NoError(t, os.WriteFile(image, nil, 0o600))
			require.NoError(t, os.Truncate(image, 64<<20))
			command(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "fast_commit", "-J", "size=8,fast_commit_size=1024", image)
			c := &changer{t: t, root: filesystemtest.Mount(t, image, "rw")}
			for i := range 4 {
				c.write(fmt.Sprintf("old-%d", i), strings.Repeat("seven b", 5000), 0)
			}
			require.NoError(t, os.Mkdir(c.path("old-dir"), 0o755))
			unix.Sync()
			change.make(c)
			shutdown(t, c.root)
			filesystemtest.Unmount(t, c.root)

			fsys := openImage(t, image)
			t.Log(fsys.Describe().Notes)
			for _, note := range fsys.Describe().Notes {
				require.NotContains(t, note, "cannot")
				if strings.Contains(note, "fast commits of the journal were replayed") {
					fast++
				}
			}
			judge := image + ".judge"
			command(t, "cp", "--sparse=always", image, judge)
			mounted := filesystemtest.Mount(t, judge, "rw,noatime")
			requireEqualAfterFast(t, mounted, fsys, false)
		})
	}
	require.Positive(t, fast, "no journal had fast commits")
}

// requireEqualAfterFast compares what a fast commit says. The kernel makes the rest up: the times and links of directories, and
// the times of change. If it also deletes at the same time, it touches files.
func requireEqualAfterFast(t testing.TB, mounted string, fsys *ext.FileSystem, touched bool) {
	t.Helper()
	var directory func(path string, id filesystem.ID)
	directory = func(path string, id filesystem.ID) {
		for entry, err := range fsys.ReadDir(id) {
			require.NoError(t, err)
			info, err := fsys.Stat(entry.ID)
			require.NoError(t, err, entry.Name)
			path := filepath.Join(path, entry.Name)
			if info.Mode.IsDir() {
				directory(path, entry.ID)
			}
			if info.Mode.IsDir() || touched {
				times := []unix.Timespec{unix.NsecToTimespec(info.Accessed.UnixNano()), unix.NsecToTimespec(info.Modified.UnixNano())}
				require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
			}
		}
	}
	directory(mounted, fsys.Root())
	filesystemtest.RequireEqual(t, mounted, fsys, filesystemtest.Differ{NoPosix: true})
}
