package datapath_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
)

// latency is how long everything takes in the world of TestDepth.
const latency = 5 * time.Millisecond

// most counts how much is under way, and how much ever was.
type most struct{ now, most atomic.Int64 }

func (m *most) wait(n int64) {
	now := m.now.Add(n)
	for {
		old := m.most.Load()
		if now <= old || m.most.CompareAndSwap(old, now) {
			break
		}
	}
	time.Sleep(latency)
	m.now.Add(-n)
}

// far is a device whose every access takes a while.
type far struct {
	device.Writer
	size          int64
	reads, writes most
}

func (f *far) Size() int64 { return f.size }

func (f *far) ReadAt(p []byte, _ int64) (int, error) {
	f.reads.wait(int64(len(p)))
	return len(p), nil
}

func (f *far) WriteAt(p []byte, _ int64) (int, error) {
	f.writes.wait(int64(len(p)))
	return len(p), nil
}

func (*far) Sync() error { return nil }

// busy is an image whose every Put takes a while.
type busy struct {
	slowStart
	puts most
}

func (b *busy) Put(context.Context, int64, []byte) error {
	b.puts.wait(1)
	return nil
}

// TestDepth: small items wait for a slow device side by side, in the memory of the large ones that are under way at once.
// However many are read, as many are put as there are workers.
func TestDepth(t *testing.T) {
	const (
		chunk = 64 << 10
		items = 64
		size  = 4 * 64 * items * chunk // 1 GiB
	)
	for name, tc := range map[string]struct {
		options    datapath.Options
		item       int64
		deep, puts int64
	}{
		"small items": {
			options: datapath.Options{Workers: 4, Depth: 32}, item: chunk,
			deep: 32 * chunk, puts: 4,
		},
		"large items": {
			options: datapath.Options{Workers: 4, Depth: 32}, item: 4 << 20,
			deep: 16 << 20, puts: 4,
		},
		"what was there before depth": {
			options: datapath.Options{Workers: 4}, item: chunk,
			deep: 4 * chunk, puts: 4,
		},
		"no room for all": {
			options: datapath.Options{Workers: 2, Depth: 32, ReadSize: 2 * chunk}, item: chunk,
			deep: 8 * chunk, puts: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				scattered := bitmap(t, size)
				for i := range int64(items) {
					require.NoError(t, scattered.Set(block.Extent{Offset: i * size / items, Length: tc.item}))
				}
				dev := &far{size: size}
				w := &busy{slowStart: slowStart{meta: repository.Meta{Size: size, ChunkSize: chunk}}}
				stats, err := datapath.Backup(t.Context(), dev, scattered, w, tc.options)
				require.NoError(t, err)
				require.Equal(t, items*tc.item, stats.BytesRead)
				require.Equal(t, tc.deep, dev.reads.most.Load())
				require.Equal(t, tc.puts, w.puts.most.Load())

				image := scatteredImage{meta: repository.Meta{Size: size, ChunkSize: chunk}, data: scattered}
				restored, err := datapath.Restore(t.Context(), image, &zeroed{far: dev}, tc.options)
				require.NoError(t, err)
				require.Equal(t, items*tc.item, restored.BytesWritten)
				require.Equal(t, tc.deep, dev.writes.most.Load())
			})
		})
	}
}

// scatteredImage has data where a bitmap says so.
type scatteredImage struct {
	repository.VolumeReader
	meta repository.Meta
	data *block.Bitmap
}

func (s scatteredImage) Meta() repository.Meta { return s.meta }

func (s scatteredImage) IsZero(_ context.Context, chunk int64) (bool, error) {
	return !s.data.AnyIn(block.Extent{Offset: chunk * s.meta.ChunkSize, Length: s.meta.ChunkSize}), nil
}

func (scatteredImage) ReadInOrder() {}

func (scatteredImage) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

// zeroed takes zeros at once.
type zeroed struct{ *far }

func (zeroed) Zero(block.Extent) error { return nil }
