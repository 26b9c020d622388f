package xfs_test

import (
	"io"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/internal/filesystem/xfs"
)

// counted counts the reads of a device.
type counted struct {
	r            io.ReaderAt
	reads, bytes atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.r.ReadAt(p, off)
}

// TestLarge has 20,000 files on a device of 100 GiB. It takes minutes, so it runs if XFS_LARGE is set. Without, it has 200.
func TestLarge(t *testing.T) {
	files := tree(200)
	if os.Getenv("XFS_LARGE") != "" {
		files = tree(20000)
	}
	image := filesystemtest.Image(t, 100<<30, []string{"mkfs.xfs", "-q"}, func(root string) { filesystemtest.MakeTree(t, root, files) })
	f, err := os.Open(image)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // it was only read
	device := &counted{r: f}
	fsys, err := xfs.Open(device, 100<<30)
	require.NoError(t, err)
	for _, err := range fsys.ReadDir(fsys.Root()) {
		require.NoError(t, err)
	}
	t.Logf("first listing: %d reads, %d KiB", device.reads.Load(), device.bytes.Load()>>10)
	require.LessOrEqual(t, device.reads.Load(), int64(64))

	at := time.Now() //nolint:forbidigo // it is measured
	require.NoError(t, filesystemtest.Walk(fsys, 1e6))
	t.Logf("walk: %v, %d reads, %d KiB", time.Since(at), device.reads.Load(), device.bytes.Load()>>10) //nolint:forbidigo // it is measured
	filesystemtest.RequireEqual(t, filesystemtest.Mount(t, image, "ro"), fsys, filesystemtest.Differ{})
}
