package chain_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

// fakeStore returns writers, or the error for a parent.
type fakeStore struct {
	fail map[repository.SnapshotID]error
}

type fakeWriter struct {
	repository.VolumeWriter
	parent repository.SnapshotID
}

func (s *fakeStore) NewWriter(_ context.Context, _ repository.Meta, o repository.WriterOptions) (repository.VolumeWriter, error) {
	if err := s.fail[o.Parent]; err != nil {
		return nil, err
	}
	return fakeWriter{parent: o.Parent}, nil
}

func (s *fakeStore) OpenReader(_ context.Context, id repository.SnapshotID) (repository.VolumeReader, error) {
	return nil, s.fail[id] // nothing is audited
}

const size = 1 << 30

func source(edit ...func(*cbttest.Volume)) cbt.Source {
	v := cbttest.Volume{
		Capacity:  size,
		Allocated: []block.Extent{{Offset: 0, Length: 10 << 20}},
		Changed: map[cbt.ChangeID][]block.Extent{
			"change-a": {{Offset: 0, Length: 2 << 20}},
			"change-b": {{Offset: 0, Length: 1 << 20}},
		},
	}
	for _, e := range edit {
		e(&v)
	}
	return cbttest.Memory{Volume: v}
}

func without(id cbt.ChangeID) func(*cbttest.Volume) {
	return func(v *cbttest.Volume) { delete(v.Changed, id) }
}

type broken struct{ err error }

func (b broken) Allocated(context.Context, int64, func(cbt.Batch) error) error { return b.err }

func (b broken) Changed(context.Context, cbt.ChangeID, int64, func(cbt.Batch) error) error {
	return b.err
}

func TestBegin(t *testing.T) {
	two := []repository.Snapshot{snap("b", day), snap("a", 2*day)}
	gone := fmt.Errorf("segment 7: %w", repository.ErrNotFound)
	for _, c := range []struct {
		name    string
		parent  string
		history []repository.Snapshot
		fail    map[repository.SnapshotID]error
		source  cbt.Source
		kind    repository.Kind
		parents repository.SnapshotID
		reason  chain.Reason
		details []string
		bytes   int64
	}{
		{
			name: "increment on the newest", history: two, source: source(),
			kind: repository.Incremental, parents: "b", bytes: 1 << 20,
		},
		{
			name: "base of the newest is gone", history: two, source: source(without("change-b")),
			kind: repository.Incremental, parents: "a", bytes: 2 << 20,
			reason: chain.DeltaFailed, details: []string{"repo snapshot b", "no such base"},
		},
		{
			name: "both bases are gone", history: two, source: source(without("change-b"), without("change-a")),
			kind: repository.Full, bytes: 10 << 20,
			reason: chain.DeltaFailed, details: []string{"DeltaFailed: since repo snapshot b", "DeltaFailed: since repo snapshot a"},
		},
		{
			name: "newest has lost a segment", history: two, fail: map[repository.SnapshotID]error{"b": gone}, source: source(),
			kind: repository.Incremental, parents: "a", bytes: 2 << 20,
			reason: chain.ParentGone, details: []string{"segment 7"},
		},
		{
			name:    "newest is damaged, base of the other is gone",
			history: two, fail: map[repository.SnapshotID]error{"b": repository.ErrCorrupt},
			source: source(without("change-a")), kind: repository.Full, bytes: 10 << 20,
			reason: chain.ParentDamaged, details: []string{"ParentDamaged: repo snapshot b", "DeltaFailed: since repo snapshot a"},
		},
		{
			name: "no tracking", history: two,
			kind: repository.Full, bytes: size, reason: chain.CBTUnavailable, details: []string{"driver has no service"},
		},
		{
			name: "tracking is not implemented", history: two[:1], source: broken{fmt.Errorf("unimplemented: %w", cbt.ErrUnavailable)},
			kind: repository.Full, bytes: size, reason: chain.CBTUnavailable, details: []string{"repo snapshot b", "unimplemented"},
		},
		{
			name: "tracking fails", history: two[:1], source: broken{errors.New("internal error")},
			kind: repository.Full, bytes: size, reason: chain.DeltaFailed, details: []string{"DeltaFailed", "AllocatedFailed: ", "internal error"},
		},
		{
			name: "first backup", source: source(),
			kind: repository.Full, bytes: 10 << 20, reason: chain.NoParent,
		},
		{
			name: "first backup without tracking",
			kind: repository.Full, bytes: size, reason: chain.NoParent, details: []string{"NoParent: ", "CBTUnavailable: driver has no service"},
		},
		{
			name: "forced", parent: identity.ParentNone, history: two, source: source(),
			kind: repository.Full, bytes: 10 << 20, reason: chain.ForcedFull,
		},
		{
			name: "wrong capacity", history: two[:1], source: source(func(v *cbttest.Volume) { v.Capacity = size / 2 }),
			kind: repository.Full, bytes: size, reason: chain.DeltaFailed, details: []string{"536870912 bytes, the device has 1073741824"},
		},
		{
			name:    "grown: from the chunk in which the parent ends",
			history: []repository.Snapshot{snap("b", day, edit(func(m *repository.Meta) { m.Size = 100<<20 + 512 }))},
			source:  source(), kind: repository.Incremental, parents: "b", bytes: 1<<20 + size - 100<<20,
		},
		{
			name:    "shrunk to a whole chunk",
			history: []repository.Snapshot{snap("b", day, edit(func(m *repository.Meta) { m.Size = 2 * size }))},
			source:  source(), kind: repository.Incremental, parents: "b", bytes: 1 << 20,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := chain.Input{
				Request: chain.Request{Parent: c.parent, Now: now, Target: target()},
				History: c.history, Store: &fakeStore{c.fail}, Source: c.source, Unavailable: "driver has no service",
			}
			if in.Parent == "" {
				in.Parent = identity.ParentAuto
			}
			run, err := chain.Begin(t.Context(), in)
			require.NoError(t, err)
			require.Equal(t, c.kind, run.Kind)
			require.Equal(t, c.parents, run.Parent)
			require.Equal(t, c.parents, run.Writer.(fakeWriter).parent)
			require.Equal(t, c.reason, run.Reason)
			require.Equal(t, c.bytes, run.Read.Bytes())
			for _, d := range c.details {
				require.Contains(t, run.Detail, d)
			}
			require.Equal(t, c.reason == "", run.Detail == "")
			require.Equal(t, c.reason == "", len(run.Reasons) == 0)
			for _, r := range run.Reasons {
				require.Contains(t, run.Detail, string(r)+": ")
			}
		})
	}
}

// TestBeginReadsTheTailOfAShrunkVolume: before, the last chunk had other bytes after what is
// now the end of the volume.
func TestBeginReadsTheTailOfAShrunkVolume(t *testing.T) {
	const shrunk = 50<<20 + 512
	in := chain.Input{
		Request: chain.Request{Parent: identity.ParentAuto, Now: now, Target: target()},
		History: []repository.Snapshot{snap("b", day)},
		Store:   &fakeStore{},
		Source:  source(func(v *cbttest.Volume) { v.Capacity = shrunk }),
	}
	in.Target.Size = shrunk
	run, err := chain.Begin(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, int64(1<<20+512), run.Read.Bytes())
	require.True(t, run.Read.AnyIn(block.Extent{Offset: 50 << 20, Length: 1}))
}

func TestBeginFails(t *testing.T) {
	in := func() chain.Input {
		return chain.Input{
			Request: chain.Request{Parent: identity.ParentAuto, Now: now, Target: target()},
			History: []repository.Snapshot{snap("b", day)}, Store: &fakeStore{}, Source: source(),
		}
	}
	t.Run("starting a full image", func(t *testing.T) {
		i := in()
		lost := errors.New("connection refused")
		i.History, i.Store = nil, &fakeStore{fail: map[repository.SnapshotID]error{"": lost}}
		_, err := chain.Begin(t.Context(), i)
		require.ErrorIs(t, err, lost)
	})
	t.Run("starting an incremental image", func(t *testing.T) {
		i := in()
		full := errors.New("the object store is full")
		i.Store = &fakeStore{fail: map[repository.SnapshotID]error{"b": full}}
		_, err := chain.Begin(t.Context(), i)
		require.ErrorIs(t, err, full, "it says nothing about the parent")
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := chain.Begin(ctx, in())
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("empty device", func(t *testing.T) {
		i := in()
		i.Target.Size = 0
		_, err := chain.Begin(t.Context(), i)
		require.ErrorContains(t, err, "0 bytes")
	})
}
