package kopia

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
)

// TestAmplification writes like a database: most writes go to few places. In the steady
// state, uploads must stay near what changed.
func TestAmplification(t *testing.T) {
	if testing.Short() {
		t.Skip("it hashes some 100 MiB")
	}
	const (
		size = 64 << 20
		runs = 10
	)
	for _, c := range []struct {
		name   string
		write  int64
		writes int
		limit  float64
	}{
		{"4 KiB", 4 << 10, 160, 8},
		{"64 KiB", 64 << 10, 10, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			rnd := rand.New(rand.NewPCG(1, 1))
			meta := testMeta(size, testTime)
			meta.ChunkSize, meta.SegmentSize = 0, 0
			data := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
			whole, err := block.NewBitmap(size, block.PageSize(size))
			require.NoError(t, err)
			whole.SetAll()
			o := nextOperation("")
			places := rnd.Perm(int(size / c.write))
			zipf := rand.NewZipf(rnd, 1.2, 1, uint64(len(places)-1))
			var changed, uploaded, metadata, read int64
			for run := range runs + 1 {
				bitmap, exact := whole, int64(0)
				if run > 0 {
					bitmap, err = block.NewBitmap(size, block.PageSize(size))
					require.NoError(t, err)
					fresh, err := block.NewBitmap(size, 4<<10)
					require.NoError(t, err)
					for range c.writes {
						e := block.Extent{Offset: int64(places[zipf.Uint64()]) * c.write, Length: c.write}
						for i := e.Offset; i < e.End(); i += 8 {
							data[i] = byte(rnd.Uint32())
						}
						require.NoError(t, bitmap.Set(e))
						require.NoError(t, fresh.Set(e))
					}
					exact = fresh.Bytes()
				}
				w, err := s.NewWriter(t.Context(), meta, o)
				require.NoError(t, err)
				moved, err := datapath.Backup(t.Context(), device.NewMemory(data, 512), bitmap, w, datapath.Options{})
				require.NoError(t, err)
				id, stats := commit(t, w)
				o = nextOperation(id)
				if run == 0 {
					continue
				}
				t.Logf("run %d: changed %d KiB, read %d KiB, uploaded %.1f x, index %.1f x",
					run, exact>>10, moved.BytesRead>>10, float64(stats.BytesUploaded)/float64(exact), float64(stats.MetadataBytes)/float64(exact))
				if run > runs/2 {
					changed, uploaded = changed+exact, uploaded+stats.BytesUploaded
					metadata, read = metadata+stats.MetadataBytes, read+moved.BytesRead
				}
			}
			t.Logf("steady state: uploaded %.2f x, index %.2f x, read %.2f x what changed",
				float64(uploaded)/float64(changed), float64(metadata)/float64(changed), float64(read)/float64(changed))
			require.LessOrEqual(t, float64(uploaded)/float64(changed), c.limit)
		})
	}
}
