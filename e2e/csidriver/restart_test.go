package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/mount"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/pool"
)

// runAsDriver in the environment makes the test binary run main.
const runAsDriver = "CSIDRIVER_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsDriver) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestCleanupAfterNamespaceIsGone kills a driver together with its mount namespace. Then its
// mounts are gone, its loop devices are on files without a path, and its pool is frozen.
func TestCleanupAfterNamespaceIsGone(t *testing.T) {
	f := newFixture(t)
	command := exec.Command(os.Args[0], f.arguments()...)
	command.Env = append(os.Environ(), runAsDriver+"=yes")
	command.Stderr = f.Output()
	command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	f.ok(command.Start())
	f.stop = func() { _, _ = command.Process.Kill(), command.Wait() }
	f.connect()

	volumes := []*csi.Volume{
		f.create("block", mib, blockCapability(), nil),
		f.create("mounted", 64*mib, mountCapability("ext4"), nil),
	}
	f.publish(volumes[0].GetVolumeId(), blockCapability(), false)
	f.publish(volumes[1].GetVolumeId(), mountCapability("ext4"), false)
	// As if it had been taking a group snapshot.
	_, err := mount.Freeze(fmt.Sprintf("/proc/%d/root%s", command.Process.Pid, filepath.Join(f.stateDir, "pool")))
	f.ok(err)
	// The process ends only when the pool is thawed, because unmounting writes its
	// filesystems out.
	f.ok(command.Process.Kill())

	image := filepath.Join(f.stateDir, "pool.img")
	devices, err := loop.Of(image)
	if must(f, devices, err); len(devices) != 1 {
		t.Fatalf("devices on the image of the pool: %v", devices)
	}
	if stacked, err := loop.On(devices[0].Number); err != nil || len(stacked) == 0 {
		t.Fatalf("no device outlived the driver: %v", err)
	}
	f.ok(pool.Cleanup(f.stateDir))
	f.stop()
	if stacked, err := loop.On(devices[0].Number); err != nil || len(stacked) > 0 {
		t.Errorf("left over: %v, %v", stacked, err)
	}
	if devices, err := loop.Of(image); err != nil || len(devices) > 0 {
		t.Errorf("left over: %v, %v", devices, err)
	}
}

// TestRestart stops the driver, takes its devices away as a reboot would, and
// starts it again.
func TestRestart(t *testing.T) {
	f := startDriver(t)
	volume := f.create("volume", 4*mib, blockCapability(), nil)
	device := f.publish(volume.GetVolumeId(), blockCapability(), false)
	writeAt(f, device, rand.New(rand.NewPCG(7, 8)), 0, mib)
	want, err := os.ReadFile(device)
	f.ok(err)
	taken := f.snapshot("snapshot", volume.GetVolumeId())

	f.stop()
	if got, err := os.ReadFile(device); err != nil || !bytes.Equal(got, want) {
		t.Errorf("device does not outlive the driver: %v", err)
	}
	f.start()
	attached := len(f.attached(volume))
	if f.publish(volume.GetVolumeId(), blockCapability(), false); len(f.attached(volume)) != attached {
		t.Errorf("%d devices are attached after publishing again, before there were %d", len(f.attached(volume)), attached)
	}

	f.stop()
	f.ok(run(t.Context(), []string{"cleanup", "--state-dir", f.stateDir}, f.Output()))
	f.start()
	f.publish(volume.GetVolumeId(), blockCapability(), false)
	if got, err := os.ReadFile(device); err != nil || !bytes.Equal(got, want) {
		t.Errorf("device differs after the node restarted: %v", err)
	}
	listed, err := f.controller.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SnapshotId: taken.GetSnapshotId()})
	if entries := must(f, listed, err).GetEntries(); len(entries) != 1 || !entries[0].GetSnapshot().GetReadyToUse() {
		t.Errorf("snapshot after restart: %v", entries)
	}
	f.unpublish(volume.GetVolumeId())
	if left := f.attached(volume); len(left) > 0 {
		t.Errorf("left attached: %v", left)
	}
}

func (f *fixture) attached(volume *csi.Volume) []loop.Device {
	f.Helper()
	devices, err := loop.Of(filepath.Join(f.stateDir, "pool", "volumes", volume.GetVolumeId()))
	return must(f, devices, err)
}
