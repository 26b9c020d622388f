package kopia

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/kopia/kopia/repo/blob"
	"github.com/stretchr/testify/require"
)

// memoryPacks are packs in memory. They count their reads.
type memoryPacks struct {
	blob.Storage
	packs map[blob.ID][]byte
	reads int
}

var errRange = errors.New("outside of the pack")

func (m *memoryPacks) GetBlob(_ context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	m.reads++
	pack := m.packs[id]
	if length < 0 {
		length = int64(len(pack)) - offset
	}
	if offset < 0 || offset+length > int64(len(pack)) {
		return errRange
	}
	output.Reset()
	_, err := output.Write(pack[offset:][:length])
	return err
}

func TestWindows(t *testing.T) {
	pack := make([]byte, 3*windowSize+1000)
	random := rand.New(rand.NewPCG(1, 1))
	for i := range pack {
		pack[i] = byte(random.Uint32())
	}
	under := &memoryPacks{packs: map[blob.ID][]byte{"q1": pack, "p1": pack}}
	s := &windowStorage{Storage: under, known: map[blob.ID]window{}}
	read := func(id blob.ID, offset, length int64) (reads int) {
		t.Helper()
		before := under.reads
		var buf rangeBuffer
		require.NoError(t, s.GetBlob(t.Context(), id, offset, length, &buf))
		require.True(t, bytes.Equal(pack[offset:offset+length], buf), "%d bytes at %d", length, offset)
		return under.reads - before
	}
	size := int64(len(pack))
	require.Equal(t, 1, read("q1", size-700, 700), "what was written last is read first")
	require.Equal(t, 0, read("q1", size-900, 200))
	require.Equal(t, 0, read("q1", size-windowSize, 300))
	require.Equal(t, 1, read("q1", 0, 300))
	require.Equal(t, 1, read("q1", 300, 300), "reads that go on look ahead")
	require.Equal(t, 0, read("q1", 600, 300))
	require.Equal(t, 1, read("q1", size-windowSize/2, 300))
	require.Equal(t, 2, read("q1", size-300, 300), "past the end there is nothing to look at")
	require.Equal(t, 1, read("p1", size-700, 700), "data is read as it is asked for")
	require.Equal(t, 1, read("p1", size-700, 700))
	require.Equal(t, 1, read("q1", 0, 2*windowSize))
	for range 2000 {
		offset := random.Int64N(size)
		read("q1", offset, 1+random.Int64N(min(size-offset, 2000)))
	}
	var buf rangeBuffer
	require.ErrorIs(t, s.GetBlob(t.Context(), "q1", size-10, 20, &buf), errRange)
	require.ErrorIs(t, s.GetBlob(t.Context(), "q2", 0, 20, &buf), errRange, "a pack that is gone")
	for n := range 2 * windows {
		under.packs[blob.ID([]byte{'q', byte(n)})] = pack
		read(blob.ID([]byte{'q', byte(n)}), 5, 5)
	}
	require.Len(t, s.known, windows)
}
