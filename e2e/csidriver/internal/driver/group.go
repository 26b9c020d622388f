package driver

import (
	"context"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/options"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/volume"
)

type groupServer struct {
	csi.UnimplementedGroupControllerServer
	config Config
	store  *volume.Store
}

func (s *groupServer) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

func (s *groupServer) CreateVolumeGroupSnapshot(_ context.Context, request *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if err := require("name", request.GetName()); err != nil {
		return nil, err
	}
	if len(request.GetSourceVolumeIds()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "source_volume_ids are missing")
	}
	loaded, err := s.config.options()
	if err != nil {
		return nil, err
	}
	if !s.store.GroupNamed(request.GetName()) {
		if loaded.GroupSnapshotError != "" {
			return nil, injected(loaded.GroupSnapshotError)
		}
		if err := checkSnapshotLimit(s.store, loaded.MaxSnapshotsPerVolume, request.GetSourceVolumeIds()...); err != nil {
			return nil, err
		}
	}
	group, err := s.store.CreateGroup(request.GetName(), request.GetSourceVolumeIds(), time.Duration(loaded.SnapshotDelay))
	if err != nil {
		return nil, err
	}
	s.config.Log.Info("group snapshot", "group", group.ID, "volumes", group.VolumeIDs, "snapshots", group.SnapshotIDs)
	described, err := s.describe(group.ID, loaded)
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: described}, err
}

func (s *groupServer) GetVolumeGroupSnapshot(_ context.Context, request *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	if err := require("group_snapshot_id", request.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	loaded, err := s.config.options()
	if err != nil {
		return nil, err
	}
	group, _, err := s.store.Group(request.GetGroupSnapshotId())
	if err != nil {
		return nil, err
	}
	if err := group.CheckMembers(request.GetSnapshotIds()); err != nil {
		return nil, err
	}
	described, err := s.describe(group.ID, loaded)
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: described}, err
}

func (s *groupServer) DeleteVolumeGroupSnapshot(_ context.Context, request *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	if err := require("group_snapshot_id", request.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	loaded, err := s.config.options()
	if err != nil {
		return nil, err
	}
	if group, _, err := s.store.Group(request.GetGroupSnapshotId()); err == nil {
		if err := group.CheckMembers(request.GetSnapshotIds()); err != nil {
			return nil, err
		}
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, s.store.DeleteGroup(request.GetGroupSnapshotId(), !loaded.RequireBaseSnapshotForDelta)
}

// describe returns a group and those of its members that still exist.
func (s *groupServer) describe(groupID string, loaded options.Options) (*csi.VolumeGroupSnapshot, error) {
	group, members, err := s.store.Group(groupID)
	if err != nil {
		return nil, err
	}
	described := &csi.VolumeGroupSnapshot{
		GroupSnapshotId: group.ID,
		CreationTime:    timestamppb.New(group.Created),
		ReadyToUse:      true,
	}
	for _, member := range members {
		snapshot := describeSnapshot(member, loaded)
		described.Snapshots = append(described.Snapshots, snapshot)
		described.ReadyToUse = described.ReadyToUse && snapshot.GetReadyToUse()
	}
	return described, nil
}

func describeSnapshot(snapshot volume.Snapshot, loaded options.Options) *csi.Snapshot {
	described := &csi.Snapshot{
		SnapshotId:      snapshot.ID,
		SourceVolumeId:  snapshot.VolumeID,
		SizeBytes:       snapshot.Size,
		CreationTime:    timestamppb.New(snapshot.Created),
		ReadyToUse:      snapshot.Ready(),
		GroupSnapshotId: snapshot.GroupID,
	}
	if loaded.OmitRestoreSize {
		described.SizeBytes = 0
	}
	return described
}
