package driver

import (
	"slices"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	defaultFilesystem = "ext4"
	// defaultVolumeSize is for a caller that asks for no size: 1 GiB.
	defaultVolumeSize = 1 << 30
	defaultBlockSize  = 512
	// blockSizeParameter of a StorageClass is the logical block size of its devices.
	blockSizeParameter = "blockSize"
	// reservedParameters are added by the provisioner.
	reservedParameters = "csi.storage.k8s.io/"
)

var blockSizes = []int64{512, 1024, 2048, 4096}

// checkCapabilities returns InvalidArgument if there is no capability, or one that the driver
// does not have.
func checkCapabilities(capabilities ...*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	for _, capability := range capabilities {
		if reason := unsupported(capability); reason != "" {
			return status.Error(codes.InvalidArgument, reason)
		}
	}
	return nil
}

// unsupported says why the driver cannot serve a capability. It is empty if the driver can.
// With one node all access modes are equal.
func unsupported(capability *csi.VolumeCapability) string {
	switch {
	case capability == nil:
		return "volume capability is missing"
	case capability.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_UNKNOWN:
		return "access mode is missing"
	case capability.GetBlock() != nil:
		return ""
	case capability.GetMount() == nil:
		return "access type is missing"
	case !slices.Contains([]string{"ext4", "xfs"}, filesystemOf(capability)):
		return "filesystem " + filesystemOf(capability) + " is neither ext4 nor xfs"
	default:
		return ""
	}
}

// filesystemOf returns the filesystem that a mount capability asks for.
func filesystemOf(capability *csi.VolumeCapability) string {
	if name := capability.GetMount().GetFsType(); name != "" {
		return name
	}
	return defaultFilesystem
}

// readerOnly reports whether nobody may write with this capability.
func readerOnly(capability *csi.VolumeCapability) bool {
	switch capability.GetAccessMode().GetMode() {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		return true
	default:
		return false
	}
}

// blockSizeOf reads the parameters of a StorageClass.
func blockSizeOf(parameters map[string]string) (int64, error) {
	blockSize := int64(defaultBlockSize)
	for name, value := range parameters {
		switch {
		case strings.HasPrefix(name, reservedParameters):
		case name == blockSizeParameter:
			parsed, err := strconv.ParseInt(value, 10, 64)
			if err != nil || !slices.Contains(blockSizes, parsed) {
				return 0, status.Errorf(codes.InvalidArgument, "parameter %s %q is none of %v", name, value, blockSizes)
			}
			blockSize = parsed
		default:
			return 0, status.Errorf(codes.InvalidArgument, "parameter %q is unknown", name)
		}
	}
	return blockSize, nil
}

// sizeIn returns the smallest size in a capacity range that is a multiple of the block size.
// It is zero if the range demands none.
func sizeIn(capacity *csi.CapacityRange, blockSize int64) (int64, error) {
	required, limit := capacity.GetRequiredBytes(), capacity.GetLimitBytes()
	if required < 0 || limit < 0 {
		return 0, status.Errorf(codes.OutOfRange, "capacity of %d to %d bytes is negative", required, limit)
	}
	size := (required + blockSize - 1) / blockSize * blockSize
	if size == 0 && limit > 0 {
		size = limit / blockSize * blockSize
	}
	if size < required || limit > 0 && (size > limit || size == 0) {
		return 0, status.Errorf(codes.OutOfRange, "no multiple of the block size %d is in the capacity of %d to %d bytes", blockSize, required, limit)
	}
	return size, nil
}

// inRange reports whether a size is in a capacity range.
func inRange(size int64, capacity *csi.CapacityRange) bool {
	return size >= capacity.GetRequiredBytes() && (capacity.GetLimitBytes() == 0 || size <= capacity.GetLimitBytes())
}
