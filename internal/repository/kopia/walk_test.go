package kopia

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
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

// vanished has no more packs after some requests.
type vanished struct {
	counting
	after int64
	repo  string
}

func (v *vanished) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	if err := v.counting.GetBlob(ctx, id, offset, length, output); err != nil || v.requests.Load() != v.after {
		return err
	}
	return filepath.WalkDir(v.repo, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(strings.TrimPrefix(path, v.repo), "/q") {
			return os.Remove(path)
		}
		return err
	})
}

// TestWalkLoadsPieces: the indexes of segments with many pages are in pieces. All of them come with a few requests, and nothing else is read.
func TestWalkLoadsPieces(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(16<<20, testTime)
	meta.ChunkSize, meta.SegmentSize, meta.PageSize = 64<<10, 2<<20, 4<<10
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	w, err := s.NewWriter(t.Context(), meta, nextOperation(full))
	require.NoError(t, err)
	for c := range meta.Size / meta.ChunkSize {
		data[c*meta.ChunkSize] ^= 1
		require.NoError(t, w.PutPages(t.Context(), c, []repository.Pages{{Data: data[c*meta.ChunkSize:][:meta.ChunkSize]}}))
	}
	id, _ := commit(t, w)

	r, err := s.openReader(t.Context(), id)
	require.NoError(t, err)
	v := &vanished{counting: counting{Reader: r.ranges.blobs}, after: 2, repo: dir}
	r.ranges.blobs = v
	for _, id := range r.root {
		index, _ := id.IndexObjectID()
		_, divided := index.IndexObjectID()
		require.True(t, divided, "a segment has %d entries", 512)
	}
	r.loadBatch(t.Context(), 0)
	require.Len(t, r.cache, len(r.root))
	require.Equal(t, v.after, v.requests.Load(), "one for the indexes, one for their pieces")
}
