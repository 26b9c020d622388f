package volume

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// CreateSnapshot returns the snapshot of that name, and makes it when there is
// none. It is ready after the delay.
func (s *Store) CreateSnapshot(name, volumeID string, delay time.Duration) (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, existing := range s.state.Snapshots {
		if existing.Name != name || existing.Deleted {
			continue
		}
		if existing.VolumeID != volumeID {
			return Snapshot{}, fmt.Errorf("create snapshot %q: %w", name, ErrIncompatible)
		}
		return existing, nil
	}
	taken, err := s.takeSnapshots([]string{volumeID}, delay, func(_ string, snapshot *Snapshot) { snapshot.Name = name })
	if err != nil {
		return Snapshot{}, err
	}
	return taken[0], s.save()
}

// SnapshotNamed returns the snapshot with that name, if there is one.
func (s *Store) SnapshotNamed(name string) (Snapshot, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := s.snapshots(func(snapshot Snapshot) bool { return snapshot.Name == name && !snapshot.Deleted })
	if len(named) == 0 {
		return Snapshot{}, false
	}
	return named[0], true
}

// takeSnapshots copies the volumes at one instant and records the snapshots,
// each after complete has filled in what depends on its purpose. The caller
// saves the state.
func (s *Store) takeSnapshots(volumeIDs []string, delay time.Duration, complete func(volumeID string, snapshot *Snapshot)) ([]Snapshot, error) {
	var snapshots []Snapshot
	var copies []fileCopy
	for _, volumeID := range volumeIDs {
		volume, err := s.volume(volumeID)
		if err != nil {
			return nil, err
		}
		snapshot := Snapshot{ID: newID("snap"), Sequence: s.state.next(), VolumeID: volumeID, Size: volume.Size}
		complete(volumeID, &snapshot)
		snapshots = append(snapshots, snapshot)
		copies = append(copies, fileCopy{from: s.VolumePath(volumeID), to: s.SnapshotPath(snapshot.ID)})
	}
	if err := s.copyAtOnce(copies); err != nil {
		return nil, fmt.Errorf("take snapshots of %v: %w", volumeIDs, err)
	}
	created := time.Now().UTC()
	for i := range snapshots {
		snapshots[i].Created, snapshots[i].ReadyAt = created, created.Add(delay)
		s.state.Snapshots[snapshots[i].ID] = snapshots[i]
	}
	return snapshots, nil
}

// DeleteSnapshot removes a snapshot. With keepAsBase its content stays and Base
// still finds it, until the volume and its last snapshot are gone.
func (s *Store) DeleteSnapshot(id string, keepAsBase bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deleteSnapshot(id, keepAsBase)
}

func (s *Store) deleteSnapshot(id string, keepAsBase bool) error {
	snapshot, exists := s.state.Snapshots[id]
	if !exists || snapshot.Deleted {
		return nil
	}
	if !keepAsBase {
		return errors.Join(s.removeSnapshot(id), s.forgetBases(snapshot.VolumeID))
	}
	snapshot.Deleted = true
	s.state.Snapshots[id] = snapshot
	if err := s.save(); err != nil {
		return err
	}
	return s.forgetBases(snapshot.VolumeID)
}

// removeSnapshot removes a snapshot's record, then its file.
func (s *Store) removeSnapshot(id string) error {
	delete(s.state.Snapshots, id)
	if err := s.save(); err != nil {
		return err
	}
	if err := os.Remove(s.SnapshotPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove snapshot file: %w", err)
	}
	return nil
}

// forgetBases removes the deleted snapshots of a volume that nobody can ask a
// delta of any more: the volume is gone and all its snapshots are deleted.
func (s *Store) forgetBases(volumeID string) error {
	if _, exists := s.state.Volumes[volumeID]; exists {
		return nil
	}
	ofVolume := s.snapshots(func(snapshot Snapshot) bool { return snapshot.VolumeID == volumeID })
	for _, snapshot := range ofVolume {
		if !snapshot.Deleted {
			return nil
		}
	}
	var err error
	for _, snapshot := range ofVolume {
		err = errors.Join(err, s.removeSnapshot(snapshot.ID))
	}
	return err
}

// Snapshot returns the snapshot with that ID.
func (s *Store) Snapshot(id string) (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.liveSnapshot(id)
}

// Base returns the snapshot with that ID, also one that was deleted and kept.
func (s *Store) Base(id string) (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot, exists := s.state.Snapshots[id]
	if !exists {
		return Snapshot{}, fmt.Errorf("snapshot %q: %w", id, ErrNotFound)
	}
	return snapshot, nil
}

func (s *Store) liveSnapshot(id string) (Snapshot, error) {
	snapshot, exists := s.state.Snapshots[id]
	if !exists || snapshot.Deleted {
		return Snapshot{}, fmt.Errorf("snapshot %q: %w", id, ErrNotFound)
	}
	return snapshot, nil
}

// Snapshots returns all snapshots that are not deleted, oldest first.
func (s *Store) Snapshots() []Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshots(func(snapshot Snapshot) bool { return !snapshot.Deleted })
}

func (s *Store) snapshots(keep func(Snapshot) bool) []Snapshot {
	return inOrder(s.state.Snapshots, keep, func(snapshot Snapshot) int64 { return snapshot.Sequence })
}
