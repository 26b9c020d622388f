package volume

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Volume is a block device's worth of storage.
type Volume struct {
	ID   string
	Name string
	// Sequence orders the records by creation.
	Sequence int64
	// Size is in bytes, a multiple of BlockSize.
	Size int64
	// BlockSize is the logical block size of the volume's device.
	BlockSize int64
	// Source is what the volume began as a copy of.
	Source Source
}

// Source names the origin of a volume's first content; at most one field is set.
type Source struct {
	SnapshotID string `json:",omitempty"`
	VolumeID   string `json:",omitempty"`
}

// Snapshot is what a volume held at one instant.
type Snapshot struct {
	ID       string
	Name     string
	Sequence int64
	VolumeID string
	// Size is that of the volume at the instant of the snapshot.
	Size    int64
	Created time.Time
	// ReadyAt is when the snapshot may be used.
	ReadyAt time.Time
	// GroupID is set for the members of a group snapshot.
	GroupID string `json:",omitempty"`
	// Deleted marks a snapshot that exists no more for anyone but Base.
	Deleted bool `json:",omitempty"`
}

// Ready tells whether the snapshot may be used.
func (s Snapshot) Ready() bool { return !time.Now().Before(s.ReadyAt) }

// Group is a group snapshot: snapshots of several volumes of one instant.
type Group struct {
	ID          string
	Name        string
	Sequence    int64
	VolumeIDs   []string // sorted
	SnapshotIDs []string // in the order of VolumeIDs
	Created     time.Time
}

// state is everything that a Store remembers, by ID.
type state struct {
	Sequence  int64
	Volumes   map[string]Volume
	Snapshots map[string]Snapshot
	Groups    map[string]Group
}

// loadState reads the state file; none means that nothing exists yet.
func loadState(path string) (*state, error) {
	loaded := &state{Volumes: map[string]Volume{}, Snapshots: map[string]Snapshot{}, Groups: map[string]Group{}}
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return loaded, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(content, loaded); err != nil {
		return nil, fmt.Errorf("parse state %s: %w", path, err)
	}
	return loaded, nil
}

// save replaces the state file as a whole.
func (s *state) save(path string) error {
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	draft := path + ".new"
	if err := os.WriteFile(draft, content, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(draft, path); err != nil {
		return fmt.Errorf("replace state in %s: %w", filepath.Dir(path), err)
	}
	return nil
}

// next returns the sequence number of a new record.
func (s *state) next() int64 {
	s.Sequence++
	return s.Sequence
}

// newID returns an identifier that nothing has had before: 80 random bits.
func newID(kind string) string {
	return kind + "-" + strings.ToLower(rand.Text()[:16])
}

// inOrder returns the records that keep accepts by ascending sequence.
func inOrder[R any](records map[string]R, keep func(R) bool, sequence func(R) int64) []R {
	var kept []R
	for _, record := range records {
		if keep(record) {
			kept = append(kept, record)
		}
	}
	slices.SortFunc(kept, func(a, b R) int { return cmp.Compare(sequence(a), sequence(b)) })
	return kept
}
