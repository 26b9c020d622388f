package restore_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
	"github.com/blockmover/blockmover/internal/restore"
)

const (
	chunkSize  = 64 << 10
	volumeSize = 16 * chunkSize
)

var errInjected = errors.New("injected fault")

func random(seed uint64) []byte {
	data := make([]byte, volumeSize)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	return data
}

// image saves random(1) in a new repository.
func image(t *testing.T) (*repositorytest.Memory, repository.SnapshotID) {
	t.Helper()
	store := repositorytest.NewMemory()
	volume := repository.VolumeKey{Namespace: "app", PVC: "data"}
	meta := repository.Meta{Size: volumeSize, ChunkSize: chunkSize, SnapshotTime: time.Unix(0, 0)}
	w, err := store.NewWriter(t.Context(), meta, repository.WriterOptions{Volume: volume, Operation: "first"})
	require.NoError(t, err)
	require.NoError(t, w.Put(t.Context(), 0, random(1)))
	id, _, err := w.Commit(t.Context(), repository.Snapshot{})
	require.NoError(t, err)
	return store, id
}

// job restores onto a device.
func job(store restore.Store, id repository.SnapshotID, dev device.Writer) restore.Job {
	return restore.Job{
		Store: store, Snapshot: id,
		Open:    func(int64) (device.Writer, error) { return dev, nil },
		Options: datapath.Options{Workers: 1, ReadSize: chunkSize},
	}
}

func content(t *testing.T, dev device.Reader) []byte {
	t.Helper()
	data := make([]byte, dev.Size())
	_, err := dev.ReadAt(data, 0)
	require.NoError(t, err)
	return data
}

func TestRun(t *testing.T) {
	store, id := image(t)
	disk := device.NewMemory(random(2), 512)
	dev := devicetest.NewFaulty(disk)
	j := job(store, id, dev)
	begun := false
	j.Begun = func(r repository.VolumeReader, d device.Writer) error {
		begun = true
		require.EqualValues(t, volumeSize, r.Meta().Size)
		require.EqualValues(t, volumeSize, d.Size())
		return nil
	}
	result, err := restore.Run(t.Context(), j)
	require.NoError(t, err)
	require.True(t, begun)
	require.Equal(t, restore.Result{Size: volumeSize, RestoreStats: datapath.RestoreStats{BytesWritten: volumeSize}}, result)
	require.Equal(t, random(1), content(t, disk))
	require.Equal(t, 1, dev.Calls(devicetest.Sync))
	require.Equal(t, 1, dev.Calls(devicetest.Close))
}

// TestCompare writes into a device that holds another state of the volume: of a chunk in which a
// block differs, the block.
func TestCompare(t *testing.T) {
	store, id := image(t)
	data := random(1)
	data[5*chunkSize+100]++
	disk := device.NewMemory(data, 512)
	j := job(store, id, disk)
	j.Options.Compare = true
	result, err := restore.Run(t.Context(), j)
	require.NoError(t, err)
	require.Equal(t, datapath.RestoreStats{BytesWritten: 4096, BytesFound: volumeSize - 4096}, result.RestoreStats)
	require.Equal(t, random(1), content(t, disk))
}

// TestPlan looks only at what the plan has.
func TestPlan(t *testing.T) {
	store, id := image(t)
	disk := device.NewMemory(random(2), 512)
	j := job(store, id, disk)
	j.Options.Compare = true
	j.Plan = func(_ context.Context, _ repository.VolumeReader, dev device.Writer) (*block.Bitmap, error) {
		only, err := block.NewBitmap(dev.Size(), 4096)
		require.NoError(t, err)
		return only, only.Set(block.Extent{Offset: 3 * chunkSize, Length: 1})
	}
	result, err := restore.Run(t.Context(), j)
	require.NoError(t, err)
	require.EqualValues(t, chunkSize, result.BytesWritten)
	want := random(2)
	copy(want[3*chunkSize:4*chunkSize], random(1)[3*chunkSize:])
	require.Equal(t, want, content(t, disk))
}

// TestInterruptions fails each call of the device, and restores again with Resume.
func TestInterruptions(t *testing.T) {
	store, id := image(t)
	for _, op := range []devicetest.Op{devicetest.Write, devicetest.Sync, devicetest.Close} {
		for call := 0; ; call++ {
			disk := device.NewMemory(random(2), 512)
			dev := devicetest.NewFaulty(disk)
			dev.Fail(op, call, errInjected)
			_, err := restore.Run(t.Context(), job(store, id, dev))
			if dev.Fired() == 0 {
				require.NoError(t, err)
				require.Positive(t, call)
				break
			}
			require.ErrorIs(t, err, errInjected)
			require.NotErrorIs(t, err, restore.ErrUntouched)
			require.Equal(t, 1, dev.Calls(devicetest.Close), "the device is closed")

			again := job(store, id, disk)
			again.Options.Resume = true
			result, err := restore.Run(t.Context(), again)
			require.NoError(t, err)
			require.EqualValues(t, volumeSize, result.BytesFound+result.BytesWritten)
			require.Equal(t, random(1), content(t, disk))
		}
	}
}

// TestCanceled: a canceled restore is incomplete, and the next one finds what it wrote.
func TestCanceled(t *testing.T) {
	store, id := image(t)
	disk := device.NewMemory(random(2), 512)
	ctx, cancel := context.WithCancel(t.Context())
	j := job(store, id, disk)
	j.Begun = func(repository.VolumeReader, device.Writer) error { cancel(); return nil }
	_, err := restore.Run(ctx, j)
	require.ErrorIs(t, err, context.Canceled)
	j = job(store, id, disk)
	j.Options.Resume = true
	_, err = restore.Run(t.Context(), j)
	require.NoError(t, err)
	require.Equal(t, random(1), content(t, disk))
}

// TestUntouched: errors that come before the first write say so.
func TestUntouched(t *testing.T) {
	store, id := image(t)
	disk := device.NewMemory(random(2), 512)
	for name, tc := range map[string]struct {
		change func(*restore.Job)
		want   error
	}{
		"no image":  {func(j *restore.Job) { j.Snapshot = "other" }, repository.ErrNotFound},
		"no device": {func(j *restore.Job) { j.Open = func(int64) (device.Writer, error) { return nil, errInjected } }, errInjected},
		"refused": {func(j *restore.Job) {
			j.Begun = func(repository.VolumeReader, device.Writer) error { return errInjected }
		}, errInjected},
		"not planned": {func(j *restore.Job) {
			j.Plan = func(context.Context, repository.VolumeReader, device.Writer) (*block.Bitmap, error) {
				return nil, errInjected
			}
		}, errInjected},
		"device too small": {func(j *restore.Job) {
			j.Open = func(int64) (device.Writer, error) { return device.NewMemory(random(2)[:chunkSize], 512), nil }
		}, datapath.ErrTooSmall},
	} {
		t.Run(name, func(t *testing.T) {
			j := job(store, id, disk)
			tc.change(&j)
			_, err := restore.Run(t.Context(), j)
			require.ErrorIs(t, err, tc.want)
			require.ErrorIs(t, err, restore.ErrUntouched)
			require.Equal(t, random(2), content(t, disk))
		})
	}
}
