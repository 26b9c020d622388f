package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/policy"
)

func TestChunks(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		percent               policy.Percent
		unchanged, size, want int64
	}{
		{0, 1000, mib, 0},
		{1, 0, mib, 0},
		{1, 10, mib, 10},
		{1, 100, mib, 16},
		{1, 10000, mib, 100},
		{1, 10001, mib, 101},
		{100, 1000, mib, 1000},
		{100, 10000, mib, 1024},
		{1, 1 << 26, mib, 1024},
		{100, 1 << 30, 4096, 1 << 18},
		{100, 1000, 4 * mib, 256},
		{0.001, 1 << 20, mib, 16},
	} {
		require.Equal(t, c.want, countChunks(c.percent, c.unchanged, c.size), "%v of %d chunks of %d", c.percent, c.unchanged, c.size)
	}
}

const chunk = 4 << 10

// volume is a device of n chunks of ones, and its image.
type volume struct {
	data  []byte
	image []byte
	err   error
}

func newVolume(n int64) *volume {
	data := bytes.Repeat([]byte{1}, int(n*chunk))
	return &volume{data: data, image: bytes.Clone(data)}
}

func (v *volume) Matches(_ context.Context, c int64, data []byte) (bool, error) {
	want := make([]byte, chunk)
	copy(want, v.image[c*chunk:])
	return bytes.Equal(want, data), v.err
}

func (v *volume) input(t *testing.T, percent policy.Percent, seed string, changed ...block.Extent) Input {
	t.Helper()
	g, err := block.NewGeometry(int64(len(v.data)), chunk)
	require.NoError(t, err)
	b, err := block.NewBitmap(g.Size(), chunk/4)
	require.NoError(t, err)
	for _, e := range changed {
		require.NoError(t, b.Set(e))
	}
	return Input{Percent: percent, Seed: seed, Device: bytes.NewReader(v.data), Geometry: g, Changed: b, Image: v}
}

// TestSample: the sample has the right number of chunks, spread over the volume, and none
// that has changed. The same seed gives the same sample.
func TestSample(t *testing.T) {
	v := newVolume(1000)
	changed := []block.Extent{{Offset: 0, Length: 1}, {Offset: 500*chunk - 1, Length: 2}, {Offset: 999 * chunk, Length: chunk}}
	in := v.input(t, 10, "op-1", changed...)
	sample := in.sample()
	require.Len(t, sample, 100)
	require.IsIncreasing(t, sample)
	for i, c := range sample {
		require.False(t, in.Changed.AnyIn(in.Geometry.Extent(c)), "chunk %d", c)
		require.InDelta(t, i*10, c, 15, "one of each ten")
	}
	require.Equal(t, sample, v.input(t, 10, "op-1", changed...).sample())
	require.NotEqual(t, sample, v.input(t, 10, "op-2", changed...).sample())

	all := v.input(t, 100, "op", changed...).sample()
	require.Len(t, all, 996)
	require.IsIncreasing(t, all)
	require.Empty(t, v.input(t, 0, "op").sample())
	require.Empty(t, v.input(t, 100, "op", block.Extent{Length: 1000 * chunk}).sample(), "all is read anyway")
}

// TestEachChunkHasItsTurn: over many backups, every chunk is compared.
func TestEachChunkHasItsTurn(t *testing.T) {
	v := newVolume(300)
	seen := map[int64]bool{}
	for i := range 400 {
		for _, c := range v.input(t, 1, fmt.Sprint(i)).sample() {
			seen[c] = true
		}
	}
	require.Len(t, seen, 300)
}

func TestRun(t *testing.T) {
	v := newVolume(100)
	v.data, v.image = v.data[:len(v.data)-100], v.image[:len(v.image)-100] // the last chunk is short
	result, err := Run(t.Context(), v.input(t, 100, "op"))
	require.NoError(t, err)
	require.Equal(t, Result{Chunks: 100, Bytes: 100*chunk - 100}, result)

	result, err = Run(t.Context(), v.input(t, 0, "op"))
	require.NoError(t, err)
	require.Zero(t, result)

	for _, at := range []int{0, 37*chunk + 5, len(v.data) - 1} {
		v.data[at]++
		result, err = Run(t.Context(), v.input(t, 100, "op"))
		require.NoError(t, err)
		require.True(t, result.Differs)
		require.EqualValues(t, at/chunk*chunk, result.Offset)
		result, err = Run(t.Context(), v.input(t, 100, "op", block.Extent{Offset: int64(at), Length: 1}))
		require.NoError(t, err)
		require.False(t, result.Differs, "the storage has said so")
		v.data[at]--
	}
}

func TestRunFails(t *testing.T) {
	v := newVolume(100)
	in := v.input(t, 1, "op")
	in.Device = bytes.NewReader(nil)
	_, err := Run(t.Context(), in)
	require.ErrorIs(t, err, ErrDevice)

	v.err = errors.New("segment is gone")
	_, err = Run(t.Context(), v.input(t, 1, "op"))
	require.ErrorIs(t, err, v.err)
	require.NotErrorIs(t, err, ErrDevice)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Run(ctx, newVolume(100).input(t, 1, "op"))
	require.ErrorIs(t, err, context.Canceled)
}

// TestRunFindsAsOftenAsTheSampleSizePredicts: if k of N chunks have changed, a sample of n
// misses all of them with a probability of (1-k/N)^n.
func TestRunFindsAsOftenAsTheSampleSizePredicts(t *testing.T) {
	const chunks, runs = 1000, 2000
	for _, c := range []struct {
		percent policy.Percent
		n       int64
		changed int
	}{{1, 16, 1}, {1, 16, 50}, {5, 50, 10}, {10, 100, 3}, {10, 100, 40}} {
		t.Run(fmt.Sprintf("%v, %d changed", c.percent, c.changed), func(t *testing.T) {
			v := newVolume(chunks)
			for i := range c.changed {
				v.data[(i*chunks/c.changed+7)*chunk]++
			}
			require.Len(t, v.input(t, c.percent, "").sample(), int(c.n))
			found := 0
			for i := range runs {
				result, err := Run(t.Context(), v.input(t, c.percent, fmt.Sprint("op-", i)))
				require.NoError(t, err)
				if result.Differs {
					found++
				}
			}
			p := 1 - math.Pow(1-float64(c.changed)/chunks, float64(c.n))
			deviation := math.Sqrt(p * (1 - p) / runs)
			t.Logf("found in %.3f of the runs, predicted %.3f", float64(found)/runs, p)
			require.InDelta(t, p, float64(found)/runs, 3*deviation+0.005)
		})
	}
}
