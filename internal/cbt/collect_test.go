package cbt_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
)

const page = 64 << 10

func TestMemorySourceKeepsTheContract(t *testing.T) {
	cbttest.Contract(t, func(_ *testing.T, v cbttest.Volume) cbt.Source { return cbttest.Memory{Volume: v} })
}

// script is a Source that sends exactly these batches.
type script []cbt.Batch

func (s script) Allocated(_ context.Context, _ int64, record func(cbt.Batch) error) error {
	for _, b := range s {
		if err := record(b); err != nil {
			return err
		}
	}
	return nil
}

func (s script) Changed(ctx context.Context, _ cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	return s.Allocated(ctx, from, record)
}

func TestCollectChecksTheStream(t *testing.T) {
	const size = 10*page + 512
	fixed := func(blocks ...block.Extent) cbt.Batch { return cbt.Batch{Fixed: true, Capacity: size, Blocks: blocks} }
	variable := func(blocks ...block.Extent) cbt.Batch { return cbt.Batch{Capacity: size, Blocks: blocks} }
	at := func(off, length int64) block.Extent { return block.Extent{Offset: off, Length: length} }

	for _, c := range []struct {
		name    string
		batches script
		bytes   int64
		fails   string
	}{
		{name: "empty messages", batches: script{variable(), variable()}},
		{name: "fixed", batches: script{fixed(at(0, page)), fixed(at(page, page), at(3*page, page))}, bytes: 3 * page},
		{name: "variable", batches: script{variable(at(0, 2*page)), variable(at(2*page, page))}, bytes: 3 * page},
		{name: "parts of pages", batches: script{variable(at(1, 1), at(page-1, 2))}, bytes: 2 * page},
		{name: "fixed reaches over the end", batches: script{fixed(at(0, page), at(10*page, page))}, bytes: page + 512},
		{name: "fixed, one block larger than the volume", batches: script{fixed(at(0, 100*page))}, bytes: size},
		{name: "fixed, shortened at the end", batches: script{fixed(at(0, page), at(10*page, 512))}, bytes: page + 512},

		{name: "fixed, another length", batches: script{fixed(at(0, page), at(page, 2*page))}, fails: "want 65536"},
		{name: "fixed, shortened before the end", batches: script{fixed(at(0, page), at(page, 512))}, fails: "want 65536"},
		{name: "fixed, longer at the end", batches: script{fixed(at(0, page), at(9*page, 2*page))}, fails: "want 65536"},
		{name: "fixed, after one that reached the end", batches: script{fixed(at(0, page), at(10*page, page), at(11*page, page))}, fails: "outside the volume"},
		{name: "variable reaches over the end", batches: script{variable(at(10*page, page))}, fails: "outside the volume"},
		{name: "starts after the end", batches: script{fixed(at(size, page))}, fails: "outside the volume"},
		{name: "negative offset", batches: script{fixed(at(-page, page))}, fails: "outside the volume"},
		{name: "empty block", batches: script{variable(at(0, 0))}, fails: "length 0"},
		{name: "empty fixed block", batches: script{fixed(at(0, 0))}, fails: "length 0"},
		{name: "overflow", batches: script{variable(at(1<<62, 1<<62))}, fails: "outside the volume"},
		{name: "overlap", batches: script{variable(at(0, page+1), at(page, page))}, fails: "begins before"},
		{name: "twice", batches: script{variable(at(0, page)), variable(at(0, page))}, fails: "begins before"},
		{name: "descending", batches: script{variable(at(2*page, page), at(0, page))}, fails: "begins before"},
		{name: "type changes", batches: script{fixed(at(0, page)), variable(at(page, page))}, fails: "fixed and of variable"},
		{name: "capacity of another volume", batches: script{{Capacity: size + 512}}, fails: "66,"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.fails == "66," {
				c.fails = fmt.Sprintf("a volume of %d bytes, the device has %d", int64(size+512), int64(size))
			}
			for name, run := range collectors(c.batches, size, cbt.Options{PageSize: page}) {
				b, _, err := run(t.Context())
				if c.fails != "" {
					require.ErrorContains(t, err, c.fails, name)
					continue
				}
				require.NoError(t, err, name)
				require.Equal(t, c.bytes, b.Bytes(), name)
			}
		})
	}
}

// TestCollectNothing: no message is no change, and is no statement about what is allocated.
func TestCollectNothing(t *testing.T) {
	const size = 10 * page
	for _, c := range []struct {
		name     string
		messages script
		ok       bool
	}{
		{"no message", nil, false},
		{"a message without blocks", script{{Capacity: size}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := collectors(c.messages, size, cbt.Options{PageSize: page})
			b, _, err := run["changed"](t.Context())
			require.NoError(t, err)
			require.Zero(t, b.Bytes())
			_, _, err = run["allocated"](t.Context())
			if c.ok {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, "without a message")
			}
		})
	}
}

// TestCollectSaysWhenItGoesOn: the one who is told that a stream is waited for is told when it
// goes on.
func TestCollectSaysWhenItGoesOn(t *testing.T) {
	const size = 10 * page
	memory := cbttest.Memory{Volume: cbttest.Volume{Capacity: size, Allocated: []block.Extent{{Offset: 0, Length: page}}}}
	synctest.Test(t, func(t *testing.T) {
		source := &cbttest.Faulty{Source: memory, After: []int{0}, Err: cbt.ErrInterrupted}
		var told []error
		_, _, err := cbt.CollectAllocated(t.Context(), source, size, cbt.Options{Notify: func(err error) { told = append(told, err) }})
		require.NoError(t, err)
		require.Equal(t, []error{cbt.ErrInterrupted, nil}, told)
	})
}

type collector = func(context.Context) (*block.Bitmap, cbt.Stats, error)

func collectors(s cbt.Source, size int64, o cbt.Options) map[string]collector {
	return map[string]collector{
		"allocated": func(ctx context.Context) (*block.Bitmap, cbt.Stats, error) {
			return cbt.CollectAllocated(ctx, s, size, o)
		},
		"changed": func(ctx context.Context) (*block.Bitmap, cbt.Stats, error) {
			return cbt.CollectChanged(ctx, s, "base", size, o)
		},
	}
}

func TestCollectResumes(t *testing.T) {
	const size = 100 * page
	var blocks []block.Extent
	for p := int64(0); p < 100; p += 2 {
		blocks = append(blocks, block.Extent{Offset: p * page, Length: page})
	}
	synctest.Test(t, func(t *testing.T) {
		source := &cbttest.Faulty{
			Source: cbttest.Memory{Volume: cbttest.Volume{Capacity: size, Fixed: true, Allocated: blocks, PerMessage: 5}},
			// Two messages, then three times none, then two messages.
			After: []int{2, 0, 0, 0, 2},
			Err:   fmt.Errorf("connection reset: %w", cbt.ErrInterrupted),
		}
		var waited []time.Duration
		last := time.Now()
		timed := sourceFunc(func(ctx context.Context, from int64, record func(cbt.Batch) error) error {
			waited = append(waited, time.Since(last))
			defer func() { last = time.Now() }()
			return source.Allocated(ctx, from, record)
		})
		b, stats, err := cbt.CollectAllocated(t.Context(), timed, size, cbt.Options{})
		require.NoError(t, err)
		require.Equal(t, int64(50*page), b.Bytes())
		require.Equal(t, cbt.Stats{Messages: 10, Blocks: 50, Resumptions: 5, Waited: time.Second}, stats)
		require.Equal(t, 6, source.Streams())
		s := time.Second
		require.Equal(t, []time.Duration{0, s, 2 * s, 4 * s, 8 * s, s}, waited)
	})
}

// TestCollectAcceptsTheBlockAroundTheOffset: a storage may answer with the block that holds
// the offset, even if the block begins before it.
func TestCollectAcceptsTheBlockAroundTheOffset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 10 * page
		calls := 0
		source := sourceFunc(func(_ context.Context, from int64, record func(cbt.Batch) error) error {
			calls++
			if calls == 1 {
				require.Zero(t, from)
				return errors.Join(record(cbt.Batch{Capacity: size, Blocks: []block.Extent{{Offset: 0, Length: page}}}), cbt.ErrInterrupted)
			}
			require.Equal(t, int64(page), from)
			return record(cbt.Batch{Capacity: size, Blocks: []block.Extent{{Offset: 0, Length: 2 * page}, {Offset: 2 * page, Length: page}}})
		})
		b, _, err := cbt.CollectAllocated(t.Context(), source, size, cbt.Options{})
		require.NoError(t, err)
		require.Equal(t, int64(3*page), b.Bytes())
	})
}

func TestCollectDoesNotAskBeyondTheEnd(t *testing.T) {
	const size = 10 * page
	calls := 0
	source := sourceFunc(func(_ context.Context, _ int64, record func(cbt.Batch) error) error {
		calls++
		return errors.Join(record(cbt.Batch{Capacity: size, Blocks: []block.Extent{{Offset: 9 * page, Length: page}}}), cbt.ErrInterrupted)
	})
	b, _, err := cbt.CollectAllocated(t.Context(), source, size, cbt.Options{})
	require.NoError(t, err)
	require.Equal(t, int64(page), b.Bytes())
	require.Equal(t, 1, calls)
}

func TestCollectGivesUp(t *testing.T) {
	const size = 10 * page
	memory := cbttest.Memory{Volume: cbttest.Volume{Capacity: size, Allocated: []block.Extent{{Offset: 0, Length: page}}}}
	t.Run("after minutes without a block", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			source := &cbttest.Faulty{Source: memory, After: slices.Repeat([]int{0}, 100), Err: cbt.ErrInterrupted}
			var told []error
			begun := time.Now()
			_, stats, err := cbt.CollectAllocated(t.Context(), source, size, cbt.Options{Notify: func(err error) { told = append(told, err) }})
			require.ErrorIs(t, err, cbt.ErrInterrupted)
			require.Equal(t, int64(13), stats.Resumptions)
			require.Equal(t, 14, source.Streams())
			require.InDelta(t, 5*time.Minute, time.Since(begun), float64(30*time.Second))
			require.Equal(t, slices.Repeat([]error{cbt.ErrInterrupted}, 13), told)
		})
	})
	t.Run("at once on a lasting error", func(t *testing.T) {
		lasting := errors.New("permission denied")
		source := &cbttest.Faulty{Source: memory, After: []int{0}, Err: lasting}
		_, _, err := cbt.CollectAllocated(t.Context(), source, size, cbt.Options{})
		require.ErrorIs(t, err, lasting)
		require.Equal(t, 1, source.Streams())
	})
	t.Run("when told to", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second/2, cancel) // while it waits
			source := &cbttest.Faulty{Source: memory, After: []int{0}, Err: cbt.ErrInterrupted}
			_, _, err := cbt.CollectAllocated(ctx, source, size, cbt.Options{})
			require.ErrorIs(t, err, context.Canceled)
		})
	})
	t.Run("without a base", func(t *testing.T) {
		_, _, err := cbt.CollectChanged(t.Context(), memory, "", size, cbt.Options{})
		require.ErrorContains(t, err, "change ID is empty")
	})
}

type sourceFunc func(ctx context.Context, from int64, record func(cbt.Batch) error) error

func (f sourceFunc) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	return f(ctx, from, record)
}

func (f sourceFunc) Changed(ctx context.Context, _ cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	return f(ctx, from, record)
}
