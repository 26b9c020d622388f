package ext_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// shutdown stops a file system at once, as a crash does: EXT4_IOC_SHUTDOWN without a flush of the journal.
func shutdown(t testing.TB, root string) {
	t.Helper()
	const (
		request    = 'X'<<8 | 125 | 4<<16 | 2<<30 // _IOR('X', 125, __u32)
		noLogFlush = 2
	)
	dir, err := os.Open(root)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, unix.IoctlSetPointerInt(int(dir.Fd()), request, noLogFlush))
}

// busy changes files below a directory until a channel is closed, and syncs some of them. If it is gentle, it does what fast
// commits can hold.
func busy(dir string, seed uint64, gentle bool, stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(seed, 3))
	name := func() string {
		return filepath.Join(dir, fmt.Sprintf("d%d", random.IntN(5)), fmt.Sprintf("f%d", random.IntN(60)))
	}
	sync := func(path string) {
		if f, err := os.Open(path); err == nil {
			_ = f.Sync()
			_ = f.Close()
		}
	}
	for i := range 5 {
		_ = os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%d", i)), 0o755)
	}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		path := name()
		action := random.IntN(12)
		if gentle && action >= 3 && action <= 6 {
			action = 7
		}
		switch action {
		case 0:
			_ = os.Remove(path)
		case 1:
			_ = os.Rename(path, name())
		case 2:
			_ = os.Link(path, name())
		case 3:
			_ = os.Symlink(strings.Repeat("s", 1+random.IntN(150)), path)
		case 4:
			_ = os.MkdirAll(filepath.Join(dir, fmt.Sprintf("m%d", random.IntN(9)), "n"), 0o755)
		case 5:
			_ = os.RemoveAll(filepath.Join(dir, fmt.Sprintf("m%d", random.IntN(9))))
		case 6:
			_ = unix.Setxattr(path, "user.x", []byte(strings.Repeat("v", random.IntN(300))), 0)
		default:
			if f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640); err == nil {
				content := make([]byte, 1+random.IntN(30000))
				for i := range content {
					content[i] = byte(random.Uint32())
				}
				// The magic number of the journal is escaped in it.
				copy(content, "\xc0\x3b\x39\x98")
				_, _ = f.WriteAt(content, int64(random.IntN(4))*4096*int64(random.IntN(20)))
				if random.IntN(3) == 0 {
					_ = f.Sync()
				}
				_ = f.Close()
			}
		}
		if random.IntN(10) == 0 {
			sync(name())
		}
		if i%200 == 199 {
			sync(dir)
		}
	}
}

// crash makes an image of a busy file system that stopped at a random moment.
func crash(t testing.TB, mkfs []string, options string, seed uint64) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 64<<20))
	command(t, mkfs[0], append(mkfs[1:], image)...)
	root := filesystemtest.Mount(t, image, options)
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i := range 3 {
		dir := filepath.Join(root, fmt.Sprintf("w%d", i))
		require.NoError(t, os.Mkdir(dir, 0o755))
		workers.Go(func() { busy(dir, seed*10+uint64(i), slices.Contains(mkfs, "fast_commit"), stop) })
	}
	time.Sleep(time.Duration(100+seed*7919%900) * time.Millisecond)
	shutdown(t, root)
	close(stop)
	workers.Wait()
	filesystemtest.Unmount(t, root)
	return image
}

// journals are the formats of a journal.
var journals = []struct {
	name, options string
	mkfs          []string
}{
	{"v3", "rw", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "64bit"}},
	{"v3-data", "rw,data=journal", []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-J", "size=4"}},
	{"small", "rw", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-J", "size=1"}},
	{"no-checksums", "rw", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"}},
	{"64bit", "rw,data=journal", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,64bit", "-J", "size=4"}},
	{"v1", "rw,journal_checksum", []string{"mke2fs", "-q", "-t", "ext4", "-b", "2048", "-O", "^metadata_csum"}},
	{"async", "rw,journal_async_commit,data=writeback", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024"}},
	{"ext3", "rw,data=journal", []string{"mke2fs", "-q", "-t", "ext3", "-b", "1024", "-J", "size=1"}},
	{"inline", "rw", []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "inline_data,orphan_file,metadata_csum_seed"}},
}

// TestJournal compares with what the kernel shows after it has replayed a copy.
func TestJournal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	replayed := 0
	for i, journal := range journals {
		t.Run(journal.name, func(t *testing.T) {
			for round := range rounds(1) {
				replayed += compareCrash(t, crash(t, journal.mkfs, journal.options, uint64(i*1000+round)))
			}
		})
	}
	require.Positive(t, replayed, "no journal had anything")
}

// TestRandomFastCommits is run by hand: the kernel does not always replay such fast commits. In some rounds it does not mount, or
// makes a name twice. In one of some hundred rounds it loses the blocks of a file: if a record takes a name from a file, and the name
// belongs to another one by now, it keeps the name, and counts one link less all the same (__ext4_unlink); a file without links is
// freed, and a later record brings back the inode alone. The reader keeps the file. TestFastCommits has what the kernel does right.
func TestRandomFastCommits(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("EXT_ROUNDS") == "" {
		t.Skip("needs root to mount, and EXT_ROUNDS")
	}
	mkfs := []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "fast_commit", "-J", "size=8,fast_commit_size=1024"}
	for round := range rounds(1) {
		compareCrash(t, crash(t, mkfs, "rw", uint64(round)))
	}
}

// compareCrash returns how many transactions were replayed.
func compareCrash(t testing.TB, image string) int {
	t.Helper()
	fsys := openImage(t, image)
	transactions, fast := 0, false
	t.Log(fsys.Describe().Notes)
	for _, note := range fsys.Describe().Notes {
		if strings.Contains(note, "fast commits of the journal were replayed") {
			fast = true
			continue
		}
		n, _ := fmt.Sscanf(note, "The journal was replayed: %d", &transactions)
		require.Equal(t, 1, n, note)
	}
	judge := image + ".judge"
	command(t, "cp", "--sparse=always", image, judge)
	root := t.TempDir()
	// A loop device that is read-only would not let it replay.
	mount := exec.Command("mount", "-o", "loop,rw,noatime", judge, root)
	if out, err := mount.CombinedOutput(); err != nil {
		require.True(t, fast, "mount: %s", out)
		t.Log("the kernel cannot replay these fast commits")
		return transactions
	}
	if fast {
		filesystemtest.Unmount(t, root)
		out, _ := exec.Command("e2fsck", "-fn", judge).CombinedOutput()
		if strings.Contains(string(out), "Duplicate entry") {
			t.Log("the kernel has made a name twice when it replayed these fast commits")
			return transactions
		}
		requireEqualAfterFast(t, filesystemtest.Mount(t, judge, "rw,noatime"), fsys, true)
		return transactions
	}
	filesystemtest.RequireEqual(t, root, fsys, filesystemtest.Differ{})
	filesystemtest.Unmount(t, root)
	command(t, "e2fsck", "-fn", judge)
	return transactions
}

// rounds multiplies the rounds of a test that is run by hand: EXT_ROUNDS=50.
func rounds(n int) int {
	factor := 1
	_, _ = fmt.Sscan(os.Getenv("EXT_ROUNDS"), &factor)
	return n * factor
}
