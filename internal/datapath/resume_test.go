package datapath_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
)

func (m *image) Matches(_ context.Context, chunk int64, data []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	want := m.chunks[chunk]
	if want == nil {
		want = make([]byte, chunkSize)
	}
	return bytes.Equal(want, data), m.fail
}

// counted is an image that counts the bytes that are fetched.
type counted struct {
	reader
	bytes atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.bytes.Add(int64(len(p)))
	return c.reader.ReadAt(p, off)
}

// TestRestoreGoesOn: whatever part of the device is right before, all of it is right in the
// end, and only what was wrong is fetched.
func TestRestoreGoesOn(t *testing.T) {
	const size = 100*chunkSize + 512
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		var chunks []int64
		for c := range int64(101) {
			if rnd.IntN(3) > 0 {
				chunks = append(chunks, c)
			}
		}
		img, want := filled(size, chunks...)
		got := random(9, size+5000)
		copy(got, want)
		var wrong int64
		for _, c := range chunks {
			if n := min(chunkSize, size-c*chunkSize); rnd.IntN(4) == 0 {
				got[c*chunkSize+rnd.Int64N(n)] ^= 1
				wrong += n
			}
		}
		got[len(got)-1] = 1
		c := &counted{reader: img}
		o := datapath.Options{
			Workers: 1 + rnd.IntN(4), ReadSize: int64(1+rnd.IntN(5)) * chunkSize,
			Verify: rnd.IntN(2) == 0, Resume: true, Progress: &datapath.Progress{},
		}
		stats, err := datapath.Restore(t.Context(), c, device.NewMemory(got, 512), o)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got[:size]))
		require.True(t, block.IsZero(got[size:]))
		require.Equal(t, wrong, c.bytes.Load())
		require.Equal(t, wrong, stats.BytesWritten)
		require.Equal(t, int64(len(got)), stats.BytesWritten+stats.BytesFound+stats.ZeroBytes)
		require.Equal(t, o.Progress.Total(), o.Progress.Done())
	}
}

func TestResumeReportsFaults(t *testing.T) {
	broken := errors.New("broken")
	for _, what := range []string{"device", "image"} {
		img, want := filled(10*chunkSize, 1, 2)
		dev := devicetest.NewFaulty(device.NewMemory(want, 512))
		if what == "device" {
			dev.Fail(devicetest.Read, 0, broken)
		} else {
			img.fail = broken
		}
		_, err := datapath.Restore(t.Context(), img, dev, datapath.Options{Resume: true})
		require.ErrorIs(t, err, broken, what)
	}
}
