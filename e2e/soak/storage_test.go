package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
)

const (
	driverName = "soak.test.blockmover.io"
	// poolSize is sparse.
	poolSize = "16Gi"

	startTimeout = 20 * time.Second
	stopTimeout  = 20 * time.Second
)

// storage is a test CSI driver in a process of its own. Its methods end the test when a call
// fails.
type storage struct {
	*testing.T
	ctx context.Context
	dir string

	identity   csi.IdentityClient
	controller csi.ControllerClient
	groups     csi.GroupControllerClient
	node       csi.NodeClient
	metadata   csi.SnapshotMetadataClient
}

// startStorage starts the driver in a directory. The end of the test removes what it mounts
// and attaches.
func startStorage(ctx context.Context, t *testing.T, binary, dir string) *storage {
	t.Helper()
	s := &storage{T: t, ctx: ctx, dir: dir}
	log, err := os.Create(filepath.Join(dir, "driver.log"))
	require.NoError(t, err)
	socket := filepath.Join(dir, "csi.sock")
	driver := exec.Command(binary, "--endpoint", "unix://"+socket, "--driver-name", driverName,
		"--node-id", "node", "--state-dir", s.stateDir(), "--pool-size", poolSize)
	driver.Stdout, driver.Stderr = log, log
	// Ctrl-C is only for the test, which still needs the driver to clean up.
	driver.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, driver.Start())
	t.Cleanup(func() {
		s.showLog(log.Name())
		if err := errors.Join(stop(driver), log.Close(), cleanUp(binary, s.stateDir())); err != nil {
			t.Errorf("stop driver: %v", err)
		}
	})
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = connection.Close() })
	s.identity, s.controller = csi.NewIdentityClient(connection), csi.NewControllerClient(connection)
	s.groups = csi.NewGroupControllerClient(connection)
	s.node, s.metadata = csi.NewNodeClient(connection), csi.NewSnapshotMetadataClient(connection)
	ready, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	_, err = s.identity.Probe(ready, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err, "driver does not answer")
	return s
}

func (s *storage) stateDir() string { return filepath.Join(s.dir, "driver") }

// showLog logs the end of the driver's log if the test has failed.
func (s *storage) showLog(path string) {
	const end = 4 << 10
	if text, err := os.ReadFile(path); err == nil && s.Failed() {
		s.Logf("the end of the driver's log:\n%s", text[max(0, len(text)-end):])
	}
}

func stop(process *exec.Cmd) error {
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	force := time.AfterFunc(stopTimeout, func() { _ = process.Process.Kill() })
	defer force.Stop()
	return process.Wait()
}

// cleanUp unmounts and detaches what a driver has left.
func cleanUp(binary, stateDir string) error {
	output, err := exec.Command(binary, "cleanup", "--state-dir", stateDir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("clean up driver: %w: %s", err, output)
	}
	return nil
}

// sweep removes what killed soaks have left in a directory. The directories have the number
// of a process that is gone in their names.
func sweep(t *testing.T, binary, parent string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	require.NoError(t, err)
	for _, dir := range found {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), dirPrefix+"%d-", &pid); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err == nil {
			continue
		}
		t.Logf("removing %s of a soak that was killed", dir)
		require.NoError(t, cleanUp(binary, filepath.Join(dir, "driver")))
		require.NoError(t, os.RemoveAll(dir))
	}
}

func blockCapability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

// create makes a volume with a logical block size. The clone of a snapshot is as large as the
// snapshot. create returns the handle.
func (s *storage) create(name string, size, blockSize int64, snapshot string) string {
	s.Helper()
	request := &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{blockCapability()},
		Parameters:         map[string]string{"blockSize": strconv.FormatInt(blockSize, 10)},
	}
	if snapshot != "" {
		request.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
		}}
	}
	response, err := s.controller.CreateVolume(s.ctx, request)
	require.NoError(s, err)
	require.True(s, size == 0 || response.GetVolume().GetCapacityBytes() == size, "the driver rounds sizes of whole blocks")
	return response.GetVolume().GetVolumeId()
}

func (s *storage) deleteVolume(id string) {
	s.Helper()
	_, err := s.controller.DeleteVolume(s.ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	require.NoError(s, err)
}

// device is the path at which a volume is published.
func (s *storage) device(id string) string { return filepath.Join(s.dir, "devices", id) }

func (s *storage) staging(id string) string { return filepath.Join(s.dir, "staging", id) }

// publish makes a volume appear as a device and returns its path.
func (s *storage) publish(id string, readOnly bool) string {
	s.Helper()
	_, err := s.node.NodeStageVolume(s.ctx, &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: blockCapability(),
	})
	require.NoError(s, err)
	_, err = s.node.NodePublishVolume(s.ctx, &csi.NodePublishVolumeRequest{
		VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: s.device(id), VolumeCapability: blockCapability(), Readonly: readOnly,
	})
	require.NoError(s, err)
	return s.device(id)
}

func (s *storage) unpublish(id string) {
	s.Helper()
	_, err := s.node.NodeUnpublishVolume(s.ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: s.device(id)})
	require.NoError(s, err)
	_, err = s.node.NodeUnstageVolume(s.ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id)})
	require.NoError(s, err)
}

// grow expands a volume that is published.
func (s *storage) grow(id string, size int64) {
	s.Helper()
	capacity := &csi.CapacityRange{RequiredBytes: size}
	grown, err := s.controller.ControllerExpandVolume(s.ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: id, CapacityRange: capacity, VolumeCapability: blockCapability(),
	})
	require.NoError(s, err)
	require.Equal(s, size, grown.GetCapacityBytes())
	_, err = s.node.NodeExpandVolume(s.ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: s.device(id), CapacityRange: capacity})
	require.NoError(s, err)
}

// size returns the size of a volume in the storage. Like every call, it lets the driver
// shrink what it is told to.
func (s *storage) size(id string) int64 {
	s.Helper()
	response, err := s.controller.ControllerGetVolume(s.ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
	require.NoError(s, err)
	return response.GetVolume().GetCapacityBytes()
}

func (s *storage) snapshot(name, volume string) *csi.Snapshot {
	s.Helper()
	response, err := s.controller.CreateSnapshot(s.ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
	require.NoError(s, err)
	require.True(s, response.GetSnapshot().GetReadyToUse())
	return response.GetSnapshot()
}

func (s *storage) deleteSnapshot(id string) {
	s.Helper()
	_, err := s.controller.DeleteSnapshot(s.ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
	require.NoError(s, err)
}

// requireMember checks that a snapshot of a group cannot be deleted alone.
func (s *storage) requireMember(id string) {
	s.Helper()
	_, err := s.controller.DeleteSnapshot(s.ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
	require.Equal(s, codes.InvalidArgument, status.Code(err), "%v", err)
}

// groupSnapshot takes snapshots of volumes at one instant. It returns the handle of the group,
// and the snapshots by the handles of their volumes.
func (s *storage) groupSnapshot(name string, volumes []string) (string, map[string]*csi.Snapshot) {
	s.Helper()
	response, err := s.groups.CreateVolumeGroupSnapshot(s.ctx, &csi.CreateVolumeGroupSnapshotRequest{Name: name, SourceVolumeIds: volumes})
	require.NoError(s, err)
	members := map[string]*csi.Snapshot{}
	for _, snapshot := range response.GetGroupSnapshot().GetSnapshots() {
		require.True(s, snapshot.GetReadyToUse())
		members[snapshot.GetSourceVolumeId()] = snapshot
	}
	require.Len(s, members, len(volumes))
	return response.GetGroupSnapshot().GetGroupSnapshotId(), members
}

func (s *storage) deleteGroup(id string, members []string) {
	s.Helper()
	_, err := s.groups.DeleteVolumeGroupSnapshot(s.ctx, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: id, SnapshotIds: members})
	require.NoError(s, err)
}

// left returns the handles of all volumes and snapshots, in ascending order.
func (s *storage) left() (volumes, snapshots []string) {
	s.Helper()
	listed, err := s.controller.ListVolumes(s.ctx, &csi.ListVolumesRequest{})
	require.NoError(s, err)
	for _, entry := range listed.GetEntries() {
		volumes = append(volumes, entry.GetVolume().GetVolumeId())
	}
	taken, err := s.controller.ListSnapshots(s.ctx, &csi.ListSnapshotsRequest{})
	require.NoError(s, err)
	for _, entry := range taken.GetEntries() {
		snapshots = append(snapshots, entry.GetSnapshot().GetSnapshotId())
	}
	slices.Sort(volumes)
	slices.Sort(snapshots)
	return volumes, snapshots
}

// source asks the driver's own SnapshotMetadata service, as the sidecar does in a cluster.
type source struct {
	client     csi.SnapshotMetadataClient
	target     string
	maxResults int32
}

var _ cbt.Source = source{}

// Allocated implements cbt.Source.
func (s source) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.client.GetMetadataAllocated(ctx, &csi.GetMetadataAllocatedRequest{
		SnapshotId: s.target, StartingOffset: from, MaxResults: s.maxResults,
	})
	if err != nil {
		return classify(err)
	}
	return receive(stream.Recv, record)
}

// Changed implements cbt.Source.
func (s source) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.client.GetMetadataDelta(ctx, &csi.GetMetadataDeltaRequest{
		BaseSnapshotId: string(base), TargetSnapshotId: s.target, StartingOffset: from, MaxResults: s.maxResults,
	})
	if err != nil {
		return classify(err)
	}
	return receive(stream.Recv, record)
}

// message is what the responses of both calls share.
type message interface {
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}

func receive[M message](next func() (M, error), record func(cbt.Batch) error) error {
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return classify(err)
		}
		b := cbt.Batch{
			Capacity: m.GetVolumeCapacityBytes(),
			Fixed:    m.GetBlockMetadataType() == csi.BlockMetadataType_FIXED_LENGTH,
		}
		for _, e := range m.GetBlockMetadata() {
			b.Blocks = append(b.Blocks, block.Extent{Offset: e.GetByteOffset(), Length: e.GetSizeBytes()})
		}
		if err := record(b); err != nil {
			return err
		}
	}
}

func classify(err error) error {
	if status.Code(err) == codes.Unavailable {
		return fmt.Errorf("%w: %w", cbt.ErrInterrupted, err)
	}
	return err
}
