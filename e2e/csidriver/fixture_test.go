package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/pool"
)

const (
	// testPoolSize is that of the pools of tests, which are sparse.
	testPoolSize = "8Gi"
	mib          = 1 << 20
)

// fixture is a running driver with a client. Its methods end the test when a call fails
// unexpectedly.
type fixture struct {
	*testing.T
	dir, stateDir, socket string
	stop                  func()

	controller csi.ControllerClient
	groups     csi.GroupControllerClient
	metadata   csi.SnapshotMetadataClient
	node       csi.NodeClient
}

// startDriver runs the driver over a state directory of its own.
func startDriver(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	f.start()
	return f
}

// newFixture makes the directories of a driver that does not run yet. The end of the test
// removes what it mounts and attaches.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the driver mounts and attaches loop devices, which needs root")
	}
	// A socket's path may have 107 bytes; t.TempDir is too long for that.
	dir, err := os.MkdirTemp("", "csidriver")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{
		T: t, dir: dir, stateDir: filepath.Join(dir, "state"), socket: filepath.Join(dir, "csi.sock"),
		stop: func() {},
	}
	t.Cleanup(func() {
		f.stop()
		if err := pool.Cleanup(f.stateDir); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove state: %v", err)
		}
	})
	return f
}

func (f *fixture) arguments() []string {
	return []string{
		"--endpoint", "unix://" + f.socket, "--driver-name", "test.csi.example.com", "--node-id", "node-1",
		"--state-dir", f.stateDir, "--pool-size", testPoolSize,
	}
}

// start runs the driver in this process until stop is called.
func (f *fixture) start() {
	f.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, f.arguments(), f.Output()) }()
	f.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			f.Errorf("driver ended with an error: %v", err)
		}
		f.stop = func() {}
	}
	f.connect()
}

// connect waits for the driver to listen and makes clients of its services.
func (f *fixture) connect() {
	f.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		probe, err := net.Dial("unix", f.socket)
		if err == nil {
			f.ok(probe.Close())
			break
		}
		if time.Now().After(deadline) {
			f.Fatalf("driver does not listen after 20 s: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	connection, err := grpc.NewClient("unix://"+f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.ok(err)
	f.Cleanup(func() { _ = connection.Close() })
	f.controller, f.groups = csi.NewControllerClient(connection), csi.NewGroupControllerClient(connection)
	f.metadata, f.node = csi.NewSnapshotMetadataClient(connection), csi.NewNodeClient(connection)
}

// ok ends the test when a call failed.
func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// must ends the test when a call failed, and returns what it returned otherwise.
func must[R any](f *fixture, response R, err error) R {
	f.Helper()
	f.ok(err)
	return response
}

// wantCode fails the test unless the error has that code.
func (f *fixture) wantCode(err error, want codes.Code) {
	f.Helper()
	if status.Code(err) != want {
		f.Errorf("got %v, want code %s", err, want)
	}
}

// options writes the options file.
func (f *fixture) options(content string) {
	f.Helper()
	if err := os.WriteFile(filepath.Join(f.stateDir, "options.json"), []byte(content), 0o600); err != nil {
		f.Fatal(err)
	}
}

var writer = &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}

func blockCapability() *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: writer, AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}
}

func mountCapability(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{AccessMode: writer, AccessType: &csi.VolumeCapability_Mount{
		Mount: &csi.VolumeCapability_MountVolume{FsType: fsType},
	}}
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

// create makes a volume. A size of zero is that of the source.
func (f *fixture) create(name string, size int64, capability *csi.VolumeCapability, source *csi.VolumeContentSource) *csi.Volume {
	f.Helper()
	response, err := f.controller.CreateVolume(f.Context(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{capability}, VolumeContentSource: source,
	})
	return must(f, response, err).GetVolume()
}

// paths are where a volume is staged and published.
func (f *fixture) paths(volumeID string) (staging, target string) {
	return filepath.Join(f.dir, "staging", volumeID), filepath.Join(f.dir, "target", volumeID)
}

// publish stages and publishes a volume and returns where; unpublish ends that.
func (f *fixture) publish(volumeID string, capability *csi.VolumeCapability, readOnly bool) string {
	f.Helper()
	staging, target := f.paths(volumeID)
	_, err := f.node.NodeStageVolume(f.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: volumeID, StagingTargetPath: staging, VolumeCapability: capability,
	})
	f.ok(err)
	_, err = f.node.NodePublishVolume(f.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: volumeID, StagingTargetPath: staging, TargetPath: target, VolumeCapability: capability, Readonly: readOnly,
	})
	f.ok(err)
	return target
}

func (f *fixture) unpublish(volumeID string) {
	f.Helper()
	staging, target := f.paths(volumeID)
	_, err := f.node.NodeUnpublishVolume(f.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: volumeID, TargetPath: target})
	f.ok(err)
	_, err = f.node.NodeUnstageVolume(f.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: volumeID, StagingTargetPath: staging})
	f.ok(err)
}

func (f *fixture) snapshot(name, volumeID string) *csi.Snapshot {
	f.Helper()
	response, err := f.controller.CreateSnapshot(f.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volumeID})
	return must(f, response, err).GetSnapshot()
}

func (f *fixture) deleteSnapshot(id string) {
	f.Helper()
	_, err := f.controller.DeleteSnapshot(f.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id})
	f.ok(err)
}

// answer is everything that a metadata stream sent before it ended.
type answer struct {
	types      []csi.BlockMetadataType
	capacities []int64
	messages   [][]*csi.BlockMetadata
}

func (a answer) blocks() []*csi.BlockMetadata {
	var all []*csi.BlockMetadata
	for _, message := range a.messages {
		all = append(all, message...)
	}
	return all
}

// response is what the responses of both metadata calls share.
type response interface {
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}

// drain reads a stream to its end. The error is nil if the stream ended regularly.
func drain[R response](receive func() (R, error)) (answer, error) {
	var all answer
	for {
		message, err := receive()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all.types = append(all.types, message.GetBlockMetadataType())
		all.capacities = append(all.capacities, message.GetVolumeCapacityBytes())
		all.messages = append(all.messages, message.GetBlockMetadata())
	}
}

func (f *fixture) allocated(request *csi.GetMetadataAllocatedRequest) (answer, error) {
	f.Helper()
	stream, err := f.metadata.GetMetadataAllocated(f.Context(), request)
	return drain(must(f, stream, err).Recv)
}

func (f *fixture) delta(request *csi.GetMetadataDeltaRequest) (answer, error) {
	f.Helper()
	stream, err := f.metadata.GetMetadataDelta(f.Context(), request)
	return drain(must(f, stream, err).Recv)
}
