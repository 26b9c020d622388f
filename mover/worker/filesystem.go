package worker

import (
	"bytes"
	"fmt"
	"io"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
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

// checkFilesystem fails if a device does not have the file system that its PersistentVolume
// names: some drivers make a Block volume of a Filesystem snapshot, and fill it with something
// else. A volume that nobody has mounted yet is zero. An encrypted one shows nothing.
func checkFilesystem(dev device.Reader, want string) error {
	switch want {
	case "ext2", "ext3", "ext4", "xfs", "btrfs":
	default:
		return nil
	}
	start := device.NewBuffer(int(min(filesystemStart, dev.Size())))
	if _, err := dev.ReadAt(start, 0); err != nil {
		return fmt.Errorf("read the start of a volume with file system %s: %w; "+
			"the driver may not be able to give a Block volume of a Filesystem snapshot", want, err)
	}
	if block.IsZero(start) || bytes.HasPrefix(start, []byte("LUKS\xba\xbe")) || filesystemOf(bytes.NewReader(start)) != "" {
		return nil
	}
	return fault.Mark(fmt.Errorf("the device has no file system, and the PersistentVolume says that it has %s: "+
		"the driver does not give a Block volume of a Filesystem snapshot", want))
}

// filesystemStart has all superblocks.
const filesystemStart = 128 << 10
