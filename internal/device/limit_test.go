package device_test

import (
	"context"
	"io"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
)

const minRate = 64 << 10

const mib = 1 << 20

// The clock of these tests is that of synctest: it moves when all goroutines wait.

func TestLimitedReads(t *testing.T) {
	for _, bytesPerSecond := range []int64{minRate, mib, 50 * mib} {
		synctest.Test(t, func(t *testing.T) {
			disk := device.LimitReader(t.Context(), device.NewMemory(make([]byte, 16*mib), 512), bytesPerSecond)
			start := time.Now()
			var readers sync.WaitGroup
			for i := range int64(4) {
				readers.Go(func() {
					n, err := disk.ReadAt(make([]byte, 4*mib), i*4*mib)
					require.NoError(t, err)
					require.Equal(t, 4*mib, n)
				})
			}
			readers.Wait()
			// The first slice does not wait.
			want := float64(16*mib) / float64(bytesPerSecond)
			require.InDelta(t, want, time.Since(start).Seconds(), 0.1)
		})
	}
}

// TestLimitIsSmooth: one large access becomes many small ones.
func TestLimitIsSmooth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := devicetest.NewFaulty(device.NewMemory(make([]byte, 4*mib), 512))
		limited := device.LimitWriter(t.Context(), disk, mib)
		start := time.Now()
		go func() { _, _ = limited.WriteAt(make([]byte, 4*mib), 0) }()
		for second := range 4 {
			time.Sleep(time.Until(start.Add(time.Duration(second) * time.Second)))
			synctest.Wait()
			require.InDelta(t, second*16, disk.Calls(devicetest.Write), 1)
		}
		time.Sleep(time.Minute)
	})
}

// TestLimitCountsBothWays: writes and the reads of the verification share the limit. Zeroing
// does not count, unless the zeros have to be written.
func TestLimitCountsBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := device.LimitWriter(t.Context(), device.NewMemory(make([]byte, 4*mib), 512), mib)
		start := time.Now()
		_, err := disk.WriteAt(make([]byte, 4*mib), 0)
		require.NoError(t, err)
		_, err = disk.ReadAt(make([]byte, 4*mib), 0)
		require.NoError(t, err)
		require.NoError(t, device.Zero(t.Context(), disk, block.Extent{Length: 4 * mib}))
		require.InDelta(t, 8, time.Since(start).Seconds(), 0.1)

		start = time.Now()
		disk = device.LimitWriter(t.Context(), devicetest.Plain{Writer: device.NewMemory(make([]byte, 4*mib), 512)}, mib)
		require.NoError(t, device.Zero(t.Context(), disk, block.Extent{Length: 4 * mib}))
		require.InDelta(t, 4, time.Since(start).Seconds(), 0.1)
	})
}

// TestZeroEndsWithItsContext: what takes long can be canceled.
func TestZeroEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := device.Zero(ctx, devicetest.Plain{Writer: device.NewMemory(make([]byte, 4*mib), 512)}, block.Extent{Length: 4 * mib})
	require.ErrorIs(t, err, context.Canceled)
}

func TestLimitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		disk := device.LimitWriter(ctx, device.NewMemory(make([]byte, 64*mib), 512), minRate)
		start := time.Now()
		time.AfterFunc(3*time.Second, cancel)
		_, err := disk.ReadAt(make([]byte, 64*mib), 0)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 3*time.Second, time.Since(start))
		_, err = disk.WriteAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// TestLimitChecksFirst: an access that is partly outside does nothing.
func TestLimitChecksFirst(t *testing.T) {
	disk := devicetest.NewFaulty(device.NewMemory(make([]byte, mib), 512))
	limited := device.LimitWriter(t.Context(), disk, minRate)
	n, err := limited.WriteAt(make([]byte, mib), 512)
	require.ErrorIs(t, err, io.EOF)
	require.Zero(t, n)
	require.Equal(t, 1, disk.Calls(devicetest.Write))
}

func TestNoLimit(t *testing.T) {
	disk := device.NewMemory(make([]byte, 512), 512)
	require.Same(t, disk, device.LimitReader(t.Context(), disk, 0))
	require.Same(t, disk, device.LimitWriter(t.Context(), disk, 0))
}

// TestLimitInAnyWindow measures the bytes of every 5 s of a run. Its workers are those of a data path: several at once,
// and now and then all of them wait for something else, such as the object store.
func TestLimitInAnyWindow(t *testing.T) {
	const window, run, within = 5 * time.Second, 20 * time.Second, 0.1
	for _, pause := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond} {
		for _, bytesPerSecond := range []int64{minRate, mib, 50 * mib, 1000 * mib} {
			for _, writes := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					disk := &recorder{Memory: device.NewMemory(make([]byte, 4*mib), 512), start: time.Now()}
					limited := device.LimitWriter(t.Context(), disk, bytesPerSecond)
					var workers sync.WaitGroup
					for range 3 {
						workers.Go(func() {
							for buf := make([]byte, 256<<10); time.Since(disk.start) < run; {
								if left := time.Second - time.Since(disk.start)%time.Second; left <= pause {
									time.Sleep(left)
								}
								access := limited.ReadAt
								if writes {
									access = limited.WriteAt
								}
								_, err := access(buf, 0)
								require.NoError(t, err)
							}
						})
					}
					workers.Wait()
					least, most := disk.extremes(window, run)
					want := float64(bytesPerSecond) * window.Seconds()
					require.InDelta(t, 1, least/want, within, "least of any %s at %d bytes a second, with pauses of %s", window, bytesPerSecond, pause)
					require.InDelta(t, 1, most/want, within, "most of any %s at %d bytes a second, with pauses of %s", window, bytesPerSecond, pause)
				})
			}
		}
	}
}

// recorder is a device that knows when it was accessed.
type recorder struct {
	*device.Memory
	start time.Time
	mu    sync.Mutex
	times []time.Duration
	bytes []int
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	r.record(len(p))
	return r.Memory.ReadAt(p, off)
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.record(len(p))
	return r.Memory.WriteAt(p, off)
}

func (r *recorder) record(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times, r.bytes = append(r.times, time.Since(r.start)), append(r.bytes, n)
}

// extremes returns the least and the most bytes of all windows within a run. Both are at windows that begin with an
// access, the least without it and the most with it.
func (r *recorder) extremes(window, run time.Duration) (least, most float64) {
	least = math.Inf(1)
	sum, end := 0.0, 0
	for i := 0; i < len(r.times) && r.times[i] <= run-window; i++ {
		for end < len(r.times) && r.times[end] < r.times[i]+window {
			sum += float64(r.bytes[end])
			end++
		}
		most = max(most, sum)
		sum -= float64(r.bytes[i])
		if i+1 < len(r.times) && r.times[i+1] > r.times[i] {
			least = min(least, sum)
		}
	}
	return least, most
}
