package repository

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDefaultChunkSize(t *testing.T) {
	for _, c := range []struct{ size, want int64 }{
		{1, 64 << 10},
		{16 << 30, 64 << 10},
		{16<<30 + 1, 128 << 10},
		{64 << 30, 128 << 10},
		{256 << 30, 256 << 10},
		{1 << 40, 512 << 10},
		{1<<40 + 1, 1 << 20},
		{64 << 40, 1 << 20},
	} {
		require.Equal(t, c.want, DefaultChunkSize(c.size), "%d", c.size)
	}
}

func TestMetaWithDefaults(t *testing.T) {
	require.Equal(t, Meta{Size: 5, ChunkSize: 64 << 10, SegmentSize: 8 << 20, PageSize: 8 << 10}, Meta{Size: 5}.WithDefaults())
	require.Equal(t, Meta{Size: 2 << 40, ChunkSize: 1 << 20, SegmentSize: 128 << 20, PageSize: 16 << 10}, Meta{Size: 2 << 40}.WithDefaults())
	given := Meta{Size: 5, ChunkSize: 4 << 10, SegmentSize: 8 << 10, PageSize: 4 << 10}
	require.Equal(t, given, given.WithDefaults())
	require.Equal(t, int64(4<<10), Meta{ChunkSize: 4 << 10}.WithDefaults().PageSize, "a page is not larger than a chunk")
}
