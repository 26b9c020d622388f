package kopia

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/content"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// regionImage is an image of 2 MiB with nine parents, each of which has some of its contents, and what it holds.
func regionImage(t *testing.T) (open func() (*reader, *counting), data []byte) {
	t.Helper()
	s := openStore(t, newRepository(t))
	meta := testMeta(2<<20, testTime)
	rnd := rand.New(rand.NewPCG(1, 2))
	data = randomBytes(rnd, meta.Size)
	clear(data[512<<10 : 640<<10])
	id, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	for range 9 {
		var changed []int64
		for c := range meta.Size / meta.ChunkSize {
			if rnd.IntN(12) == 0 {
				copy(data[c*meta.ChunkSize:], randomBytes(rnd, meta.ChunkSize))
				changed = append(changed, c)
			}
		}
		next := meta
		next.Kind = repository.Incremental
		id, _ = backup(t, s, next, id, data, changed)
	}
	return func() (*reader, *counting) {
		r, err := s.openReader(t.Context(), id)
		require.NoError(t, err)
		c := &counting{Reader: r.ranges.blobs}
		r.ranges.blobs = c
		r.regions.size, r.ranges.gap = 64<<10, 8<<10
		return r, c
	}, data
}

// readThrough reads pieces of an image in ascending order, side by side. It leaves out those of which skip says so.
func readThrough(t *testing.T, r *reader, data []byte, readers int, piece int64, skip func(off int64) bool) error {
	t.Helper()
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make(chan error, readers)
	for range readers {
		group.Go(func() {
			buf := make([]byte, piece)
			for {
				off := next.Add(piece) - piece
				if off >= int64(len(data)) {
					return
				}
				if skip != nil && skip(off) || block.IsZero(data[off:min(off+piece, int64(len(data)))]) {
					continue
				}
				n, err := r.ReadAt(buf, off)
				if n < len(buf) && err != nil && off+int64(n) < int64(len(data)) {
					errs <- err
					return
				}
				if string(buf[:n]) != string(data[off:off+int64(n)]) {
					t.Errorf("bytes from %d on differ", off)
				}
			}
		})
	}
	group.Wait()
	close(errs)
	return <-errs
}

func TestRegionsAreFetchedAhead(t *testing.T) {
	open, data := regionImage(t)
	for _, readers := range []int{1, 4, 16} {
		for _, piece := range []int64{4 << 10, 20 << 10, 64 << 10} {
			r, c := open()
			require.NoError(t, readThrough(t, r, data, readers, piece, nil))
			ahead := c.requests.Load()
			require.NoError(t, r.Close())
			if piece == 4<<10 || int64(readers)*piece > r.regions.size {
				continue // kopia reads single contents by itself; and what is under way is more than a region
			}

			r, c = open()
			r.regions.size = 1 << 40 // all is one region, so none is ahead
			require.NoError(t, readThrough(t, r, data, readers, piece, nil))
			require.NoError(t, r.Close())
			require.Less(t, ahead, c.requests.Load(), "%d readers of %d bytes", readers, piece)
		}
	}
}

// TestRegionsOfWhoReadsLittle: what a restore in place does not need is not fetched.
func TestRegionsOfWhoReadsLittle(t *testing.T) {
	open, data := regionImage(t)
	r, c := open()
	require.NoError(t, readThrough(t, r, data, 4, 32<<10, func(off int64) bool { return off/(32<<10)%2 == 0 }))
	require.NoError(t, r.Close())
	require.Empty(t, r.regions.known)
	require.NotZero(t, c.requests.Load())
}

// TestRegionsInVain: what cannot be fetched ahead is read when it is needed, which gives the error.
func TestRegionsInVain(t *testing.T) {
	open, data := regionImage(t)
	r, c := open()
	c.err = errFull
	require.ErrorIs(t, readThrough(t, r, data, 4, 64<<10, nil), errFull)
	require.NoError(t, r.Close())

	// A region that claims more than it may have is not fetched.
	r, c = open()
	ids, length, err := r.regionContents(3, 5)
	require.NoError(t, err)
	require.EqualValues(t, 128<<10, length)
	require.Nil(t, r.ranges.plan(t.Context(), ids, length/2))
	require.NotNil(t, r.ranges.plan(t.Context(), ids, length*2))
	require.Nil(t, r.ranges.plan(t.Context(), []content.ID{}, length))
	require.Zero(t, c.requests.Load())
}

// TestReadInOrder fetches each stretch once, whoever is how far ahead, and keeps none.
func TestReadInOrder(t *testing.T) {
	open, data := regionImage(t)
	r, c := open()
	require.NoError(t, readThrough(t, r, data, 1, 8<<10, nil))
	require.NoError(t, r.Close())
	otherwise := c.requests.Load()
	var fewest int64
	for _, readers := range []int{1, 4, 16} {
		for _, piece := range []int64{8 << 10, 64 << 10, 300 << 10} {
			r, c := open()
			r.ReadInOrder()
			require.NoError(t, readThrough(t, r, data, readers, piece, nil))
			if fewest == 0 {
				fewest = c.requests.Load()
				require.Less(t, fewest, otherwise)
			}
			require.Equal(t, fewest, c.requests.Load(), "%d readers of %d bytes", readers, piece)
			require.Empty(t, holding(r))
			require.NoError(t, r.Close())
		}
	}
}

// holding returns the stretches that have memory.
func holding(r *reader) []int64 {
	r.regions.mu.Lock()
	defer r.regions.mu.Unlock()
	var all []int64
	for k, g := range r.regions.known {
		if g.holds != nil {
			all = append(all, k)
		}
	}
	return all
}

// TestReadInOrderOfSomebodyElse: who reads in another order than it has said, or not all, gets the bytes, and nobody waits for ever.
func TestReadInOrderOfSomebodyElse(t *testing.T) {
	open, data := regionImage(t)
	for name, read := range map[string]func(r *reader) error{
		"nothing": func(*reader) error { return nil },
		"backwards": func(r *reader) error {
			for off := int64(len(data)) - 32<<10; off >= 0; off -= 32 << 10 {
				if err := same(r, data, off, 32<<10); err != nil {
					return err
				}
			}
			return nil
		},
		"parts of contents": func(r *reader) error {
			for off := int64(1); off < int64(len(data))-8<<10; off += 6 << 10 {
				if err := same(r, data, off, 3<<10); err != nil {
					return err
				}
			}
			return nil
		},
		"twice": func(r *reader) error {
			return errors.Join(readThrough(t, r, data, 4, 64<<10, nil), readThrough(t, r, data, 4, 64<<10, nil))
		},
		"some": func(r *reader) error {
			return readThrough(t, r, data, 4, 64<<10, func(off int64) bool { return off/(64<<10)%5 != 3 })
		},
	} {
		r, _ := open()
		r.regions.memory = 300 << 10
		r.ReadInOrder()
		require.NoError(t, read(r), name)
		require.NoError(t, r.Close(), name)
	}
}

func same(r *reader, data []byte, off, length int64) error {
	got := make([]byte, length)
	if _, err := r.ReadAt(got, off); err != nil {
		return err
	}
	if !bytes.Equal(got, data[off:off+length]) {
		return fmt.Errorf("bytes from %d on differ", off)
	}
	return nil
}

// TestReadInOrderInVain: what cannot be fetched is left to the reads, which have the error.
func TestReadInOrderInVain(t *testing.T) {
	open, data := regionImage(t)
	r, c := open()
	c.err = errFull
	r.ReadInOrder()
	require.ErrorIs(t, readThrough(t, r, data, 4, 64<<10, nil), errFull)
	require.NoError(t, r.Close())
}

// TestReadInOrderKeepsToTheMemory: what nobody has come to is fetched as far as there is memory.
func TestReadInOrderKeepsToTheMemory(t *testing.T) {
	open, data := regionImage(t)
	r, _ := open()
	r.regions.memory = 700 << 10 // two stretches
	r.ReadInOrder()
	require.Eventually(t, func() bool { return len(holding(r)) == 2 }, 10*time.Second, time.Millisecond)
	for off := int64(0); off < int64(len(data)); off += 64 << 10 {
		if !block.IsZero(data[off : off+64<<10]) {
			require.NoError(t, same(r, data, off, 64<<10))
		}
		r.regions.mu.Lock()
		held := r.regions.held()
		r.regions.mu.Unlock()
		require.LessOrEqual(t, held, int64(700<<10))
	}
	require.NoError(t, r.Close())
}
