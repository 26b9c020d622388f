package ext_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/ext"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// TestMain keeps the images in memory if there is room: the trees are synced hundreds of times.
func TestMain(m *testing.M) {
	const memory = "/dev/shm"
	var stat unix.Statfs_t
	if unix.Statfs(memory, &stat) == nil && int64(stat.Bavail)*stat.Bsize > 2<<30 {
		if err := os.Setenv("TMPDIR", memory); err != nil {
			panic(err)
		}
	}
	os.Exit(filesystemtest.Run(m))
}

// openImage opens an image that is there as long as the test.
func openImage(t testing.TB, image string) *ext.FileSystem {
	t.Helper()
	f, err := os.Open(image)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	info, err := f.Stat()
	require.NoError(t, err)
	fsys, err := ext.Open(f, info.Size())
	require.NoError(t, err)
	return fsys
}

// command runs a tool and returns what it writes.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

// layouts are the kinds of file system that the kernel here mounts.
var layouts = []struct {
	name, kind string
	mkfs       []string
	tree       filesystemtest.Tree
}{
	{"ext2 1k", "ext2", []string{"mke2fs", "-q", "-t", "ext2", "-b", "1024"}, filesystemtest.Tree{LargeAttribute: 700}},
	{
		"ext2 without filetype, inodes of 128 bytes", "ext2",
		[]string{"mke2fs", "-q", "-t", "ext2", "-b", "2048", "-O", "^filetype,^dir_index", "-I", "128"},
		filesystemtest.Tree{LargeAttribute: 1000},
	},
	{"ext2 4k", "ext2", []string{"mke2fs", "-q", "-t", "ext2", "-b", "4096"}, filesystemtest.Tree{LargeAttribute: 3000}},
	{"ext3", "ext3", []string{"mke2fs", "-q", "-t", "ext3", "-b", "1024"}, filesystemtest.Tree{LargeAttribute: 700}},
	{"ext4", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-L", "a label", "-b", "4096"}, filesystemtest.Tree{LargeAttribute: 3000, Sparse: 1 << 28}},
	{"ext4 1k", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024"}, filesystemtest.Tree{LargeAttribute: 700, Sparse: 1 << 28}},
	{"ext4 2k, inodes of 512 bytes", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "2048", "-I", "512"}, filesystemtest.Tree{LargeAttribute: 1500}},
	{"ext4 inodes of 128 bytes", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-I", "128"}, filesystemtest.Tree{LargeAttribute: 1500}},
	{"ext4 meta_bg", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "1024"}, filesystemtest.Tree{LargeAttribute: 700}},
	{
		"ext4 32 bit meta_bg sparse_super2", "ext4",
		[]string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^64bit,meta_bg,sparse_super2,^resize_inode", "-g", "1024"},
		filesystemtest.Tree{LargeAttribute: 700},
	},
	{"ext4 uninit_bg", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg,64bit"}, filesystemtest.Tree{LargeAttribute: 700}},
	{"ext4 uninit_bg 32 bit", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg,^64bit,^flex_bg"}, filesystemtest.Tree{LargeAttribute: 700}},
	{"ext4 without checksums", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg"}, filesystemtest.Tree{LargeAttribute: 700}},
	{"ext4 bigalloc", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "4096"}, filesystemtest.Tree{LargeAttribute: 700, Sparse: 1 << 28}},
	{"ext4 bigalloc 4k", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "bigalloc,sparse_super2", "-C", "16384"}, filesystemtest.Tree{LargeAttribute: 3000, Sparse: 1 << 28}},
	{"ext4 inline_data", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "inline_data"}, filesystemtest.Tree{LargeAttribute: 3000}},
	{"ext4 inline_data, inodes of 1 KiB", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "inline_data", "-I", "1024"}, filesystemtest.Tree{LargeAttribute: 3000}},
	{"ext4 ea_inode", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "ea_inode"}, filesystemtest.Tree{LargeAttribute: 60000}},
	{
		"ext4 everything", "ext4",
		[]string{
			"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-I", "256", "-O",
			"ea_inode,inline_data,large_dir,metadata_csum_seed,orphan_file,stable_inodes,fast_commit,encrypt,verity,huge_file,dir_nlink,extra_isize",
		},
		filesystemtest.Tree{LargeAttribute: 60000},
	},
	{"ext4 no extents", "ext4", []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^extent,^64bit"}, filesystemtest.Tree{LargeAttribute: 700}},
}

// TestLayouts compares with what the kernel shows.
func TestLayouts(t *testing.T) {
	for i, layout := range layouts {
		t.Run(layout.name, func(t *testing.T) {
			t.Parallel()
			tree := layout.tree
			tree.Files, tree.Posix, tree.Attributes, tree.ACLs, tree.Seed = 200, true, true, true, uint64(i)
			image := filesystemtest.Image(t, 64<<20, layout.mkfs, func(root string) {
				filesystemtest.MakeTree(t, root, tree)
			})
			command(t, "e2fsck", "-fn", image)
			if strings.Contains(layout.name, "everything") {
				// A kernel without quota does not write to it, and mmp makes it wait.
				command(t, "tune2fs", "-O", "project,quota,mmp", image)
			}
			fsys := openImage(t, image)
			require.Equal(t, layout.kind, fsys.Describe().Kind)
			require.NotEmpty(t, fsys.Describe().UUID)
			require.Empty(t, fsys.Describe().Notes)
			root := filesystemtest.Mount(t, image, "ro")
			filesystemtest.RequireEqual(t, root, fsys, filesystemtest.Differ{})
			filesystemtest.CheckErrors(t, fsys)
		})
	}
}

func TestOther(t *testing.T) {
	empty := make([]byte, 1<<20)
	for _, size := range []int64{0, 100, 2047, 1 << 20} {
		_, err := ext.Open(strings.NewReader(string(empty[:size])), size)
		require.ErrorIs(t, err, filesystem.ErrOther)
	}
}

var (
	_ io.ReaderAt = (*os.File)(nil)
	_             = filepath.Join
)
