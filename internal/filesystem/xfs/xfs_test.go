package xfs_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/internal/filesystem/xfs"
)

// open opens an image until the end of the test.
func open(t testing.TB, image string) *xfs.FileSystem {
	t.Helper()
	f, err := os.Open(image)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() }) //nolint:errcheck // it was only read
	info, err := f.Stat()
	require.NoError(t, err)
	fsys, err := xfs.Open(f, info.Size())
	require.NoError(t, err)
	return fsys
}

func tree(files int) filesystemtest.Tree {
	return filesystemtest.Tree{Files: files, Posix: true, Attributes: true, ACLs: true, LargeAttribute: 60000, Sparse: 64 << 20, Seed: 1}
}

// TestReader compares with what the kernel's mount shows, for the formats that it mounts.
func TestReader(t *testing.T) {
	for _, options := range []string{
		"",
		"-b size=1024 -m rmapbt=1,reflink=0",
		"-b size=1024 -n size=4096 -m bigtime=0,inobtcount=0,finobt=0,reflink=0",
		"-b size=2048 -n size=65536 -i size=1024,nrext64=1",
		"-b size=4096 -s size=4096 -i size=2048,nrext64=1,sparse=0 -m rmapbt=1",
		"-b size=16384 -l su=32k -n size=32768",
		"-b size=65536",
	} {
		name := strings.TrimSpace(strings.NewReplacer("size=", "", "-", "", " ", ",").Replace(options))
		t.Run(name, func(t *testing.T) {
			mkfs := append([]string{"mkfs.xfs", "-q", "-L", "ein label"}, strings.Fields(options)...)
			image := filesystemtest.Image(t, 400<<20, mkfs, func(root string) { filesystemtest.MakeTree(t, root, tree(400)) })
			fsys := open(t, image)
			require.Equal(t, "ein label", fsys.Describe().Label)
			require.Empty(t, fsys.Describe().Notes)
			filesystemtest.RequireEqual(t, filesystemtest.Mount(t, image, "ro"), fsys, filesystemtest.Differ{})
			filesystemtest.CheckErrors(t, fsys)
		})
	}
}

func TestOther(t *testing.T) {
	_, err := xfs.Open(strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20)
	require.ErrorIs(t, err, filesystem.ErrOther)
	_, err = xfs.Open(strings.NewReader("XFSB"), 4)
	require.ErrorIs(t, err, filesystem.ErrOther)
}
