package xfs_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/internal/filesystem/xfs"
)

// command runs a tool.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

// shelf returns a directory of a file system whose files can be cloned: a clone is the file as it was at one instant, while
// it is being written. It is what a snapshot of the storage is.
func shelf(t testing.TB) string {
	t.Helper()
	image := filesystemtest.Image(t, 8<<30, []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, func(string) {})
	return filesystemtest.Mount(t, image, "rw")
}

func clone(t testing.TB, from, to string) {
	t.Helper()
	source, err := os.Open(from)
	require.NoError(t, err)
	defer source.Close() //nolint:errcheck // it was only read
	target, err := os.Create(to)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlFileClone(int(target.Fd()), int(source.Fd())))
	require.NoError(t, target.Close())
}

// busyImages makes a file system, works on it, and calls check with clones that were taken meanwhile.
func busyImages(t *testing.T, mkfs []string, size int64, rounds int, seed uint64, check func(image string)) {
	t.Helper()
	dir := shelf(t)
	// mkfs.xfs makes logs of less than 64 MiB only for its own tests. Small ones wrap soon.
	for _, name := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} {
		t.Setenv(name, "1")
	}
	image := filepath.Join(dir, "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	command(t, "mkfs.xfs", append(append([]string{"-q"}, mkfs...), image)...)
	root := filesystemtest.Mount(t, image, "rw,nouuid")
	random := rand.New(rand.NewPCG(seed, 99))
	stop := work(t, root, seed)
	images := make([]string, rounds)
	for i := range images {
		time.Sleep(time.Duration(200+random.IntN(1500)) * time.Millisecond)
		if i%4 == 3 {
			f, err := os.Open(root)
			require.NoError(t, err)
			require.NoError(t, unix.Syncfs(int(f.Fd())))
			require.NoError(t, f.Close())
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
		}
		images[i] = filepath.Join(dir, strconv.Itoa(i))
		clone(t, image, images[i])
	}
	t.Logf("%d steps of work", stop())
	filesystemtest.Unmount(t, root)
	for _, image := range images {
		check(image)
		require.NoError(t, os.Remove(image))
	}
}

// TestReplay compares images of a file system in use with what the kernel shows after its own recovery.
func TestReplay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	rounds, seed := 2, uint64(1)
	if s := os.Getenv("XFS_ROUNDS"); s != "" {
		rounds, _ = strconv.Atoi(s)
		seed = uint64(time.Now().UnixNano()) //nolint:forbidigo // a long run tries something new
	}
	for _, options := range []string{
		"",
		"-m reflink=0 -l size=4m",
		"-b size=1024 -n size=8192 -m rmapbt=1 -i nrext64=1 -l size=6m",
		"-b size=4096 -s size=4096 -l su=64k,size=10m -m bigtime=0",
	} {
		t.Run(options, func(t *testing.T) {
			busyImages(t, strings.Fields(options), 400<<20, rounds, seed, func(image string) {
				fsys := open(t, image)
				f, err := os.Open(image)
				require.NoError(t, err)
				ends, err := xfs.LogEnds(f, 400<<20)
				require.NoError(t, err)
				require.NoError(t, f.Close())
				require.Contains(t, command(t, "xfs_logprint", "-t", image), ends)
				t.Log(ends, fsys.Describe().Notes)
				filesystemtest.Unmount(t, filesystemtest.Mount(t, image, "rw,nouuid")) // the kernel recovers, and writes
				root := filesystemtest.Mount(t, image, "ro,nouuid")
				filesystemtest.RequireEqual(t, root, fsys, filesystemtest.Differ{})
				filesystemtest.Unmount(t, root)
			})
		})
	}
}
