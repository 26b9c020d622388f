// Package devicetest holds the contract of device.Writer as a test suite, and a
// device that fails on demand.
package devicetest

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
)

// Contract runs the suite. open returns a device that holds the given bytes. If the block
// size asks for it, the device may have another size.
func Contract(t *testing.T, open func(t *testing.T, data []byte) device.Writer) {
	t.Helper()
	t.Run("reads what it holds", func(t *testing.T) {
		d, model := start(t, open)
		requireEqual(t, d, model)
	})
	t.Run("refuses accesses outside", func(t *testing.T) {
		d, model := start(t, open)
		size := d.Size()
		for _, off := range []int64{-1, size - 1, size, size + 1, 1 << 62} {
			_, err := d.ReadAt(make([]byte, 2), off)
			require.ErrorIs(t, err, io.EOF, "read at %d", off)
			_, err = d.WriteAt(make([]byte, 2), off)
			require.ErrorIs(t, err, io.EOF, "write at %d", off)
			require.Error(t, d.Zero(block.Extent{Offset: off, Length: 2}), "zero at %d", off)
		}
		require.Error(t, d.Zero(block.Extent{Offset: 0, Length: 0}))
		requireEqual(t, d, model)
	})
	t.Run("keeps random writes and zeros", func(t *testing.T) {
		d, model := start(t, open)
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 300 {
			off := rnd.Int64N(d.Size())
			e := block.Extent{Offset: off, Length: 1 + rnd.Int64N(min(d.Size()-off, 64<<10))}
			if rnd.IntN(3) > 0 { // aligned accesses take another path
				e = align(e, d.Size())
			}
			if rnd.IntN(2) == 0 {
				require.NoError(t, device.Zero(t.Context(), d, e))
				clear(model[e.Offset:e.End()])
				continue
			}
			buf := device.NewBuffer(int(e.Length))
			fill(rnd, buf)
			n, err := d.WriteAt(buf, e.Offset)
			require.NoError(t, err)
			require.Len(t, buf, n)
			copy(model[e.Offset:], buf)
		}
		requireEqual(t, d, model)
		require.NoError(t, d.Sync())
		requireEqual(t, d, model)
	})
	t.Run("zeroes all of it", func(t *testing.T) {
		d, model := start(t, open)
		require.NoError(t, device.Zero(t.Context(), d, block.Extent{Length: d.Size()}))
		clear(model)
		requireEqual(t, d, model)
		require.NoError(t, d.Sync())
	})
}

func start(t *testing.T, open func(t *testing.T, data []byte) device.Writer) (device.Writer, []byte) {
	t.Helper()
	// Neither a multiple of 4096 nor of a megabyte.
	model := make([]byte, 3<<20+512)
	fill(rand.New(rand.NewPCG(3, 4)), model)
	d := open(t, bytes.Clone(model))
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	require.Positive(t, d.BlockSize())
	if d.Size() < int64(len(model)) {
		model = model[:d.Size()]
	}
	require.Equal(t, int64(len(model)), d.Size())
	return d, model
}

func requireEqual(t *testing.T, d device.Reader, model []byte) {
	t.Helper()
	for _, buf := range [][]byte{device.NewBuffer(len(model)), make([]byte, len(model)+1)[1:]} {
		n, err := d.ReadAt(buf, 0)
		require.NoError(t, err)
		require.Len(t, model, n)
		require.True(t, bytes.Equal(model, buf), "device differs from the model")
	}
}

func align(e block.Extent, size int64) block.Extent {
	const unit = 4096
	start := e.Offset / unit * unit
	end := min(size, (e.End()+unit-1)/unit*unit)
	return block.Extent{Offset: start, Length: end - start}
}

func fill(rnd *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(1 + rnd.UintN(255))
	}
}
