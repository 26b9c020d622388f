package ext

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// TestFastBounds: an inode has up to 64 KiB, and a fast commit that changes a million of them fits into 16 MiB.
func TestFastBounds(t *testing.T) {
	f := &FileSystem{
		super: &superblock{inodeSize: 64 << 10, inodes: 1 << 20},
		fast:  &fastCommits{inodes: map[uint32]*fastInode{}, bytes: maxFastInodes},
	}
	_, err := f.fastInode(11)
	require.ErrorIs(t, err, filesystem.ErrUnsupported)

	l := &log{dev: &device{blockSize: 64 << 10}, last: 1, fastEnd: 1 + maxFastBytes>>16 + 1}
	_, _, err = l.fastRecords(1)
	require.ErrorIs(t, err, filesystem.ErrUnsupported)
}
