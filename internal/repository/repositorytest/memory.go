// Package repositorytest holds the contract of repository.Store as a test
// suite, and a Store in memory.
package repositorytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/blockmover/blockmover/internal/repository"
)

// Memory is a Store in memory. It is safe for concurrent use.
type Memory struct {
	mu        sync.Mutex
	next      int
	snapshots map[repository.SnapshotID]entry
	// unfinished is what operations have recorded in Advance.
	unfinished map[operation]checkpoint
}

type operation struct {
	volume repository.VolumeKey
	id     string
}

// checkpoint is the image of a run that is not complete, up to a number of segments.
type checkpoint struct {
	image    *volume
	segments int64
	basis    string
}

type entry struct {
	repository.Snapshot
	image *volume
}

// volume is one image. It does not change once a store has it.
type volume struct {
	meta repository.Meta
	// chunks are those that are not zero, by chunk.
	chunks map[int64]string
	// paged are the chunks that were last put in pages.
	paged map[int64]bool
}

// count is the number of chunks; a nil volume has none.
func (v *volume) count() int64 {
	if v == nil {
		return 0
	}
	return (v.meta.Size + v.meta.ChunkSize - 1) / v.meta.ChunkSize
}

var _ repository.Store = (*Memory)(nil)

// NewMemory returns an empty Store.
func NewMemory() *Memory {
	return &Memory{snapshots: map[repository.SnapshotID]entry{}, unfinished: map[operation]checkpoint{}}
}

// save saves an image.
func (m *Memory) save(op operation, s repository.Snapshot, image *volume) repository.SnapshotID {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.unfinished, op)
	for id, e := range m.snapshots {
		if e.Volume == op.volume && e.Tags[repository.TagOperation] == op.id {
			return id
		}
	}
	tags := map[string]string{}
	maps.Copy(tags, s.Tags)
	tags[repository.TagOperation] = op.id
	m.next++
	id := repository.SnapshotID("snapshot-" + strconv.Itoa(m.next))
	m.snapshots[id] = entry{repository.Snapshot{ID: id, Volume: op.volume, Tags: tags, Start: s.Start, End: s.End, Meta: image.meta}, image}
	return id
}

func (o operation) check() error {
	switch {
	case o.id == "":
		return errors.New("operation ID is missing")
	case o.volume.Namespace == "" || o.volume.PVC == "":
		return errors.New("volume is missing")
	}
	return nil
}

// Get implements repository.Catalog.
func (m *Memory) Get(_ context.Context, id repository.SnapshotID) (repository.Snapshot, error) {
	s, _, err := m.find(id)
	return s, err
}

func (m *Memory) find(id repository.SnapshotID) (repository.Snapshot, *volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.snapshots[id]
	if !ok {
		return repository.Snapshot{}, nil, fmt.Errorf("repo snapshot %s: %w", id, repository.ErrNotFound)
	}
	return e.Snapshot, e.image, nil
}

// List implements repository.Catalog.
func (m *Memory) List(_ context.Context, v repository.VolumeKey) ([]repository.Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var result []repository.Snapshot
	for _, e := range m.snapshots {
		if e.Volume == v {
			result = append(result, e.Snapshot)
		}
	}
	slices.SortFunc(result, func(a, b repository.Snapshot) int { return b.Meta.SnapshotTime.Compare(a.Meta.SnapshotTime) })
	return result, nil
}

// Volumes implements repository.Catalog.
func (m *Memory) Volumes(context.Context) ([]repository.VolumeKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[repository.VolumeKey]bool{}
	for _, e := range m.snapshots {
		found[e.Volume] = true
	}
	return slices.SortedFunc(maps.Keys(found), repository.VolumeKey.Compare), nil
}

// Losses implements repository.Catalog: memory loses nothing.
func (m *Memory) Losses(context.Context) ([]repository.Loss, error) { return nil, nil }

// Check implements repository.Catalog.
func (m *Memory) Check(ctx context.Context, id repository.SnapshotID) error {
	_, err := m.Get(ctx, id)
	return err
}

// Delete implements repository.Catalog.
func (m *Memory) Delete(_ context.Context, id repository.SnapshotID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.snapshots, id)
	return nil
}

// Close implements repository.Store.
func (m *Memory) Close(context.Context) error { return nil }
