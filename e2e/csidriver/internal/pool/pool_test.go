package pool_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/mount"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/pool"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/pooltest"
)

const poolSize = 8 << 30

// TestSparse bounds what an empty pool of 64 GiB takes on disk.
func TestSparse(t *testing.T) {
	pooltest.Open(t) // skips without root
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := pool.Cleanup(dir); err != nil {
			t.Error(err)
		}
	})
	if _, err := pool.Open(dir, 64<<30); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "pool.img"))
	if err != nil {
		t.Fatal(err)
	}
	const sectorSize, limit = 512, 128 << 20
	if taken := info.Sys().(*syscall.Stat_t).Blocks * sectorSize; taken > limit {
		t.Errorf("an empty pool takes %d bytes on disk, more than %d", taken, limit)
	}
}

// TestTakeOver opens a pool that another process left mounted, and one that it
// left frozen.
func TestTakeOver(t *testing.T) {
	first, dir := pooltest.Open(t)
	if err := os.WriteFile(filepath.Join(first.Dir, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Freeze(); err != nil {
		t.Fatal(err)
	}
	again, err := pool.Open(dir, poolSize)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(filepath.Join(again.Dir, "other"), []byte("new"), 0o600) }()
	select {
	case err := <-written:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the pool is still frozen")
	}
	if content, err := os.ReadFile(filepath.Join(again.Dir, "file")); err != nil || string(content) != "kept" {
		t.Errorf("got %q, %v", content, err)
	}
}

// TestCleanup leaves no loop device and no mount, also not those that others
// stacked on a volume's device, and can be repeated.
func TestCleanup(t *testing.T) {
	opened, dir := pooltest.Open(t)
	path := filepath.Join(opened.Dir, "volume")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	device := attach(t, path)
	upper := attach(t, device.Path) // as a kubelet does
	target := filepath.Join(dir, "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mount.Bind(device.Path, target, false); err != nil {
		t.Fatal(err)
	}
	below, found, err := loop.Find(filepath.Join(dir, "pool.img"), false)
	if err != nil || !found {
		t.Fatalf("find device of pool: %v, %v", found, err)
	}
	for range 2 {
		if err := pool.Cleanup(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, number := range []uint64{below.Number, device.Number, upper.Number} {
		if stacked, err := loop.On(number); err != nil || len(stacked) > 0 {
			t.Errorf("left over: %v, %v", stacked, err)
		}
	}
	if devices, err := loop.Of(filepath.Join(dir, "pool.img")); err != nil || len(devices) > 0 {
		t.Errorf("left over: %v, %v", devices, err)
	}
	for _, path := range []string{target, opened.Dir} {
		if _, mounted, err := mount.At(path); err != nil || mounted {
			t.Errorf("%s is mounted: %v, %v", path, mounted, err)
		}
	}
}

// TestCleanupBesideACopy: whoever makes a mount namespace meanwhile, as a cluster
// that is started does, has a copy of the pool's mount in it.
func TestCleanupBesideACopy(t *testing.T) {
	_, dir := pooltest.Open(t)
	other := exec.Command("sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = other.Process.Kill(), other.Wait() }()
	if err := pool.Cleanup(dir); err != nil {
		t.Error(err)
	}
	if devices, err := loop.Of(filepath.Join(dir, "pool.img")); err != nil || len(devices) > 0 {
		t.Errorf("left over: %v, %v", devices, err)
	}
}

func attach(t *testing.T, path string) loop.Device {
	t.Helper()
	device, err := loop.Attach(path, loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return device
}
