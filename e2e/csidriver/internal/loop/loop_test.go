package loop_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
)

func attach(t *testing.T, size int64, config loop.Config) (string, loop.Device) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	device, err := loop.Attach(path, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := device.Detach(); err != nil {
			t.Error(err)
		}
	})
	return path, device
}

func detach(t *testing.T, device loop.Device) {
	t.Helper()
	if err := device.Detach(); err != nil {
		t.Fatal(err)
	}
	if err := device.AwaitDetached(10 * time.Second); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	path, device := attach(t, 1<<20, loop.Config{ReadOnly: true})
	if found, ok, err := loop.Find(path, true); err != nil || !ok || found != device {
		t.Errorf("found %+v, %v, %v, want %+v", found, ok, err, device)
	}
	if found, ok, err := loop.Find(path, false); err != nil || ok {
		t.Errorf("found a writable %+v, %v", found, err)
	}
	detach(t, device)
	if devices, err := loop.Of(path); err != nil || len(devices) > 0 {
		t.Errorf("left attached: %v, %v", devices, err)
	}
}

// TestAnotherUsersDevice holds on to a device that was detached, and whose
// number another file got.
func TestAnotherUsersDevice(t *testing.T) {
	path, device := attach(t, 1<<20, loop.Config{})
	stale := device
	detach(t, device)
	otherPath, other := attach(t, 2<<20, loop.Config{})
	if other.Path != stale.Path {
		t.Skip("the number went to another process")
	}
	if err := stale.Detach(); err != nil {
		t.Error(err)
	}
	if err := stale.While(func() error { t.Error("the stale device is taken for attached"); return nil }); err != nil {
		t.Error(err)
	}
	if _, ok, err := loop.Find(otherPath, false); err != nil || !ok {
		t.Errorf("the device of %s was detached in the place of that of %s: %v", otherPath, path, err)
	}
}

// TestWhile keeps a device attached that is detached meanwhile.
func TestWhile(t *testing.T) {
	path, device := attach(t, 1<<20, loop.Config{})
	err := device.While(func() error {
		if err := device.Detach(); err != nil {
			return err
		}
		if _, ok, err := loop.Find(path, false); err != nil || !ok {
			t.Errorf("detached while it was held: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := device.AwaitDetached(10 * time.Second); err != nil {
		t.Error(err)
	}
}
