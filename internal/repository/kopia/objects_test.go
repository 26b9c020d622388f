package kopia

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

func random(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

func TestCompressionMethod(t *testing.T) {
	for _, c := range repository.Compressions {
		_, err := compressionMethod(c)
		require.NoError(t, err)
	}
	byDefault, err := compressionMethod("")
	require.NoError(t, err)
	s2, err := compressionMethod(repository.S2)
	require.NoError(t, err)
	require.Equal(t, s2, byDefault)
	_, err = compressionMethod("gzip")
	require.ErrorContains(t, err, `"gzip"`)
}

func TestCompressible(t *testing.T) {
	program, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	words := bytes.Repeat([]byte("what a log file says again and again, "), 1<<15)
	for _, size := range []int{512, 4 << 10, 8 << 10, 64 << 10, 1 << 20} {
		require.False(t, compressible(random(size)), "random bytes, %d", size)
		require.True(t, compressible(words[:size]), "text, %d", size)
		require.True(t, compressible(program[1<<20:][:size]), "program, %d", size)
		require.True(t, compressible(make([]byte, size)), "zeros, %d", size)
	}
}

// TestCompression compares the size of the same volume in the repository.
func TestCompression(t *testing.T) {
	const size = 256 << 10
	stored := func(data []byte, c repository.Compression) int64 {
		dir := newRepository(t)
		s := openStore(t, dir)
		meta := testMeta(size, testTime)
		meta.ChunkSize, meta.SegmentSize = 64<<10, 128<<10
		o := nextOperation("")
		o.Compression = c
		w, err := s.NewWriter(t.Context(), meta, o)
		require.NoError(t, err)
		for chunk := range int64(size >> 16) {
			require.NoError(t, w.Put(t.Context(), chunk, chunkOf(meta, data, chunk)))
		}
		id, _ := commit(t, w)
		r, err := s.OpenReader(t.Context(), id)
		require.NoError(t, err)
		got := make([]byte, size)
		_, err = r.ReadAt(got, 0)
		require.NoError(t, err)
		require.Equal(t, data, got)

		var n int64
		err = filepath.WalkDir(filepath.Join(dir, "p"), func(_ string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			n += info.Size()
			return err
		})
		require.NoError(t, err)
		return n
	}
	require.Greater(t, stored(random(size), repository.DefaultCompression), int64(size))
	bits := random(size)
	for i := range bits {
		bits[i] &= 1
	}
	require.Less(t, stored(bits, repository.Zstd), int64(size/2))
	words := bytes.Repeat([]byte("what a log file says again and again, "), size/38+1)[:size]
	require.Less(t, stored(words, repository.S2), int64(size/2))
	require.Greater(t, stored(bits, repository.NoCompression), int64(size))
}
