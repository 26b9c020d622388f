// Package volume keeps volumes, their snapshots and their group snapshots as
// files on a pool that shares storage between copies.
//
//	<pool>/volumes/<volume ID>       the content of a volume, sparse
//	<pool>/snapshots/<snapshot ID>   the content of a snapshot, never written again
//	<state directory>/state.json     the records of all of them
//	<state directory>/groups.log     one line of JSON per group snapshot, appended
//
// A record is written after its file exists and taken away before its file is,
// so a crash leaves files without a record at worst; Open removes these. Calls
// may come from any number of goroutines; those that change something are done
// one after the other. Creating is idempotent by name, deleting by ID.
//
// Not promised: that acknowledged writes survive a crash of the machine.
package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/pool"
)

// What callers of a Store branch on.
var (
	// ErrNotFound means that no volume, snapshot or group has this ID.
	ErrNotFound = errors.New("not found")
	// ErrIncompatible means that the name is taken by something of another kind.
	ErrIncompatible = errors.New("exists with other properties")
	// ErrNotReady means that a snapshot cannot be used yet.
	ErrNotReady = errors.New("not ready to use")
	// ErrSize means that a size does not suit.
	ErrSize = errors.New("unsuitable size")
	// ErrInUse means that the volume is attached.
	ErrInUse = errors.New("in use")
	// ErrMember means that a list of snapshots is not that of the group.
	ErrMember = errors.New("not the members of the group")
)

// Store is the volumes, snapshots and groups of one state directory.
type Store struct {
	dir  string
	pool *pool.Pool

	mu    sync.Mutex
	state *state
}

// Open loads what is in the state directory.
func Open(dir string, pool *pool.Pool) (*Store, error) {
	loaded, err := loadState(filepath.Join(dir, "state.json"))
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, pool: pool, state: loaded}
	for _, sub := range []string{s.volumeDir(), s.snapshotDir()} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, fmt.Errorf("make directory on pool: %w", err)
		}
	}
	if err := removeStrays(s.volumeDir(), func(id string) bool { _, ok := loaded.Volumes[id]; return ok }); err != nil {
		return nil, err
	}
	if err := removeStrays(s.snapshotDir(), func(id string) bool { _, ok := loaded.Snapshots[id]; return ok }); err != nil {
		return nil, err
	}
	return s, nil
}

// removeStrays removes the files that no record knows.
func removeStrays(dir string, known func(id string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list pool: %w", err)
	}
	for _, entry := range entries {
		if known(entry.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("remove stray file: %w", err)
		}
	}
	return nil
}

func (s *Store) volumeDir() string   { return filepath.Join(s.pool.Dir, "volumes") }
func (s *Store) snapshotDir() string { return filepath.Join(s.pool.Dir, "snapshots") }

// VolumePath is the file that holds a volume.
func (s *Store) VolumePath(id string) string { return filepath.Join(s.volumeDir(), id) }

// SnapshotPath is the file that holds a snapshot.
func (s *Store) SnapshotPath(id string) string { return filepath.Join(s.snapshotDir(), id) }

func (s *Store) save() error { return s.state.save(filepath.Join(s.dir, "state.json")) }

// Spec describes a volume to be created.
type Spec struct {
	Name      string
	BlockSize int64
	Source    Source
	// Size is what the volume gets, a multiple of BlockSize. Zero takes the
	// size of the source.
	Size int64
}

// CreateVolume returns the volume of that name, and makes it when there is none.
// One that exists with another block size or source, or whose size accepts
// refuses, is ErrIncompatible.
func (s *Store) CreateVolume(spec Spec, accepts func(size int64) bool) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, existing := range s.state.Volumes {
		if existing.Name != spec.Name {
			continue
		}
		if existing.BlockSize != spec.BlockSize || existing.Source != spec.Source || !accepts(existing.Size) {
			return Volume{}, fmt.Errorf("create volume %q: %w", spec.Name, ErrIncompatible)
		}
		return existing, nil
	}
	sourcePath, sourceSize, err := s.source(spec.Source)
	if err != nil {
		return Volume{}, err
	}
	size, err := sizeOf(spec, sourceSize)
	if err != nil {
		return Volume{}, err
	}
	created := Volume{
		ID: newID("vol"), Name: spec.Name, Sequence: s.state.next(),
		Size: size, BlockSize: spec.BlockSize, Source: spec.Source,
	}
	if err := s.fill(created, sourcePath); err != nil {
		return Volume{}, err
	}
	s.state.Volumes[created.ID] = created
	return created, s.save()
}

// source returns the file and the size of what a volume is to be a copy of; the
// path is empty when there is no source.
func (s *Store) source(source Source) (path string, size int64, err error) {
	switch {
	case source.SnapshotID != "":
		snapshot, err := s.liveSnapshot(source.SnapshotID)
		if err != nil {
			return "", 0, err
		}
		if !snapshot.Ready() {
			return "", 0, fmt.Errorf("copy snapshot %s: %w", snapshot.ID, ErrNotReady)
		}
		return s.SnapshotPath(snapshot.ID), snapshot.Size, nil
	case source.VolumeID != "":
		volume, err := s.volume(source.VolumeID)
		return s.VolumePath(volume.ID), volume.Size, err
	default:
		return "", 0, nil
	}
}

// sizeOf returns the size of a volume to be created.
func sizeOf(spec Spec, sourceSize int64) (int64, error) {
	size := spec.Size
	if size == 0 {
		size = sourceSize
	}
	if size <= 0 || size%spec.BlockSize != 0 {
		return 0, fmt.Errorf("create volume %q: %d bytes are no multiple of the block size %d: %w", spec.Name, size, spec.BlockSize, ErrSize)
	}
	if size < sourceSize {
		return 0, fmt.Errorf("create volume %q: %d bytes are less than the source's %d: %w", spec.Name, size, sourceSize, ErrSize)
	}
	return size, nil
}

// fill makes the file of a new volume.
func (s *Store) fill(volume Volume, sourcePath string) error {
	path := s.VolumePath(volume.ID)
	if sourcePath != "" {
		if err := s.copyAtOnce([]fileCopy{{from: sourcePath, to: path}}); err != nil {
			return err
		}
	} else if err := os.WriteFile(path, nil, 0o600); err != nil {
		return fmt.Errorf("create volume file: %w", err)
	}
	if err := os.Truncate(path, volume.Size); err != nil {
		return fmt.Errorf("size volume file: %w", err)
	}
	return nil
}

// DeleteVolume removes a volume; its snapshots stay. One that is attached to a
// device is ErrInUse.
func (s *Store) DeleteVolume(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, exists := s.state.Volumes[id]; !exists {
		return nil
	}
	devices, err := loop.Of(s.VolumePath(id))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(devices) > 0 {
		return fmt.Errorf("delete volume %s, attached to %s: %w", id, devices[0].Path, ErrInUse)
	}
	delete(s.state.Volumes, id)
	if err := s.save(); err != nil {
		return err
	}
	if err := os.Remove(s.VolumePath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove volume file: %w", err)
	}
	return s.forgetBases(id)
}

// Volume returns the volume with that ID.
func (s *Store) Volume(id string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volume(id)
}

func (s *Store) volume(id string) (Volume, error) {
	volume, exists := s.state.Volumes[id]
	if !exists {
		return Volume{}, fmt.Errorf("volume %q: %w", id, ErrNotFound)
	}
	return volume, nil
}

// Volumes returns all volumes, oldest first.
func (s *Store) Volumes() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return inOrder(s.state.Volumes, func(Volume) bool { return true }, func(v Volume) int64 { return v.Sequence })
}

// Resize gives a volume another size, and its attached devices too. What a
// shrink cuts off is lost; what a growth adds reads as zeros.
func (s *Store) Resize(id string, size int64) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	volume, err := s.volume(id)
	if err != nil {
		return Volume{}, err
	}
	if size <= 0 || size%volume.BlockSize != 0 {
		return Volume{}, fmt.Errorf("resize volume %s: %d bytes are no multiple of the block size %d: %w", id, size, volume.BlockSize, ErrSize)
	}
	path := s.VolumePath(id)
	if err := os.Truncate(path, size); err != nil {
		return Volume{}, fmt.Errorf("resize volume file: %w", err)
	}
	volume.Size = size
	s.state.Volumes[id] = volume
	if err := s.save(); err != nil {
		return Volume{}, err
	}
	devices, err := loop.Of(path)
	if err != nil {
		return Volume{}, err
	}
	for _, device := range devices {
		if err := device.Reload(); err != nil {
			return Volume{}, err
		}
	}
	return volume, nil
}

// Available is how many bytes can still be written.
func (s *Store) Available() (int64, error) { return s.pool.Available() }

// logGroup appends a group to the log that tests read.
func (s *Store) logGroup(group Group) error {
	log, err := os.OpenFile(filepath.Join(s.dir, "groups.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log of groups: %w", err)
	}
	if err := errors.Join(json.NewEncoder(log).Encode(group), log.Close()); err != nil {
		return fmt.Errorf("log group: %w", err)
	}
	return nil
}

// CreateGroup returns the group snapshot of that name, and makes it when there
// is none. All its members show one instant; they are ready after the delay.
func (s *Store) CreateGroup(name string, volumeIDs []string, delay time.Duration) (Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	volumeIDs = slices.Sorted(slices.Values(volumeIDs))
	for _, existing := range s.state.Groups {
		if existing.Name != name {
			continue
		}
		if !slices.Equal(existing.VolumeIDs, volumeIDs) {
			return Group{}, fmt.Errorf("create group snapshot %q: %w", name, ErrIncompatible)
		}
		return existing, nil
	}
	group := Group{ID: newID("group"), Name: name, Sequence: s.state.next(), VolumeIDs: volumeIDs}
	members, err := s.takeSnapshots(volumeIDs, delay, func(volumeID string, snapshot *Snapshot) {
		snapshot.Name = name + "/" + volumeID
		snapshot.GroupID = group.ID
	})
	if err != nil {
		return Group{}, err
	}
	for _, member := range members {
		group.Created = member.Created
		group.SnapshotIDs = append(group.SnapshotIDs, member.ID)
	}
	s.state.Groups[group.ID] = group
	if err := s.save(); err != nil {
		return Group{}, err
	}
	return group, s.logGroup(group)
}

// GroupNamed returns whether there is a group snapshot with that name.
func (s *Store) GroupNamed(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, group := range s.state.Groups {
		if group.Name == name {
			return true
		}
	}
	return false
}

// Group returns the group with that ID and those of its members that still exist.
func (s *Store) Group(id string) (Group, []Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	group, exists := s.state.Groups[id]
	if !exists {
		return Group{}, nil, fmt.Errorf("group snapshot %q: %w", id, ErrNotFound)
	}
	var members []Snapshot
	for _, snapshotID := range group.SnapshotIDs {
		if member, err := s.liveSnapshot(snapshotID); err == nil {
			members = append(members, member)
		}
	}
	return group, members, nil
}

// CheckMembers returns ErrMember when a snapshot is none of the group's.
func (g Group) CheckMembers(snapshotIDs []string) error {
	for _, id := range snapshotIDs {
		if !slices.Contains(g.SnapshotIDs, id) {
			return fmt.Errorf("snapshot %s in group %s: %w", id, g.ID, ErrMember)
		}
	}
	return nil
}

// DeleteGroup removes a group snapshot and the members that still exist, as
// DeleteSnapshot does.
func (s *Store) DeleteGroup(id string, keepAsBase bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	group, exists := s.state.Groups[id]
	if !exists {
		return nil
	}
	for _, snapshotID := range group.SnapshotIDs {
		if err := s.deleteSnapshot(snapshotID, keepAsBase); err != nil {
			return err
		}
	}
	delete(s.state.Groups, id)
	return s.save()
}
