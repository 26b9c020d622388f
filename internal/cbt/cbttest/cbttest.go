// Package cbttest holds the contract of cbt.Source as a test suite, a Source in
// memory, and one that breaks on demand.
package cbttest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
)

// Volume is what a Source reports of one target snapshot.
type Volume struct {
	Capacity int64
	Fixed    bool
	// Allocated blocks, and Changed blocks by base.
	Allocated []block.Extent
	Changed   map[cbt.ChangeID][]block.Extent
	// PerMessage is how many blocks a message holds; 0 is all.
	PerMessage int
}

// ErrNoBase is the error of the Source in memory for an unknown change ID.
var ErrNoBase = errors.New("no such base snapshot")

// Memory is a Source in memory.
type Memory struct{ Volume Volume }

var _ cbt.Source = Memory{}

// Allocated implements cbt.Source.
func (m Memory) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	return m.stream(ctx, m.Volume.Allocated, from, record)
}

// Changed implements cbt.Source.
func (m Memory) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	blocks, ok := m.Volume.Changed[base]
	if !ok {
		return ErrNoBase
	}
	return m.stream(ctx, blocks, from, record)
}

func (m Memory) stream(ctx context.Context, blocks []block.Extent, from int64, record func(cbt.Batch) error) error {
	for len(blocks) > 0 && blocks[0].End() <= from {
		blocks = blocks[1:]
	}
	size := m.Volume.PerMessage
	if size == 0 {
		size = max(1, len(blocks))
	}
	for len(blocks) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(size, len(blocks))
		if err := record(cbt.Batch{Fixed: m.Volume.Fixed, Capacity: m.Volume.Capacity, Blocks: blocks[:n]}); err != nil {
			return err
		}
		blocks = blocks[n:]
	}
	return nil
}

// Faulty is a Source whose streams end early.
type Faulty struct {
	cbt.Source
	// After is how many messages each stream delivers before it fails, one number for each
	// stream in turn. Later streams do not fail.
	After []int
	// Err is the failure.
	Err error

	mu      sync.Mutex
	streams int
}

// Streams is how many streams were opened.
func (f *Faulty) Streams() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams
}

// Allocated implements cbt.Source.
func (f *Faulty) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	return f.run(record, func(record func(cbt.Batch) error) error { return f.Source.Allocated(ctx, from, record) })
}

// Changed implements cbt.Source.
func (f *Faulty) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	return f.run(record, func(record func(cbt.Batch) error) error { return f.Source.Changed(ctx, base, from, record) })
}

func (f *Faulty) run(record func(cbt.Batch) error, stream func(func(cbt.Batch) error) error) error {
	f.mu.Lock()
	n := f.streams
	f.streams++
	f.mu.Unlock()
	if n >= len(f.After) {
		return stream(record)
	}
	left := f.After[n]
	err := stream(func(b cbt.Batch) error {
		if left == 0 {
			return f.Err
		}
		left--
		return record(b)
	})
	if err == nil {
		return f.Err
	}
	return err
}

// Contract runs the suite against Sources that report the given volume.
func Contract(t *testing.T, open func(t *testing.T, v Volume) cbt.Source) {
	t.Helper()
	const mib = 1 << 20
	volume := Volume{
		Capacity:   64 * mib,
		Allocated:  []block.Extent{{Offset: 0, Length: mib}, {Offset: 4 * mib, Length: 2 * mib}, {Offset: 63 * mib, Length: mib}},
		Changed:    map[cbt.ChangeID][]block.Extent{"base": {{Offset: 5 * mib, Length: mib}, {Offset: 7 * mib, Length: mib}}, "same": nil},
		PerMessage: 2,
	}
	both := []struct {
		name string
		run  func(cbt.Source, int64, func(cbt.Batch) error) error
		want []block.Extent
	}{
		{"allocated", func(s cbt.Source, from int64, r func(cbt.Batch) error) error {
			return s.Allocated(t.Context(), from, r)
		}, volume.Allocated},
		{"changed", func(s cbt.Source, from int64, r func(cbt.Batch) error) error {
			return s.Changed(t.Context(), "base", from, r)
		}, volume.Changed["base"]},
	}
	for _, c := range both {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, volume)
			for first, e := range c.want {
				for _, from := range []int64{e.Offset, e.Offset + 1, e.End() - 1} {
					require.Equal(t, c.want[first:], blocksFrom(t, volume, s, from, c.run), "from %d", from)
				}
			}
			require.Empty(t, blocksFrom(t, volume, s, c.want[len(c.want)-1].End(), c.run))
		})
		t.Run(c.name+" stops when the caller does", func(t *testing.T) {
			stop := errors.New("enough")
			calls := 0
			err := c.run(open(t, volume), 0, func(cbt.Batch) error {
				calls++
				return stop
			})
			require.ErrorIs(t, err, stop)
			require.NotErrorIs(t, err, cbt.ErrInterrupted)
			require.Equal(t, 1, calls)
		})
	}
	t.Run("nothing changed", func(t *testing.T) {
		require.NoError(t, open(t, volume).Changed(t.Context(), "same", 0, func(b cbt.Batch) error {
			require.Empty(t, b.Blocks)
			return nil
		}))
	})
	t.Run("unknown base", func(t *testing.T) {
		require.Error(t, open(t, volume).Changed(t.Context(), "other", 0, func(cbt.Batch) error { return nil }))
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, open(t, volume).Allocated(ctx, 0, func(cbt.Batch) error { return nil }))
	})
}

func blocksFrom(t *testing.T, v Volume, s cbt.Source, from int64, run func(cbt.Source, int64, func(cbt.Batch) error) error) []block.Extent {
	t.Helper()
	var got []block.Extent
	require.NoError(t, run(s, from, func(b cbt.Batch) error {
		require.Equal(t, v.Capacity, b.Capacity)
		require.Equal(t, v.Fixed, b.Fixed)
		got = append(got, b.Blocks...)
		return nil
	}))
	return got
}
