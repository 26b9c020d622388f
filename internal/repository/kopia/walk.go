package kopia

import (
	"context"
	"sync"

	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
)

// aheadSegments is how many segments of an image are loaded at once for a walk through it: 128 MiB of a volume in small chunks. The
// segments of an image that scattered changes have made lie side by side in one pack.
const aheadSegments = 16

// maxPieces is how many pieces of an index are fetched ahead. A segment that Blockmover writes has at most 32.
const maxPieces = 64

// walk loads segments for who goes through an image in ascending order, as a restore does. Without it, each segment costs a request that
// everything else waits for. While one batch of segments is used, the next one is loaded.
type walk struct {
	mu sync.Mutex
	// at is the last batch that was reached, or less than 0.
	at int64
	// batches are those that are loaded, or will be. A channel is closed once that is so.
	batches map[int64]chan struct{}
	loading sync.WaitGroup
}

func newWalk() *walk { return &walk{at: -1, batches: map[int64]chan struct{}{}} }

// reach returns when the segment at an index is loaded, if the walk goes on in order. Who fetches ahead may be a batch before the others. What
// cannot be loaded is left to the read of it, which has the better error.
func (w *walk) reach(ctx context.Context, r *reader, index int64) {
	n := index / aheadSegments
	w.mu.Lock()
	if n == w.at+1 {
		for _, batch := range []int64{n, n + 1} {
			if _, ok := w.batches[batch]; !ok && batch*aheadSegments < int64(len(r.root)) {
				done := make(chan struct{})
				w.batches[batch] = done
				w.loading.Go(func() {
					defer close(done)
					r.loadBatch(r.ctx, batch)
				})
			}
		}
	}
	if n > w.at {
		w.at = n
		for old := range w.batches {
			if old < n-1 {
				delete(w.batches, old)
			}
		}
	}
	done := w.batches[n]
	w.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// loadBatch loads the segments of a batch with few requests. The index of a segment with many pages is in pieces, which its own index names.
func (r *reader) loadBatch(ctx context.Context, batch int64) {
	first := batch * aheadSegments
	end := min(first+aheadSegments, int64(len(r.root)))
	var (
		ids     []content.ID
		divided []object.ID
	)
	for _, id := range r.root[first:end] {
		index, _ := id.IndexObjectID()
		if inner, ok := index.IndexObjectID(); ok {
			divided = append(divided, index)
			index = inner
		}
		if id, _, ok := index.ContentID(); ok {
			ids = append(ids, id)
		}
	}
	ctx, release, err := r.ranges.fetch(ctx, ids)
	if err != nil {
		return
	}
	defer release()
	var pieces []content.ID
	for _, index := range divided {
		pieces = append(pieces, r.pieces(ctx, index)...)
	}
	ctx, releasePieces, err := r.ranges.fetch(ctx, pieces)
	if err != nil {
		return
	}
	defer releasePieces()
	for i := first; i < end; i++ {
		if _, err := r.segment(ctx, r.root[i], r.layout.SegmentLength(i)); err != nil {
			return
		}
	}
}

// pieces returns the contents of an indirect object. It returns none if the index cannot be read.
func (r *reader) pieces(ctx context.Context, id object.ID) []content.ID {
	o, err := r.rep.OpenObject(ctx, id)
	if err != nil {
		return nil
	}
	defer o.Close() //nolint:errcheck // it holds nothing
	var ids []content.ID
	err = readIndex(ctx, r.rep, id, o.Length(), maxPieces, func(e entry) error {
		if id, _, ok := e.Object.ContentID(); ok {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return ids
}
