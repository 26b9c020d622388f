package block_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
)

func TestGeometry(t *testing.T) {
	for _, c := range []struct {
		size, chunk, chunks, padded, lastLength int64
	}{
		{1, 4096, 1, 4096, 1},
		{4096, 4096, 1, 4096, 4096},
		{4097, 4096, 2, 8192, 1},
		{10<<20 + 512, 1 << 20, 11, 11 << 20, 512},
	} {
		g := geometry(t, c.size, c.chunk)
		require.Equal(t, c.size, g.Size())
		require.Equal(t, c.chunks, g.Chunks())
		require.Equal(t, c.padded, g.PaddedSize())
		require.Equal(t, block.Extent{Offset: c.padded - c.chunk, Length: c.lastLength}, g.Extent(c.chunks-1))
		require.NoError(t, g.CheckChunk(c.chunks-1))
		require.Error(t, g.CheckChunk(c.chunks))
		require.Error(t, g.CheckChunk(-1))
		require.Equal(t, c.chunks-1, g.ChunkAt(c.size-1))
	}
}

func TestNewGeometryRefuses(t *testing.T) {
	for _, c := range []struct{ size, chunk int64 }{
		{0, 1 << 20}, {-1, 1 << 20}, {1<<50 + 1, 1 << 20}, {1, 0}, {1, 2048}, {1, 8 << 20}, {1, 3 << 20}, {1, -4096},
	} {
		_, err := block.NewGeometry(c.size, c.chunk)
		require.Error(t, err, "%+v", c)
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 511, 4096, 4097, 1 << 16} {
		data := make([]byte, n)
		require.True(t, block.IsZero(data))
		for _, i := range []int{0, n / 2, n - 1} {
			if i < 0 || i >= n {
				continue
			}
			data[i] = 1
			require.False(t, block.IsZero(data), "%d of %d", i, n)
			data[i] = 0
		}
	}
}
