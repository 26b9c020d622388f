package driver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/mount"
)

// probeSize is how much of a device must be zero if the device is new: 1 MiB.
const probeSize = 1 << 20

// mountFilesystem mounts the filesystem of a device. It makes one on a new device, and grows
// it if the device is larger.
func mountFilesystem(device loop.Device, target string, capability *csi.VolumeCapability) error {
	point, mounted, err := mount.At(target)
	if err != nil {
		return err
	}
	if mounted && point.Device == device.Number {
		return nil
	}
	fsType := filesystemOf(capability)
	if err := ensureFilesystem(device, fsType); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return fmt.Errorf("make staging directory: %w", err)
	}
	flags, options := mountOptions(capability.GetMount().GetMountFlags())
	if fsType == "xfs" {
		options = append(options, "nouuid") // a clone has its source's UUID
	}
	if readerOnly(capability) {
		flags |= unix.MS_RDONLY
	}
	readOnly := flags&unix.MS_RDONLY != 0
	// ext4 is grown before it is mounted, which needs no CAP_SYS_RESOURCE. XFS can be grown
	// only while it is mounted.
	if fsType == "ext4" && !readOnly {
		if err := growUnmountedExt4(device); err != nil {
			return err
		}
	}
	if err := mount.Mount(device.Path, target, fsType, flags, strings.Join(options, ",")); err != nil {
		return err
	}
	if fsType == "xfs" && !readOnly {
		return growMounted(device, target, fsType)
	}
	return nil
}

// mountFlags are the mount options that mount(2) takes as flags.
var mountFlags = map[string]uintptr{
	"defaults": 0, "rw": 0,
	"ro": unix.MS_RDONLY, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	"nodev": unix.MS_NODEV, "nosuid": unix.MS_NOSUID, "noexec": unix.MS_NOEXEC, "sync": unix.MS_SYNCHRONOUS,
}

// mountOptions divides the mount options of a capability into flags and options for the
// filesystem.
func mountOptions(all []string) (flags uintptr, options []string) {
	for _, option := range all {
		if flag, known := mountFlags[option]; known {
			flags |= flag
		} else {
			options = append(options, option)
		}
	}
	return flags, options
}

// ensureFilesystem makes a filesystem on a new device. It leaves a device with another
// filesystem, or with any other data, alone.
func ensureFilesystem(device loop.Device, fsType string) error {
	found, err := probe(device.Path)
	if err != nil {
		return err
	}
	switch found {
	case fsType:
		return nil
	case "":
		return makeFilesystem(device, fsType)
	default:
		return status.Errorf(codes.FailedPrecondition, "volume holds %s, not %s", found, fsType)
	}
}

// probe returns the filesystem on a device, or "" for a new device.
func probe(path string) (string, error) {
	device, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open device to probe: %w", err)
	}
	defer func() { _ = device.Close() }()
	head := make([]byte, probeSize)
	n, err := io.ReadFull(device, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("read head of %s: %w", path, err)
	}
	head = head[:n]
	// The superblock of ext2, 3 and 4 is at 1024 and has its magic at 56.
	const extMagic = 1024 + 56
	switch {
	case bytes.HasPrefix(head, []byte("XFSB")):
		return "xfs", nil
	case n >= extMagic+2 && head[extMagic] == 0x53 && head[extMagic+1] == 0xef:
		return "ext4", nil
	case len(bytes.Trim(head, "\x00")) == 0:
		return "", nil
	default:
		return "data of an unknown kind", nil
	}
}

func makeFilesystem(device loop.Device, fsType string) error {
	if fsType == "xfs" {
		return run("mkfs.xfs", "-q", "-K", device.Path)
	}
	return run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", device.Path)
}

// growMounted makes a mounted filesystem as large as its device. For ext4 the kernel wants
// CAP_SYS_RESOURCE. Without it, the next staging grows the filesystem.
func growMounted(device loop.Device, target, fsType string) error {
	if fsType == "xfs" {
		return run("xfs_growfs", "-d", target)
	}
	smaller, err := ext4IsSmaller(device)
	if err != nil || !smaller {
		return err
	}
	if err := run("resize2fs", device.Path); err != nil {
		return fmt.Errorf("grow mounted ext4, which needs CAP_SYS_RESOURCE: %w", err)
	}
	return nil
}

// growUnmountedExt4 makes an ext4 filesystem as large as its device.
func growUnmountedExt4(device loop.Device) error {
	smaller, err := ext4IsSmaller(device)
	if err != nil || !smaller {
		return err
	}
	// resize2fs insists on a check. -p replays the journal, and exits with 1 if it has
	// repaired something.
	err = run("e2fsck", "-f", "-p", device.Path)
	var exit *exec.ExitError
	repaired := errors.As(err, &exit) && exit.ExitCode() == 1
	if err != nil && !repaired {
		return err
	}
	return run("resize2fs", device.Path)
}

// ext4IsSmaller reports whether an ext4 filesystem leaves at least one of its blocks of the
// device unused.
func ext4IsSmaller(device loop.Device) (bool, error) {
	node, err := os.Open(device.Path)
	if err != nil {
		return false, fmt.Errorf("open device of ext4: %w", err)
	}
	defer func() { _ = node.Close() }()
	superblock := make([]byte, 1024)
	if _, err := node.ReadAt(superblock, 1024); err != nil {
		return false, fmt.Errorf("read superblock of ext4: %w", err)
	}
	deviceSize, err := node.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("size device of ext4: %w", err)
	}
	// s_blocks_count_lo, s_log_block_size and s_blocks_count_hi of struct ext4_super_block.
	blocks := int64(binary.LittleEndian.Uint32(superblock[0x4:])) | int64(binary.LittleEndian.Uint32(superblock[0x150:]))<<32
	blockSize := int64(1024) << binary.LittleEndian.Uint32(superblock[0x18:])
	return deviceSize/blockSize > blocks, nil
}

// run runs a filesystem tool. Its error has the output of the tool.
func run(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(string(output)))
	}
	return nil
}
