package datapath

import (
	"context"

	"golang.org/x/sync/semaphore"

	"github.com/blockmover/blockmover/internal/arena"
)

// bufferSlab is the memory that is made at once: as much as the largest items need.
const bufferSlab = 4 << 20

// buffers lends memory for what is in flight, up to a limit. Many small items can so wait for a slow device
// at once in the memory of a few large ones.
type buffers struct {
	lent  *semaphore.Weighted
	arena *arena.Arena
}

// newBuffers makes buffers with a limit in bytes. Larger ones are not lent.
func newBuffers(limit int64) *buffers {
	return &buffers{lent: semaphore.NewWeighted(limit), arena: arena.New(int(min(bufferSlab, limit)), int(limit))}
}

// get waits for a buffer of size bytes. put gives it back.
func (b *buffers) get(ctx context.Context, size int64) (arena.Part, error) {
	if err := b.lent.Acquire(ctx, size); err != nil {
		return arena.Part{}, err
	}
	return b.arena.Get(int(size)), nil
}

func (b *buffers) put(p arena.Part) {
	size := int64(len(p.Bytes))
	p.Free()
	b.lent.Release(size)
}
