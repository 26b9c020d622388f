package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func create(t *testing.T, store *Store, spec Spec) Volume {
	t.Helper()
	created, err := store.CreateVolume(spec, func(size int64) bool { return spec.Size == 0 || size == spec.Size })
	if err != nil {
		t.Fatal(err)
	}
	return created
}

func snapshot(t *testing.T, store *Store, name, volumeID string) Snapshot {
	t.Helper()
	taken, err := store.CreateSnapshot(name, volumeID, 0)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

// TestReopen finds everything again, and removes files that a crash left without a record.
func TestReopen(t *testing.T) {
	store := openStore(t)
	volume := create(t, store, Spec{Name: "a", BlockSize: 512, Size: 1 << 20})
	taken := snapshot(t, store, "s", volume.ID)
	group, err := store.CreateGroup("g", []string{volume.ID}, 0)
	if err != nil {
		t.Fatal(err)
	}
	strays := []string{store.VolumePath("vol-stray"), store.SnapshotPath("snap-stray")}
	for _, stray := range strays {
		if err := os.WriteFile(stray, []byte("stray"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(store.dir, store.pool)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := again.Volume(volume.ID); err != nil || found != volume {
		t.Errorf("volume is %+v, %v", found, err)
	}
	if found, err := again.Snapshot(taken.ID); err != nil || found != taken {
		t.Errorf("snapshot is %+v, %v", found, err)
	}
	if _, members, err := again.Group(group.ID); err != nil || len(members) != 1 {
		t.Errorf("group has %v, %v", members, err)
	}
	for _, stray := range strays {
		if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stray %s: %v", stray, err)
		}
	}
}

func TestIdempotence(t *testing.T) {
	store := openStore(t)
	spec := Spec{Name: "a", BlockSize: 512, Size: 1 << 20}
	volume := create(t, store, spec)
	if again := create(t, store, spec); again != volume {
		t.Errorf("created again as %+v", again)
	}
	other := create(t, store, Spec{Name: "b", BlockSize: 512, Size: 1 << 20})
	for name, changed := range map[string]Spec{
		"size":       {Name: "a", BlockSize: 512, Size: 2 << 20},
		"block size": {Name: "a", BlockSize: 4096, Size: 1 << 20},
		"source":     {Name: "a", BlockSize: 512, Size: 1 << 20, Source: Source{VolumeID: other.ID}},
	} {
		_, err := store.CreateVolume(changed, func(size int64) bool { return size == changed.Size })
		if !errors.Is(err, ErrIncompatible) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	taken := snapshot(t, store, "s", volume.ID)
	if again := snapshot(t, store, "s", volume.ID); again != taken {
		t.Errorf("taken again as %+v", again)
	}
	if _, err := store.CreateSnapshot("s", other.ID, 0); !errors.Is(err, ErrIncompatible) {
		t.Errorf("the same name for another volume: %v", err)
	}
	for range 2 {
		err := errors.Join(store.DeleteSnapshot(taken.ID, false), store.DeleteVolume(volume.ID), store.DeleteGroup("group-0", false))
		if err != nil {
			t.Error(err)
		}
	}
	if again := snapshot(t, store, "s", other.ID); again.ID == taken.ID {
		t.Error("the ID of a deleted snapshot came back")
	}
}

func TestSizes(t *testing.T) {
	store := openStore(t)
	source := create(t, store, Spec{Name: "source", BlockSize: 4096, Size: 1 << 20})
	for name, spec := range map[string]Spec{
		"nothing":           {BlockSize: 512},
		"half a block":      {BlockSize: 4096, Size: 1<<20 + 512},
		"less than source":  {BlockSize: 512, Size: 1<<20 - 512, Source: Source{VolumeID: source.ID}},
		"negative":          {BlockSize: 512, Size: -512},
		"half a block size": {BlockSize: 4096, Size: 2048},
	} {
		if _, err := store.CreateVolume(spec, func(int64) bool { return true }); !errors.Is(err, ErrSize) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := store.Resize(source.ID, 1<<20+512); !errors.Is(err, ErrSize) {
		t.Errorf("resize to half a block: %v", err)
	}
}

// TestBases keeps the content of deleted snapshots for as long as somebody may
// ask what changed since.
func TestBases(t *testing.T) {
	store := openStore(t)
	volume := create(t, store, Spec{Name: "a", BlockSize: 512, Size: 1 << 20})
	base, target := snapshot(t, store, "base", volume.ID), snapshot(t, store, "target", volume.ID)
	if err := store.DeleteSnapshot(base.ID, true); err != nil {
		t.Fatal(err)
	}
	exists := func() bool {
		_, err := store.Base(base.ID)
		_, fileErr := os.Stat(store.SnapshotPath(base.ID))
		if (err == nil) != (fileErr == nil) {
			t.Errorf("record: %v, file: %v", err, fileErr)
		}
		return err == nil
	}
	if _, err := store.Snapshot(base.ID); !errors.Is(err, ErrNotFound) || !exists() {
		t.Errorf("deleted snapshot: %v, kept: %v", err, exists())
	}
	if err := store.DeleteVolume(volume.ID); err != nil {
		t.Fatal(err)
	}
	if !exists() {
		t.Error("the base is gone while the volume has a snapshot")
	}
	if err := store.DeleteSnapshot(target.ID, true); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(store.SnapshotPath(base.ID)))
	if exists() || err != nil || len(entries) > 0 {
		t.Errorf("left after the volume and its snapshots are deleted: %v, %v", entries, err)
	}
}

// TestAttachedVolumeIsNotDeleted leaves a volume alone that is in use.
func TestAttachedVolumeIsNotDeleted(t *testing.T) {
	store := openStore(t)
	created, device := newDevice(t, store, "a", 1<<20)
	if err := store.DeleteVolume(created.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("delete while attached: %v", err)
	}
	if err := errors.Join(device.Detach(), device.AwaitDetached(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := store.DeleteVolume(created.ID); err != nil {
		t.Errorf("delete after detaching: %v", err)
	}
}

// TestFailedGroupLeavesNothing asks for a group with a member that does not exist.
func TestFailedGroupLeavesNothing(t *testing.T) {
	store := openStore(t)
	volume := create(t, store, Spec{Name: "a", BlockSize: 512, Size: 1 << 20})
	if _, err := store.CreateGroup("g", []string{volume.ID, "vol-none"}, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("group with a volume that does not exist: %v", err)
	}
	if left := store.Snapshots(); len(left) > 0 || store.GroupNamed("g") {
		t.Errorf("left: %v", left)
	}
}
