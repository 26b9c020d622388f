package worker

import (
	"bytes"
	"io"
)

// superblocks are where file systems write their name, and what mounts them. ext2
// and ext3 have the magic of ext4, whose driver mounts all three.
var superblocks = []struct {
	name   string
	offset int64
	magic  []byte
}{
	{"ext4", 1024 + 0x38, []byte{0x53, 0xef}},
	{"xfs", 0, []byte("XFSB")},
	{"btrfs", 64<<10 + 0x40, []byte("_BHRfS_M")},
}

// filesystemOf recognizes the file system on a volume, or returns "". What is to
// be mounted decides what mounts it: the class of the restored volume may make
// others than the one of the source did.
func filesystemOf(volume io.ReaderAt) string {
	for _, s := range superblocks {
		found := make([]byte, len(s.magic))
		if n, _ := volume.ReadAt(found, s.offset); n == len(found) && bytes.Equal(found, s.magic) {
			return s.name
		}
	}
	return ""
}
