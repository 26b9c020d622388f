package chain_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

var now = time.Date(2026, 3, 8, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func target() repository.Meta {
	return repository.Meta{
		Size: 1 << 30, ChunkSize: 1 << 20, Driver: "csi.example.com", VolumeHandle: "vol-1", SnapshotHandle: "snap-now",
		SnapshotTime: now, Mover: "blockmover",
	}
}

// snap is a healthy full repo snapshot of the target's volume, changed by edit.
func snap(id string, age time.Duration, edit ...func(*repository.Snapshot)) repository.Snapshot {
	s := repository.Snapshot{ID: repository.SnapshotID(id), Meta: target()}
	s.Meta.Kind = repository.Full
	s.Meta.SnapshotTime = now.Add(-age)
	s.Meta.ChangeID = "change-" + id
	for _, e := range edit {
		e(&s)
	}
	return s
}

func incremental(s *repository.Snapshot) { s.Meta.Kind = repository.Incremental }

func damaged(s *repository.Snapshot) {
	s.Meta = repository.Meta{}
	s.Damage = errors.New("bad bytes")
}

func edit(f func(*repository.Meta)) func(*repository.Snapshot) {
	return func(s *repository.Snapshot) { f(&s.Meta) }
}

func TestChoose(t *testing.T) {
	type history = []repository.Snapshot
	for _, c := range []struct {
		name   string
		parent string
		// size, if not 0, is that of the target, and the target has no chunk size.
		size    int64
		every   time.Duration
		history history
		parents []repository.SnapshotID
		reasons []chain.Reason
		detail  string
	}{
		{name: "first backup", reasons: []chain.Reason{chain.NoParent}, detail: "no repo snapshot yet"},
		{name: "newest first", history: history{snap("b", day), snap("a", 2*day)}, parents: []repository.SnapshotID{"b", "a"}},
		{
			name: "forced", parent: identity.ParentNone, history: history{snap("a", day)},
			reasons: []chain.Reason{chain.ForcedFull}, detail: "asked for",
		},
		{
			name: "forced comes before due", parent: identity.ParentNone, every: day, history: history{snap("a", 2*day)},
			reasons: []chain.Reason{chain.ForcedFull},
		},
		{
			name: "the same is wrong with several",
			history: history{
				snap("c", day, edit(func(m *repository.Meta) { m.Mover = "x" })), snap("b", 2*day, edit(func(m *repository.Meta) { m.Mover = "x" })),
				snap("a", 3*day, edit(func(m *repository.Meta) { m.Mover = "y" })),
			},
			reasons: []chain.Reason{chain.MoverChanged, chain.MoverChanged}, detail: `repo snapshot c was written by mover "x"`,
		},
		{name: "one is asked for", parent: "a", history: history{snap("b", day), snap("a", 2*day)}, parents: []repository.SnapshotID{"a"}},
		{
			name: "one is asked for and full is due", parent: "a", every: day, history: history{snap("a", 2*day)},
			parents: []repository.SnapshotID{"a"},
		},
		{
			name: "one is asked for that is not there", parent: "x", history: history{snap("a", day)},
			reasons: []chain.Reason{chain.ParentGone}, detail: "repo snapshot x",
		},
		{name: "one is asked for and there is none", parent: "x", reasons: []chain.Reason{chain.ParentGone}},
		{
			name: "one is asked for that is of no use", parent: "a", history: history{snap("b", day), snap("a", day, damaged)},
			reasons: []chain.Reason{chain.ParentDamaged}, detail: "bad bytes",
		},

		{
			name: "full is due", every: 7 * day, history: history{snap("b", day, incremental), snap("a", 7*day)},
			reasons: []chain.Reason{chain.FullDue}, detail: "168h0m0s",
		},
		{
			name: "full is not due yet", every: 7 * day, history: history{snap("b", day, incremental), snap("a", 7*day-1)},
			parents: []repository.SnapshotID{"b", "a"},
		},
		{
			name: "full is due when there is none", every: 7 * day, history: history{snap("b", day, incremental)},
			reasons: []chain.Reason{chain.FullDue}, detail: "no full image",
		},
		{name: "nothing is due for a new volume", every: day, reasons: []chain.Reason{chain.NoParent}},
		{
			name: "the full image of another volume does not count", every: 7 * day,
			history: history{snap("a", day, edit(func(m *repository.Meta) { m.VolumeHandle = "vol-0" }))},
			reasons: []chain.Reason{chain.FullDue},
		},

		{
			name: "volume replaced", history: history{snap("a", day, edit(func(m *repository.Meta) { m.VolumeHandle = "vol-0" }))},
			reasons: []chain.Reason{chain.VolumeReplaced}, detail: `"vol-0", want "vol-1"`,
		},
		{
			name: "driver replaced", history: history{snap("a", day, edit(func(m *repository.Meta) { m.Driver = "other" }))},
			reasons: []chain.Reason{chain.VolumeReplaced}, detail: `"other"`,
		},
		{
			name: "mover changed", history: history{snap("a", day, edit(func(m *repository.Meta) { m.Mover = "blockmover-kubevirt" }))},
			reasons: []chain.Reason{chain.MoverChanged},
		},
		{
			name: "no change ID", history: history{snap("a", day, edit(func(m *repository.Meta) { m.ChangeID = "" }))},
			reasons: []chain.Reason{chain.NoChangeID},
		},
		{
			name: "chunk size changed", history: history{snap("a", day, edit(func(m *repository.Meta) { m.ChunkSize = 4 << 20 }))},
			reasons: []chain.Reason{chain.ChunkSizeChanged}, detail: "4194304 bytes, want 1048576",
		},
		{
			name: "the volume has outgrown its chunks", size: 64<<30 + 1,
			history: history{snap("a", day, edit(func(m *repository.Meta) { m.ChunkSize = 64 << 10 }))},
			reasons: []chain.Reason{chain.ChunkSizeChanged}, detail: "65536 bytes, want 262144",
		},
		{
			name: "the volume has grown", size: 64 << 30,
			history: history{snap("a", day, edit(func(m *repository.Meta) { m.ChunkSize = 64 << 10 }))},
			parents: []repository.SnapshotID{"a"},
		},
		{
			name: "the volume has shrunk", size: 1 << 20,
			history: history{snap("a", day, edit(func(m *repository.Meta) { m.ChunkSize = 1 << 20 }))},
			parents: []repository.SnapshotID{"a"},
		},
		{name: "same instant", history: history{snap("a", 0)}, reasons: []chain.Reason{chain.ParentNotOlder}},
		{name: "later", history: history{snap("a", -time.Second)}, reasons: []chain.Reason{chain.ParentNotOlder}},
		{
			name: "an older one when the newest is of no use", history: history{snap("c", -day), snap("b", day), snap("a", 2*day), snap("x", 0, damaged)},
			parents: []repository.SnapshotID{"b", "a"}, reasons: []chain.Reason{chain.ParentNotOlder, chain.ParentDamaged},
		},
		{
			name: "what is older than a parent is nobody's loss",
			history: history{
				snap("d", day), snap("c", 2*day, edit(func(m *repository.Meta) { m.ChangeID = "" })), snap("b", 3*day),
				snap("a", 4*day, edit(func(m *repository.Meta) { m.VolumeHandle = "vol-0" })),
			},
			parents: []repository.SnapshotID{"d", "b"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := chain.Request{Parent: c.parent, FullEvery: c.every, Now: now, Target: target()}
			if r.Parent == "" {
				r.Parent = identity.ParentAuto
			}
			if c.size != 0 {
				r.Target.Size, r.Target.ChunkSize = c.size, 0
			}
			choice := chain.Choose(r, c.history)
			var parents []repository.SnapshotID
			for _, p := range choice.Parents {
				parents = append(parents, p.ID)
			}
			var reasons []chain.Reason
			for _, s := range choice.Steps {
				reasons = append(reasons, s.Reason)
			}
			require.Equal(t, c.parents, parents)
			require.Equal(t, c.reasons, reasons)
			if c.detail != "" {
				require.Contains(t, choice.Steps[0].Detail, c.detail)
			}
		})
	}
}
