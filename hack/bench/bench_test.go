package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"64Mi": 64 * mib, "4Gi": 4 * gib, "1Ti": tib, "1024000Ki": 1000 * mib} {
		got, err := parseSize(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "4", "63Mi", "4g", "-4Gi", "1025Gi", "4GG", "4G", "64M"} {
		_, err := parseSize(text)
		require.Error(t, err, text)
	}
}

func TestMix(t *testing.T) {
	const size = 64 * mib
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	allocated, err := fillMix(t.Context(), path, size, bytes.Repeat([]byte("a word "), 1<<10), 1)
	require.NoError(t, err)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, data, size)
	require.Equal(t, int64(size/mib*mixRandom/mixTotal+size/mib*mixText/mixTotal)*mib, total(allocated))
	end := int64(0)
	for _, e := range allocated {
		require.True(t, block.IsZero(data[end:e.Offset]), "what is not allocated is zero")
		for off := e.Offset; off < e.End(); off += mib {
			require.False(t, block.IsZero(data[off:off+mib]))
		}
		end = e.End()
	}
	require.True(t, block.IsZero(data[end:]))
}

func TestCorpus(t *testing.T) {
	dir := t.TempDir()
	_, err := readCorpus(dir)
	require.Error(t, err, "nothing")
	_, err = readCorpus(filepath.Join(dir, "gone"))
	require.Error(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "text"), make([]byte, 2*mib), 0o600))
	_, err = readCorpus(dir)
	require.Error(t, err, "no Go file")
	for _, length := range []int{mib, mib + 1} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "a.go"), make([]byte, length), 0o600))
		corpus, err := readCorpus(dir)
		require.NoError(t, err)
		require.Equal(t, 1, len(corpus)%2)
		require.LessOrEqual(t, len(corpus), length)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "b.go"), make([]byte, maxCorpus), 0o600))
	corpus, err := readCorpus(dir)
	require.NoError(t, err)
	require.Len(t, corpus, maxCorpus-1)
}

func TestText(t *testing.T) {
	text := newText([]byte("abc"), 1)
	p := make([]byte, 8)
	text.fill(p)
	rest := make([]byte, 3)
	text.fill(rest)
	require.Contains(t, "abcabcabcabcabc", string(p)+string(rest))
}

func TestPlaces(t *testing.T) {
	const slots = 1000
	rnd := rand.New(rand.NewPCG(1, 2))
	require.Len(t, scattered(rnd, slots, 2*slots), slots)
	places := hot(rnd, slots, 10*slots)
	counts := map[int64]int{}
	for _, p := range places {
		require.True(t, p >= 0 && p < slots)
		counts[p]++
	}
	top := slices.Sorted(func(yield func(int) bool) {
		for _, n := range counts {
			if !yield(-n) {
				return
			}
		}
	})
	require.Greater(t, -top[0], 10*slots/20, "the hottest place has more than 5 %")
	require.Greater(t, len(top), slots/10, "and many others have some")
}

func TestChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, make([]byte, mib), 0o600))
	changed, err := change(path, []int64{9, 3, 2, 3}, 4*kib, 1)
	require.NoError(t, err)
	require.Equal(t, []block.Extent{{Offset: 8 * kib, Length: 8 * kib}, {Offset: 36 * kib, Length: 4 * kib}}, changed)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, block.IsZero(data[:8*kib]))
	require.False(t, block.IsZero(data[8*kib:12*kib]))
	require.NotEqual(t, data[8*kib:12*kib], data[12*kib:16*kib])
}

func TestMedians(t *testing.T) {
	m := medians([]sample{{Seconds: 3, Grew: 10}, {Seconds: 1, Grew: 30}, {Seconds: 2, Grew: 20}})
	require.Equal(t, sample{Seconds: 2, Grew: 20}, m)
	require.Zero(t, medians(nil))
}
