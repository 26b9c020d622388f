package driver

import (
	"context"
	"strconv"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/volume"
)

type controllerServer struct {
	csi.UnimplementedControllerServer
	config Config
	store  *volume.Store
}

// ControllerGetCapabilities does not list GET_SNAPSHOT, although GetSnapshot works: the
// sanity suite fails on a capability that it does not know yet.
func (s *controllerServer) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	types := []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	}
	response := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range types {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return response, nil
}

func (s *controllerServer) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if err := require("name", request.GetName()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(request.GetVolumeCapabilities()...); err != nil {
		return nil, err
	}
	if err := s.checkTopology(request.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	spec, err := specOf(request)
	if err != nil {
		return nil, err
	}
	created, err := s.store.CreateVolume(spec, func(size int64) bool { return inRange(size, request.GetCapacityRange()) })
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: s.describe(created)}, nil
}

// specOf returns the volume that a request asks for.
func specOf(request *csi.CreateVolumeRequest) (volume.Spec, error) {
	spec := volume.Spec{Name: request.GetName()}
	var err error
	if spec.BlockSize, err = blockSizeOf(request.GetParameters()); err != nil {
		return spec, err
	}
	if spec.Size, err = sizeIn(request.GetCapacityRange(), spec.BlockSize); err != nil {
		return spec, err
	}
	switch source := request.GetVolumeContentSource(); {
	case source == nil && spec.Size == 0:
		spec.Size = defaultVolumeSize
	case source == nil:
	case source.GetSnapshot() != nil:
		spec.Source.SnapshotID = source.GetSnapshot().GetSnapshotId()
		err = require("snapshot_id of the content source", spec.Source.SnapshotID)
	case source.GetVolume() != nil:
		spec.Source.VolumeID = source.GetVolume().GetVolumeId()
		err = require("volume_id of the content source", spec.Source.VolumeID)
	default:
		err = status.Error(codes.InvalidArgument, "content source is neither a snapshot nor a volume")
	}
	return spec, err
}

// checkTopology returns an error for a volume that must not be on this driver's node.
func (s *controllerServer) checkTopology(requirement *csi.TopologyRequirement) error {
	if len(requirement.GetRequisite()) == 0 {
		return nil
	}
	for _, topology := range requirement.GetRequisite() {
		node, restricted := topology.GetSegments()[s.config.topologyKey()]
		if !restricted || node == s.config.NodeID {
			return nil
		}
	}
	return status.Errorf(codes.ResourceExhausted, "volumes are on node %s only, which the topology excludes", s.config.NodeID)
}

func (s *controllerServer) describe(v volume.Volume) *csi.Volume {
	described := &csi.Volume{
		VolumeId:           v.ID,
		CapacityBytes:      v.Size,
		AccessibleTopology: []*csi.Topology{s.config.topology()},
	}
	switch {
	case v.Source.SnapshotID != "":
		described.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.Source.SnapshotID},
		}}
	case v.Source.VolumeID != "":
		described.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.Source.VolumeID},
		}}
	}
	return described
}

func (s *controllerServer) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := require("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, s.store.DeleteVolume(request.GetVolumeId())
}

func (s *controllerServer) ControllerGetVolume(_ context.Context, request *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if err := require("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	found, err := s.store.Volume(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{Volume: s.describe(found), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

func (s *controllerServer) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := require("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(request.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	if _, err := s.store.Volume(request.GetVolumeId()); err != nil {
		return nil, err
	}
	for _, capability := range request.GetVolumeCapabilities() {
		if reason := unsupported(capability); reason != "" {
			return &csi.ValidateVolumeCapabilitiesResponse{Message: reason}, nil
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      request.GetVolumeContext(),
		VolumeCapabilities: request.GetVolumeCapabilities(),
		Parameters:         request.GetParameters(),
	}}, nil
}

func (s *controllerServer) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	available, err := s.store.Available()
	return &csi.GetCapacityResponse{AvailableCapacity: available}, err
}

func (s *controllerServer) ListVolumes(_ context.Context, request *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	volumes, next, err := page(s.store.Volumes(), request, func(v volume.Volume) int64 { return v.Sequence })
	if err != nil {
		return nil, err
	}
	response := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range volumes {
		response.Entries = append(response.Entries, &csi.ListVolumesResponse_Entry{Volume: s.describe(v)})
	}
	return response, nil
}

// paged is a request for a part of a list.
type paged interface {
	GetMaxEntries() int32
	GetStartingToken() string
}

// page returns the part of a list that a request asks for, and the token of the next part. A
// token is the sequence number of the last record, so records may come and go between two
// pages.
func page[R any](records []R, request paged, sequence func(R) int64) (part []R, next string, err error) {
	if request.GetMaxEntries() < 0 {
		return nil, "", status.Errorf(codes.InvalidArgument, "max_entries %d is negative", request.GetMaxEntries())
	}
	if token := request.GetStartingToken(); token != "" {
		last, err := strconv.ParseInt(token, 10, 64)
		if err != nil || last <= 0 {
			return nil, "", status.Errorf(codes.Aborted, "starting_token %q is none of this driver's", token)
		}
		for len(records) > 0 && sequence(records[0]) <= last {
			records = records[1:]
		}
	}
	limit := int(request.GetMaxEntries())
	if limit == 0 || limit >= len(records) {
		return records, "", nil
	}
	return records[:limit], strconv.FormatInt(sequence(records[limit-1]), 10), nil
}

func (s *controllerServer) ControllerExpandVolume(_ context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if err := require("volume_id", request.GetVolumeId()); err != nil {
		return nil, err
	}
	if request.GetCapacityRange() == nil {
		return nil, status.Error(codes.InvalidArgument, "capacity_range is missing")
	}
	existing, err := s.store.Volume(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	size, err := sizeIn(request.GetCapacityRange(), existing.BlockSize)
	if err != nil {
		return nil, err
	}
	if size > existing.Size {
		if existing, err = s.store.Resize(existing.ID, size); err != nil {
			return nil, err
		}
	}
	return &csi.ControllerExpandVolumeResponse{
		CapacityBytes:         existing.Size,
		NodeExpansionRequired: request.GetVolumeCapability().GetBlock() == nil,
	}, nil
}

func (s *controllerServer) CreateSnapshot(_ context.Context, request *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if err := require("name", request.GetName(), "source_volume_id", request.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	loaded, err := s.config.options()
	if err != nil {
		return nil, err
	}
	if _, exists := s.store.SnapshotNamed(request.GetName()); !exists {
		if loaded.CreateSnapshotError != "" {
			return nil, injected(loaded.CreateSnapshotError)
		}
		if err := checkSnapshotLimit(s.store, loaded.MaxSnapshotsPerVolume, request.GetSourceVolumeId()); err != nil {
			return nil, err
		}
	}
	taken, err := s.store.CreateSnapshot(request.GetName(), request.GetSourceVolumeId(), time.Duration(loaded.SnapshotDelay))
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: describeSnapshot(taken, loaded)}, nil
}

// checkSnapshotLimit returns ResourceExhausted if one of the volumes has as many snapshots as
// it may have. A limit of zero is no limit.
func checkSnapshotLimit(store *volume.Store, limit int, volumeIDs ...string) error {
	if limit == 0 {
		return nil
	}
	count := map[string]int{}
	for _, existing := range store.Snapshots() {
		count[existing.VolumeID]++
	}
	for _, id := range volumeIDs {
		if count[id] >= limit {
			return status.Errorf(codes.ResourceExhausted, "volume %s has %d snapshots, the maximum is %d", id, count[id], limit)
		}
	}
	return nil
}

func (s *controllerServer) DeleteSnapshot(_ context.Context, request *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if err := require("snapshot_id", request.GetSnapshotId()); err != nil {
		return nil, err
	}
	loaded, err := s.config.options()
	if err != nil {
		return nil, err
	}
	existing, err := s.store.Snapshot(request.GetSnapshotId())
	if err == nil && existing.GroupID != "" && loaded.RefuseMemberDelete {
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %s is part of group snapshot %s: call DeleteVolumeGroupSnapshot instead", existing.ID, existing.GroupID)
	}
	return &csi.DeleteSnapshotResponse{}, s.store.DeleteSnapshot(request.GetSnapshotId(), !loaded.RequireBaseSnapshotForDelta)
}

func (s *controllerServer) GetSnapshot(_ context.Context, request *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if err := require("snapshot_id", request.GetSnapshotId()); err != nil {
		return nil, err
	}
	loaded, err := s.config.options()
	if err != nil {
		return nil, err
	}
	found, err := s.store.Snapshot(request.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: describeSnapshot(found, loaded)}, nil
}

func (s *controllerServer) ListSnapshots(_ context.Context, request *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	loaded, err := s.config.options()
	if err != nil {
		return nil, err
	}
	var matching []volume.Snapshot
	for _, snapshot := range s.store.Snapshots() {
		matchesID := request.GetSnapshotId() == "" || request.GetSnapshotId() == snapshot.ID
		matchesVolume := request.GetSourceVolumeId() == "" || request.GetSourceVolumeId() == snapshot.VolumeID
		if matchesID && matchesVolume {
			matching = append(matching, snapshot)
		}
	}
	part, next, err := page(matching, request, func(snapshot volume.Snapshot) int64 { return snapshot.Sequence })
	if err != nil {
		return nil, err
	}
	response := &csi.ListSnapshotsResponse{NextToken: next}
	for _, snapshot := range part {
		response.Entries = append(response.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: describeSnapshot(snapshot, loaded)})
	}
	return response, nil
}
