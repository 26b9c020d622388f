package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/mount"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/volume"
)

// detachTimeout is how long a volume may be held open after it was unpublished.
const detachTimeout = 5 * time.Second

// nodeServer gives volumes to the node: as a loop device for Block, and mounted
// from one for Filesystem. It remembers nothing; what is attached and mounted
// is asked of the kernel.
//
// A volume has up to two loop devices, one of them read-only. Their caches are
// apart: what is written through the one may not be seen through the other.
type nodeServer struct {
	csi.UnimplementedNodeServer
	config Config
	store  *volume.Store

	// mu makes attaching and mounting one thing at a time.
	mu sync.Mutex
}

func (s *nodeServer) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: s.config.NodeID, AccessibleTopology: s.config.topology()}, nil
}

func (s *nodeServer) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	types := []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	}
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range types {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return response, nil
}

func (s *nodeServer) NodeStageVolume(_ context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	staging := request.GetStagingTargetPath()
	if err := require("volume_id", request.GetVolumeId(), "staging_target_path", staging); err != nil {
		return nil, err
	}
	capability := request.GetVolumeCapability()
	if err := checkCapabilities(capability); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	staged, err := s.store.Volume(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	// A filesystem is mounted from a writable device also for readers: its
	// journal may have to be replayed.
	device, err := s.attach(staged, capability.GetBlock() != nil && readerOnly(capability))
	if err != nil {
		return nil, err
	}
	if capability.GetBlock() == nil {
		err = mountFilesystem(device, staging, capability)
	}
	return &csi.NodeStageVolumeResponse{}, err
}

// attach returns the loop device of a volume in the given mode.
func (s *nodeServer) attach(v volume.Volume, readOnly bool) (loop.Device, error) {
	path := s.store.VolumePath(v.ID)
	device, found, err := loop.Find(path, readOnly)
	if err != nil || found {
		return device, err
	}
	return loop.Attach(path, loop.Config{BlockSize: uint32(v.BlockSize), ReadOnly: readOnly})
}

func (s *nodeServer) NodeUnstageVolume(_ context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	staging := request.GetStagingTargetPath()
	if err := require("volume_id", request.GetVolumeId(), "staging_target_path", staging); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := mount.Unmount(staging); err != nil {
		return nil, err
	}
	devices, err := s.devices(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		if err := device.Detach(); err != nil {
			return nil, err
		}
		if err := device.AwaitDetached(detachTimeout); err != nil {
			return nil, err
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// devices returns the loop devices of a volume; a volume that does not exist has none.
func (s *nodeServer) devices(id string) ([]loop.Device, error) {
	existing, err := s.store.Volume(id)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return loop.Of(s.store.VolumePath(existing.ID))
}

func (s *nodeServer) NodePublishVolume(_ context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	target := request.GetTargetPath()
	if err := require("volume_id", request.GetVolumeId(), "target_path", target); err != nil {
		return nil, err
	}
	capability := request.GetVolumeCapability()
	if err := checkCapabilities(capability); err != nil {
		return nil, err
	}
	if err := require("staging_target_path", request.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	published, err := s.store.Volume(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	readOnly := request.GetReadonly() || readerOnly(capability)
	if capability.GetBlock() != nil {
		err = s.publishBlock(published, target, readOnly)
	} else {
		err = publishFilesystem(request.GetStagingTargetPath(), target, readOnly)
	}
	return &csi.NodePublishVolumeResponse{}, err
}

// publishBlock binds the node of the volume's device to the target.
func (s *nodeServer) publishBlock(v volume.Volume, target string, readOnly bool) error {
	device, err := s.attach(v, readOnly)
	if err != nil {
		return err
	}
	if _, mounted, err := mount.At(target); err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("make parent of target: %w", err)
	}
	file, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create target: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("close target: %w", err)
	}
	return mount.Bind(device.Path, target, false)
}

// publishFilesystem binds the staged filesystem to the target.
func publishFilesystem(staging, target string, readOnly bool) error {
	if _, mounted, err := mount.At(target); err != nil || mounted {
		return err
	}
	if _, staged, err := mount.At(staging); err != nil {
		return err
	} else if !staged {
		return status.Errorf(codes.FailedPrecondition, "nothing is staged at %s", staging)
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return fmt.Errorf("make target: %w", err)
	}
	return mount.Bind(staging, target, readOnly)
}

func (s *nodeServer) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	target := request.GetTargetPath()
	if err := require("volume_id", request.GetVolumeId(), "target_path", target); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := mount.Unmount(target); err != nil {
		return nil, err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove target: %w", err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (s *nodeServer) NodeExpandVolume(_ context.Context, request *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if err := require("volume_id", request.GetVolumeId(), "volume_path", request.GetVolumePath()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	expanded, err := s.store.Volume(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	devices, err := s.devices(expanded.ID)
	if err != nil {
		return nil, err
	}
	point, mounted, err := mount.At(request.GetVolumePath())
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		if err := device.Reload(); err != nil {
			return nil, err
		}
		if mounted && point.Device == device.Number {
			if err := growMounted(device, point.Target, point.Type); err != nil {
				return nil, err
			}
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: expanded.Size}, nil
}

func (s *nodeServer) NodeGetVolumeStats(_ context.Context, request *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	path := request.GetVolumePath()
	if err := require("volume_id", request.GetVolumeId(), "volume_path", path); err != nil {
		return nil, err
	}
	measured, err := s.store.Volume(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	point, mounted, err := mount.At(path)
	if err != nil {
		return nil, err
	}
	if !mounted {
		return nil, status.Errorf(codes.NotFound, "volume %s is not at %s", measured.ID, path)
	}
	if point.Type == "devtmpfs" {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: measured.Size}}}, nil
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return nil, fmt.Errorf("stat filesystem at %s: %w", path, err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit:      csi.VolumeUsage_BYTES,
			Total:     int64(stat.Blocks) * stat.Bsize,
			Used:      int64(stat.Blocks-stat.Bfree) * stat.Bsize,
			Available: int64(stat.Bavail) * stat.Bsize,
		},
		{
			Unit:      csi.VolumeUsage_INODES,
			Total:     int64(stat.Files),
			Used:      int64(stat.Files - stat.Ffree),
			Available: int64(stat.Ffree),
		},
	}}, nil
}
