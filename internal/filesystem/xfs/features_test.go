package xfs_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/internal/filesystem/xfs"
)

// empty makes an image with an empty file system.
func empty(t *testing.T, options ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 320<<20))
	command(t, "mkfs.xfs", append(append([]string{"-q"}, options...), image)...)
	return image
}

// feature sets bits of the incompatible features. Tools do not set those that they do not know.
func feature(t *testing.T, image string, bits uint32) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, 512)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	binary.BigEndian.PutUint32(b[216:], binary.BigEndian.Uint32(b[216:])|bits)
	clear(b[224:228])
	binary.LittleEndian.PutUint32(b[224:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func openError(t *testing.T, image string) error {
	t.Helper()
	f, err := os.Open(image)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // it was only read
	info, err := f.Stat()
	require.NoError(t, err)
	_, err = xfs.Open(f, info.Size())
	require.Error(t, err)
	return err
}

func TestRefused(t *testing.T) {
	t.Run("external log", func(t *testing.T) {
		log := filepath.Join(t.TempDir(), "log")
		require.NoError(t, os.WriteFile(log, nil, 0o600))
		require.NoError(t, os.Truncate(log, 100<<20))
		err := openError(t, empty(t, "-l", "logdev="+log+",size=64m"))
		require.ErrorIs(t, err, filesystem.ErrUnsupported)
		require.ErrorContains(t, err, "external log")
	})
	for bit, name := range map[uint32]string{1 << 8: "metadir", 1 << 9: "zoned", 1 << 30: "0x40000000"} {
		t.Run(name, func(t *testing.T) {
			image := empty(t)
			feature(t, image, bit)
			err := openError(t, image)
			require.ErrorIs(t, err, filesystem.ErrUnsupported)
			require.ErrorContains(t, err, name)
		})
	}
	t.Run("checksum", func(t *testing.T) {
		image := empty(t)
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{1}, 130)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.ErrorIs(t, openError(t, image), filesystem.ErrDamaged)
	})
	t.Run("cut short", func(t *testing.T) {
		image := empty(t)
		require.NoError(t, os.Truncate(image, 300<<20))
		require.ErrorIs(t, openError(t, image), filesystem.ErrDamaged)
	})
}

// TestNeedsRepair tells of a mark that makes the kernel refuse.
func TestNeedsRepair(t *testing.T) {
	image := empty(t)
	feature(t, image, 1<<4)
	require.Contains(t, open(t, image).Describe().Notes[0], "xfs_repair")
}

// TestParentPointers hides the parent pointers, which newer systems keep as extended attributes. This mkfs.xfs does not know them, so
// the bits are set by hand.
func TestParentPointers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	image := empty(t)
	feature(t, image, 1<<6|1<<7)
	root := filesystemtest.Mount(t, image, "rw")
	filesystemtest.MakeTree(t, root, tree(200))
	filesystemtest.Unmount(t, root)
	filesystemtest.RequireEqual(t, filesystemtest.Mount(t, image, "ro"), open(t, image), filesystemtest.Differ{})
}

// TestRealtime refuses the content of files on a realtime device, and nothing else.
func TestRealtime(t *testing.T) {
	dir := t.TempDir()
	proto(t, dir, false)
	image := empty(t, "-p", filepath.Join(dir, "proto"))
	id := filesystemtest.Lookup(t, open(t, image), "large")
	command(t, "xfs_db", "-x", "-c", fmt.Sprintf("inode %d", id), "-c", "write core.realtime 1", image)
	fsys := open(t, image)
	_, err := fsys.Stat(id)
	require.NoError(t, err)
	_, err = fsys.Open(id)
	require.ErrorIs(t, err, filesystem.ErrUnsupported)
	require.ErrorContains(t, err, fmt.Sprint(id))
	for _, err := range fsys.Extents(id) {
		require.ErrorIs(t, err, filesystem.ErrUnsupported)
	}
}
