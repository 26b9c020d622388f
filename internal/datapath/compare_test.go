package datapath_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
)

// spoiled is a device with a content and some bytes of it changed. It returns the blocks of 4 KiB
// that have changed.
func spoiled(rnd *rand.Rand, want []byte) (got []byte, changed []block.Extent) {
	got = bytes.Clone(want)
	for off := 0; off < len(got); off += 4096 {
		if rnd.IntN(20) == 0 {
			end := min(off+4096, len(got))
			got[off+rnd.IntN(end-off)] ^= 1
			changed = append(changed, block.Extent{Offset: int64(off), Length: int64(end - off)})
		}
	}
	return got, changed
}

// TestCompareWritesOnlyWhatDiffers: whatever has changed, in data, in holes and beyond the image,
// is right in the end, and nothing else is written.
func TestCompareWritesOnlyWhatDiffers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 1))
	for range 50 {
		size := int64(1+rnd.IntN(100))*chunkSize + int64(rnd.IntN(2))*512
		var chunks []int64
		for c := range (size + chunkSize - 1) / chunkSize {
			if rnd.IntN(3) > 0 {
				chunks = append(chunks, c)
			}
		}
		img, want := filled(size, chunks...)
		want = append(want, make([]byte, rnd.IntN(3)*(chunkSize+512))...)
		got, changed := spoiled(rnd, want)
		only := bitmap(t, int64(len(want)), changed...)
		if rnd.IntN(2) == 0 {
			only = nil
		}
		disk := device.NewMemory(got, 512)
		dev := devicetest.NewFaulty(disk)
		o := datapath.Options{
			Workers: 1 + rnd.IntN(4), ReadSize: int64(1+rnd.IntN(5)) * chunkSize,
			Compare: true, Only: only, Verify: only == nil && rnd.IntN(2) == 0, Progress: &datapath.Progress{},
		}
		stats, err := datapath.Restore(t.Context(), img, dev, o)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		var bad int64
		for _, e := range changed {
			bad += e.Length
		}
		require.GreaterOrEqual(t, 2*bad, stats.BytesWritten+stats.ZeroBytes, "a block on the border of the image is two")
		require.GreaterOrEqual(t, stats.BytesWritten+stats.ZeroBytes, bad/2)
		if only == nil {
			require.Equal(t, int64(len(got)), stats.BytesWritten+stats.ZeroBytes+stats.BytesFound)
		}
		if len(changed) == 0 {
			require.Zero(t, dev.Calls(devicetest.Write)+dev.Calls(devicetest.Zero))
		}
		require.Equal(t, o.Progress.Total(), o.Progress.Done())
	}
}

// TestCompareWritesBlocks: of a chunk of which one block differs, that block is written.
func TestCompareWritesBlocks(t *testing.T) {
	img, want := filled(8*chunkSize, 0, 1, 2, 3)
	got := bytes.Clone(want)
	got[chunkSize] ^= 1   // data
	got[6*chunkSize] ^= 1 // a hole
	stats, err := datapath.Restore(t.Context(), img, device.NewMemory(got, 512), datapath.Options{Compare: true})
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, datapath.RestoreStats{BytesWritten: 4096, ZeroBytes: 4096, BytesFound: 8*chunkSize - 8192}, stats)
}

// TestOnlyLeavesTheRest: what is not chosen is neither read nor written.
func TestOnlyLeavesTheRest(t *testing.T) {
	img, want := filled(8*chunkSize, 0, 1, 2, 3)
	got := random(3, 9*chunkSize)
	before := bytes.Clone(got)
	only := bitmap(t, 9*chunkSize, block.Extent{Offset: chunkSize, Length: 1}, block.Extent{Offset: 7 * chunkSize, Length: 2 * chunkSize})
	p := &datapath.Progress{}
	_, err := datapath.Restore(t.Context(), img, device.NewMemory(got, 512), datapath.Options{Compare: true, Only: only, Progress: p})
	require.NoError(t, err)
	require.Equal(t, before[:chunkSize], got[:chunkSize])
	require.Equal(t, want[chunkSize:2*chunkSize], got[chunkSize:2*chunkSize])
	require.Equal(t, before[2*chunkSize:7*chunkSize], got[2*chunkSize:7*chunkSize])
	require.True(t, block.IsZero(got[7*chunkSize:]))
	require.EqualValues(t, 3*chunkSize, p.Total())
	require.EqualValues(t, 3*chunkSize, p.Done())
}

func TestOnlyIsOfTheDevice(t *testing.T) {
	img, want := filled(8*chunkSize, 0)
	got := random(3, 8*chunkSize)
	for name, o := range map[string]datapath.Options{
		"of another size": {Compare: true, Only: bitmap(t, 7*chunkSize)},
		"verified":        {Compare: true, Only: bitmap(t, 8*chunkSize), Verify: true},
	} {
		_, err := datapath.Restore(t.Context(), img, device.NewMemory(got, 512), o)
		require.ErrorContains(t, err, "a part of a device", name)
	}
	require.NotEqual(t, want, got)
}

func TestCompareReportsFaults(t *testing.T) {
	broken := errors.New("broken")
	for _, op := range []devicetest.Op{devicetest.Read, devicetest.Write, devicetest.Zero, devicetest.Sync} {
		img, _ := filled(10*chunkSize, 1, 2)
		dev := devicetest.NewFaulty(device.NewMemory(random(4, 10*chunkSize), 512))
		dev.Fail(op, 0, broken)
		_, err := datapath.Restore(t.Context(), img, dev, datapath.Options{Compare: true})
		require.ErrorIs(t, err, broken, op)
		require.Equal(t, 1, dev.Fired())
	}
}
