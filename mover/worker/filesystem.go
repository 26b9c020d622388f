package worker

import (
	"bytes"
	"io"
)

// superblocks says where file systems have their magic, and what mounts them. ext2 and ext3
// have the magic of ext4, whose driver mounts all three.
var superblocks = []struct {
	name   string
	offset int64
	magic  []byte
}{
	{"ext4", 1024 + 0x38, []byte{0x53, 0xef}},
	{"xfs", 0, []byte("XFSB")},
	{"btrfs", 64<<10 + 0x40, []byte("_BHRfS_M")},
}

// filesystemOf recognizes the file system on a volume, or returns "". The restored volume
// must be mounted as what it holds, and the class of the restored volume may say otherwise
// than that of the source.
func filesystemOf(volume io.ReaderAt) string {
	for _, s := range superblocks {
		found := make([]byte, len(s.magic))
		if n, _ := volume.ReadAt(found, s.offset); n == len(found) && bytes.Equal(found, s.magic) {
			return s.name
		}
	}
	return ""
}
