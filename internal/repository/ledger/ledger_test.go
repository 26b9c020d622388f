package ledger_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/ledger"
)

const (
	chunk = 4 << 10
	// perSegment is how many chunks a segment of the tests has.
	perSegment = 4
)

func layout(t *testing.T, size int64) repository.Layout {
	t.Helper()
	l, err := repository.NewLayout(repository.Meta{Size: size, ChunkSize: chunk, SegmentSize: perSegment * chunk, PageSize: chunk})
	require.NoError(t, err)
	return l
}

func whole(id string) ledger.Stored[string] { return ledger.Stored[string]{Whole: id} }

func paged(id string, bytes int64) ledger.Stored[string] {
	return ledger.Stored[string]{Pages: []string{id}, Bytes: bytes}
}

// next returns the index of the next segment, or -1, and seals it.
func next(t *testing.T, l *ledger.Ledger[string], end int64) int64 {
	t.Helper()
	s, ok, err := l.Next(end)
	require.NoError(t, err)
	if !ok {
		return -1
	}
	l.Sealed(repository.WriteStats{})
	return s.Index
}

// TestStates holds the table of the package documentation, and that nothing is taken
// in any state but Writing.
func TestStates(t *testing.T) {
	broken := errors.New("broken")
	fail := func(l *ledger.Ledger[string]) { _ = l.Fail(broken) }
	finish := func(l *ledger.Ledger[string]) { _ = l.Finish() }
	end := func(l *ledger.Ledger[string]) { _ = l.End() }
	for name, c := range map[string]struct {
		events []func(*ledger.Ledger[string])
		ends   bool // what End answers then
	}{
		"failed":               {[]func(*ledger.Ledger[string]){fail}, true},
		"committed":            {[]func(*ledger.Ledger[string]){finish}, false},
		"ended":                {[]func(*ledger.Ledger[string]){end}, false},
		"failed, ended":        {[]func(*ledger.Ledger[string]){fail, end}, false},
		"failed, committed":    {[]func(*ledger.Ledger[string]){fail, finish}, true},
		"committed, failed":    {[]func(*ledger.Ledger[string]){finish, fail}, false},
		"ended, then failed":   {[]func(*ledger.Ledger[string]){end, fail}, false},
		"ended, then finished": {[]func(*ledger.Ledger[string]){end, finish}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger.New[string](layout(t, 8*chunk), ledger.Options{})
			for next(t, l, 8) >= 0 {
			}
			for _, event := range c.events {
				event(l)
			}
			require.ErrorIs(t, l.Check(0, 1), ledger.ErrOver)
			require.ErrorIs(t, l.Put(0, whole("a"), repository.WriteStats{}), ledger.ErrOver)
			require.ErrorIs(t, l.Put(0, paged("a", 1), repository.WriteStats{}), ledger.ErrOver)
			_, _, err := l.Next(8)
			require.ErrorIs(t, err, ledger.ErrOver)
			_, err = l.Progress()
			require.ErrorIs(t, err, ledger.ErrOver)
			require.ErrorIs(t, l.Finish(), ledger.ErrOver)
			require.Equal(t, c.ends, l.End())
			require.False(t, l.End(), "the second time")
		})
	}
	require.ErrorIs(t, ledger.New[string](layout(t, chunk), ledger.Options{}).Fail(broken), broken)
}

// TestUnsealed: a segment that was closed and could not be stored is in no checkpoint
// and in no image.
func TestUnsealed(t *testing.T) {
	l := ledger.New[string](layout(t, 8*chunk), ledger.Options{})
	require.Equal(t, int64(0), next(t, l, 4))
	s, ok, err := l.Next(8)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, int64(1), s.Index)
	_, err = l.Progress()
	require.ErrorIs(t, err, ledger.ErrOver)
	_, _, err = l.Next(8)
	require.ErrorIs(t, err, ledger.ErrOver)
	require.ErrorIs(t, l.Finish(), ledger.ErrOver)
	l.Sealed(repository.WriteStats{})
	require.NoError(t, l.Finish())
}

// TestOnce: a chunk is put once, in whatever way, and not after its segment is closed.
func TestOnce(t *testing.T) {
	l := ledger.New[string](layout(t, 10*chunk), ledger.Options{})
	require.NoError(t, l.Put(1, whole("a"), repository.WriteStats{}))
	require.NoError(t, l.Put(2, paged("b", chunk), repository.WriteStats{}))
	for _, c := range []int64{1, 2} {
		require.ErrorContains(t, l.Put(c, whole("c"), repository.WriteStats{}), "put before")
		require.ErrorContains(t, l.Put(c, paged("c", chunk), repository.WriteStats{}), "put before")
		require.ErrorContains(t, l.Check(0, 3), "put before")
	}
	require.NoError(t, l.Check(3, 7))
	s, ok, err := l.Next(4)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []string{"", "a", "", ""}, s.Chunks)
	require.Equal(t, map[int64][]string{2: {"b"}}, s.Pages)
	require.False(t, s.Whole())
	l.Sealed(repository.WriteStats{})
	require.ErrorContains(t, l.Put(3, whole("c"), repository.WriteStats{}), "segment 0 is finished")
	require.Equal(t, int64(-1), next(t, l, 7), "the segment does not end there")
	require.Equal(t, int64(1), next(t, l, 8))
	require.Equal(t, int64(-1), next(t, l, 9))
	require.ErrorIs(t, l.Finish(), ledger.ErrOver, "the last segment is open")
	require.NoError(t, l.Put(8, whole("d"), repository.WriteStats{}))
	require.NoError(t, l.Put(9, whole("e"), repository.WriteStats{}))
	s, ok, err = l.Next(10)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []string{"d", "e"}, s.Chunks, "the last segment is shorter")
	require.True(t, s.Whole())
	l.Sealed(repository.WriteStats{})
	require.NoError(t, l.Finish())
	for _, beyond := range []int64{-1, 11} {
		_, _, err := ledger.New[string](layout(t, 10*chunk), ledger.Options{}).Next(beyond)
		require.ErrorContains(t, err, "beyond the end")
	}
}

// TestBorder: the chunk in which the smaller of two sizes ends must be put whole before
// its segment closes, and no other chunk must.
func TestBorder(t *testing.T) {
	for name, c := range map[string]struct {
		size, parent, resumed, border int64
	}{
		"no parent":        {size: 10*chunk + 1, border: -1},
		"the same size":    {size: 10*chunk + 1, parent: 10*chunk + 1, border: -1},
		"grown":            {size: 10 * chunk, parent: 5*chunk + 1, border: 5},
		"grown from whole": {size: 10*chunk + 1, parent: 5 * chunk, border: -1},
		"shrunk":           {size: 5*chunk + 1, parent: 10 * chunk, border: 5},
		"shrunk to whole":  {size: 5 * chunk, parent: 10*chunk + 1, border: -1},
		"put already":      {size: 10 * chunk, parent: 3*chunk + 1, resumed: 1, border: -1},
		"put later":        {size: 10 * chunk, parent: 5*chunk + 1, resumed: 1, border: 5},
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger.New[string](layout(t, c.size), ledger.Options{ParentSize: c.parent, Resumed: c.resumed})
			end := layout(t, c.size).Chunks()
			for chunk := range end {
				require.Equal(t, chunk == c.border, l.MustBeWhole(chunk), "chunk %d", chunk)
			}
			if c.border < 0 {
				for next(t, l, end) >= 0 {
				}
				require.NoError(t, l.Finish())
				return
			}
			for next(t, l, c.border) >= 0 {
			}
			_, _, err := l.Next(end)
			require.ErrorContains(t, err, "chunk 5, where one of them ends, was not put")
			require.NoError(t, l.Put(c.border, whole("a"), repository.WriteStats{}))
			require.False(t, l.MustBeWhole(c.border))
			for next(t, l, end) >= 0 {
			}
			require.NoError(t, l.Finish())
		})
	}
}

// TestDue: a checkpoint loses less than the interval, with what is in flight.
func TestDue(t *testing.T) {
	const segment = int64(perSegment * chunk)
	for interval, threshold := range map[int64]int64{
		1:                                  segment, // no less than a segment
		repository.MaxInFlight + 3*segment: 2 * segment,
		0:                                  repository.DefaultCheckpointInterval - segment - repository.MaxInFlight,
	} {
		l := ledger.New[string](layout(t, 8<<30), ledger.Options{Interval: interval})
		require.NoError(t, l.Put(0, paged("a", threshold-1), repository.WriteStats{}))
		require.False(t, l.Due(), "interval %d", interval)
		require.NoError(t, l.Put(1, paged("a", 1), repository.WriteStats{}))
		require.True(t, l.Due(), "interval %d", interval)
		l.Recorded()
		require.False(t, l.Due(), "interval %d", interval)
	}
}

// TestLedger compares a ledger with the plain list of what was put, in random order and
// from many goroutines: each chunk comes out once, in its place, or is in progress.
func TestLedger(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		size := 1 + rnd.Int64N(40*chunk)
		lay := layout(t, size)
		resumed := rnd.Int64N(lay.Segments() + 1)
		l := ledger.New[int64](lay, ledger.Options{Resumed: resumed})
		require.Equal(t, min(resumed*perSegment, lay.Chunks()), l.Resumed())
		put := map[int64]bool{}
		for c := l.Resumed(); c < lay.Chunks(); c++ {
			put[c] = rnd.IntN(2) == 0
		}
		got := map[int64]bool{}
		take := func(end int64) {
			for {
				s, ok, err := l.Next(end)
				require.NoError(t, err)
				if !ok {
					return
				}
				require.LessOrEqual(t, lay.EndOf(s.Index+1), end*chunk)
				for i, id := range s.Chunks {
					if c := s.Index*perSegment + int64(i); id != 0 {
						require.Equal(t, c+1, id)
						got[c] = true
					}
				}
				l.Sealed(repository.WriteStats{MetadataBytes: 1})
			}
		}
		for first := l.Resumed(); first < lay.Chunks(); {
			count := min(1+rnd.Int64N(10), lay.Chunks()-first)
			var group sync.WaitGroup
			for c := first; c < first+count; c++ {
				if put[c] {
					group.Go(func() {
						if err := l.Put(c, ledger.Stored[int64]{Whole: c + 1}, repository.WriteStats{ChunksWritten: 1}); err != nil {
							t.Error(err)
						}
					})
				}
			}
			group.Wait()
			first += count
			take(rnd.Int64N(first + 1))
			done, err := l.Progress()
			require.NoError(t, err)
			for _, id := range done.Chunks {
				require.True(t, put[id-1])
				require.False(t, got[id-1], "in progress and sealed")
			}
		}
		take(lay.Chunks())
		want := int64(0)
		for c, is := range put {
			require.Equal(t, is, got[c], "seed %d, chunk %d", seed, c)
			if is {
				want++
			}
		}
		require.NoError(t, l.Finish())
		require.Equal(t, repository.WriteStats{ChunksWritten: want, MetadataBytes: lay.Segments() - resumed}, l.Stats())
	}
}
