package datapath

import (
	"context"
	"math/bits"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/blockmover/blockmover/internal/device"
)

// buffers lends memory for what is in flight, up to a limit. Many small items can so wait for a slow device
// at once in the memory of a few large ones.
type buffers struct {
	limit int64
	lent  *semaphore.Weighted

	mu sync.Mutex
	// free has what was given back, by size. Together with what is lent, it is at most the limit.
	free map[int64][][]byte
	kept int64
	used int64
}

// newBuffers makes buffers with a limit in bytes. Larger ones are not lent.
func newBuffers(limit int64) *buffers {
	limit = roundUp(limit)
	return &buffers{limit: limit, lent: semaphore.NewWeighted(limit), free: map[int64][][]byte{}}
}

// roundUp returns the next power of two, so that buffers fit items of similar sizes.
func roundUp(n int64) int64 { return 1 << bits.Len64(uint64(max(n, 1)-1)) }

// get waits for a buffer of at least size bytes. put gives it back.
func (b *buffers) get(ctx context.Context, size int64) ([]byte, error) {
	size = roundUp(size)
	if err := b.lent.Acquire(ctx, size); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += size
	if list := b.free[size]; len(list) > 0 {
		b.free[size] = list[:len(list)-1]
		b.kept -= size
		return list[len(list)-1], nil
	}
	if b.used+b.kept > b.limit {
		// What is free has other sizes.
		clear(b.free)
		b.kept = 0
	}
	return device.NewBuffer(int(size)), nil
}

func (b *buffers) put(buf []byte) {
	size := int64(len(buf))
	b.mu.Lock()
	b.free[size] = append(b.free[size], buf)
	b.kept += size
	b.used -= size
	b.mu.Unlock()
	b.lent.Release(size)
}
