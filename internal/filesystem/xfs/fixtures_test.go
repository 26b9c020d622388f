package xfs_test

import (
	"compress/gzip"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// TestFixtures makes the images of testdata if XFS_FIXTURES is set. They are for tests without root, and for fuzzing.
func TestFixtures(t *testing.T) {
	if os.Getenv("XFS_FIXTURES") == "" {
		t.Skip("XFS_FIXTURES is not set")
	}
	for _, name := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} { // see busyImages
		t.Setenv(name, "1")
	}
	dir := shelf(t)
	format := func(name string, options ...string) string {
		image := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, 64<<20))
		command(t, "mkfs.xfs", append(options, "-q", "-d", "agcount=2", "-l", "size=16m", image)...)
		return image
	}
	proto(t, dir, true)
	v4 := format("version4", "-p", filepath.Join(dir, "proto"), "-m", "crc=0", "-b", "size=1024", "-i", "size=512")
	sets := []string{"-x", "-c", "path /large"}
	for _, n := range []string{"1", "100", "5000"} {
		sets = append(sets, "-c", "attr_set -u -v "+n+" a"+n, "-c", "attr_set -r -v "+n+" b"+n)
	}
	for _, n := range strings.Fields(strings.Repeat("x ", 40)) {
		sets = append(sets, "-c", "attr_set -u -v 30 "+strings.Repeat(n, len(sets)))
	}
	command(t, "xfs_db", append(sets, v4)...)
	save(t, v4, "testdata/version4.gz")

	v5 := format("version5", "-b", "size=1024", "-i", "nrext64=1", "-m", "rmapbt=1")
	root := filesystemtest.Mount(t, v5, "rw,nouuid")
	worker := &busy{t: t, root: root, random: rand.New(rand.NewPCG(1, 1))}
	for _, dir := range []string{"a/b", "c", "crowd"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for i := range 300 {
		_ = worker.step()
		if i == 200 {
			unix.Sync()
		}
	}
	f, err := os.Open(root)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	clone(t, v5, filepath.Join(dir, "busy"))
	filesystemtest.Unmount(t, root)
	save(t, filepath.Join(dir, "busy"), "testdata/version5.gz")
}

// save compresses an image. Content of files is not needed, so long runs that do not compress are not there.
func save(t *testing.T, image, to string) {
	t.Helper()
	b, err := os.ReadFile(image)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
	f, err := os.Create(to)
	require.NoError(t, err)
	w, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
}
