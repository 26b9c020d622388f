package cbt_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

// hostile is a storage that says anything. Each message has a byte of flags: blocks of fixed length, another capacity, the
// stream breaks after it. Then comes the number of blocks, and for each its offset and its length.
type hostile struct {
	text []byte
	size int64
}

func (h *hostile) take(n int) []byte {
	b := make([]byte, 8)
	n = copy(b, h.text[:min(n, len(h.text))])
	h.text = h.text[n:]
	return b
}

func (h *hostile) Allocated(_ context.Context, _ int64, record func(cbt.Batch) error) error {
	for len(h.text) > 0 {
		flags, count := h.take(1)[0], h.take(1)[0]
		b := cbt.Batch{Fixed: flags&1 != 0, Capacity: h.size}
		if flags&2 != 0 {
			b.Capacity = int64(binary.LittleEndian.Uint64(h.take(8)))
		}
		for range count & 15 {
			width := 2 + 6*int(flags>>2&1) // small numbers, or any
			b.Blocks = append(b.Blocks, block.Extent{
				Offset: int64(binary.LittleEndian.Uint64(h.take(width))) << (flags >> 4), Length: int64(binary.LittleEndian.Uint64(h.take(width))) << (flags >> 4),
			})
		}
		if err := record(b); err != nil {
			return err
		}
		if flags&8 != 0 {
			return fmt.Errorf("%w: as the input wants it", cbt.ErrInterrupted)
		}
	}
	return nil
}

func (h *hostile) Changed(ctx context.Context, _ cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	return h.Allocated(ctx, from, record)
}

// FuzzCollect: what a storage says is an error, or blocks inside of the volume.
func FuzzCollect(f *testing.F) {
	f.Add([]byte{0, 2, 0, 0, 1, 0, 9, 0, 1, 0}, int64(1<<20))
	f.Add([]byte{0xc1, 2, 0, 0, 16, 0, 32, 0, 16, 0, 0xc9, 1, 64, 0, 16, 0}, int64(1<<20+512))
	f.Add([]byte{4, 1, 0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, int64(1<<40))
	f.Fuzz(func(t *testing.T, text []byte, size int64) {
		if size < 1 || size > 1<<42 {
			return // the size is that of the device
		}
		input := &hostile{text: text, size: size}
		var bitmap *block.Bitmap
		var err error
		// What is collected takes a container for each 64 Ki pages that have a block, and a pointer for all others.
		empty := uint64(size/(block.PageSize(size)<<16)) * 64
		fuzztest.Document(t, len(text)*64+int(empty), func() {
			bitmap, _, err = cbt.CollectAllocated(t.Context(), input, size, cbt.Options{Backoff: time.Nanosecond})
		})
		if err != nil {
			require.Nil(t, bitmap)
			return
		}
		end := int64(0)
		for e := range bitmap.Extents(block.Extent{Length: size}) {
			require.NoError(t, e.CheckWithin(size))
			require.GreaterOrEqual(t, e.Offset, end)
			end = e.End()
		}
		require.LessOrEqual(t, bitmap.Bytes(), size)
	})
}
