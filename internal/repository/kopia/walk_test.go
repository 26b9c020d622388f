package kopia

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/kopia/kopia/repo/blob"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

// counting counts requests, and fails them if it is told to.
type counting struct {
	blob.Reader
	requests atomic.Int64
	err      error
}

func (c *counting) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	c.requests.Add(1)
	if c.err != nil {
		return c.err
	}
	return c.Reader.GetBlob(ctx, id, offset, length, output)
}

// walkImage is an image of 100 segments.
func walkImage(t *testing.T) (open func() (*reader, *counting), meta repository.Meta) {
	t.Helper()
	s := openStore(t, newRepository(t))
	meta = testMeta(100*16<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	clear(data[20<<10 : 24<<10])
	id, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	return func() (*reader, *counting) {
		r, err := s.openReader(t.Context(), id)
		require.NoError(t, err)
		c := &counting{Reader: r.ranges.blobs}
		r.ranges.blobs = c
		return r, c
	}, meta
}

// walkThrough asks for each step-th chunk in ascending order.
func walkThrough(t *testing.T, r *reader, meta repository.Meta, step int64) {
	t.Helper()
	for c := int64(0); c < meta.Size/meta.ChunkSize; c += step {
		zero, err := r.IsZero(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, c == 5, zero)
	}
	require.NoError(t, r.Close())
}

func TestWalkLoadsSegmentsTogether(t *testing.T) {
	open, meta := walkImage(t)
	for _, step := range []int64{1, 3, 20} {
		r, c := open()
		walkThrough(t, r, meta, step)
		require.LessOrEqual(t, c.requests.Load(), int64(7), "one for 16 segments, in steps of %d chunks", step)
	}
}

// TestWalkFollowsNoJumps: who looks here and there gets what it asks for.
func TestWalkFollowsNoJumps(t *testing.T) {
	open, meta := walkImage(t)
	r, c := open()
	for _, chunk := range []int64{390, 130, 399, 200, 5} {
		zero, err := r.IsZero(t.Context(), chunk)
		require.NoError(t, err)
		require.Equal(t, chunk == 5, zero)
	}
	require.NoError(t, r.Close())
	require.Zero(t, c.requests.Load())
	require.Equal(t, int64(100), meta.Size/meta.SegmentSize)
}

// TestWalkInVain: what the walk cannot load is loaded when it is needed, which gives the error.
func TestWalkInVain(t *testing.T) {
	open, meta := walkImage(t)
	r, c := open()
	c.err = errFull
	walkThrough(t, r, meta, 1)
	require.NotZero(t, c.requests.Load())

	r, _ = open()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.walk.batches[0], r.walk.at = make(chan struct{}), 0 // it never ends
	r.walk.reach(ctx, r, 3)
}
