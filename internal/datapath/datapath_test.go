package datapath_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
	"github.com/blockmover/blockmover/internal/repository"
)

const chunkSize = 4096

// image is a volume image in memory that is written.
type image struct {
	repository.VolumeWriter
	meta repository.Meta

	mu     sync.Mutex
	chunks map[int64][]byte
	// paged is what the parent has in pages.
	paged    map[int64][]byte
	inPages  int
	inOrder  int
	resumed  int64
	advanced int64
	fail     error
	failAt   int
}

func newImage(size int64) *image {
	return &image{meta: repository.Meta{Size: size, ChunkSize: chunkSize, PageSize: 512}, chunks: map[int64][]byte{}}
}

func (m *image) Meta() repository.Meta { return m.meta }

func (m *image) Resumed() int64 { return m.resumed }

func (m *image) Put(_ context.Context, first int64, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(data) == 0 || len(data)%chunkSize != 0 {
		return errors.New("wrong length")
	}
	for i := range len(data) / chunkSize {
		if err := m.putLocked(first+int64(i), data[i*chunkSize:][:chunkSize]); err != nil {
			return err
		}
	}
	return nil
}

func (m *image) putLocked(chunk int64, data []byte) error {
	switch {
	case m.fail != nil && len(m.chunks) == m.failAt:
		return m.fail
	case m.chunks[chunk] != nil:
		return errors.New("put twice")
	case chunk < m.advanced:
		return errors.New("put behind the frontier")
	}
	m.chunks[chunk] = bytes.Clone(data)
	return nil
}

func (m *image) Paged(_ context.Context, chunk int64) (bool, error) {
	return m.paged[chunk] != nil, nil
}

func (m *image) PutPages(_ context.Context, chunk int64, runs []repository.Pages) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	data := bytes.Clone(m.paged[chunk])
	if data == nil {
		if len(runs) != 1 || len(runs[0].Data) != chunkSize {
			return errors.New("not all pages")
		}
		data = make([]byte, chunkSize)
	}
	for _, r := range runs {
		copy(data[r.Offset:], r.Data)
	}
	m.inPages++
	m.chunks[chunk] = data
	return nil
}

func (m *image) Advance(_ context.Context, chunk int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.advanced = max(m.advanced, chunk)
	return nil
}

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	n := 0
	for n < len(p) && off < m.meta.Size {
		chunk := m.chunks[off/chunkSize]
		if chunk == nil {
			chunk = make([]byte, chunkSize)
		}
		part := copy(p[n:], chunk[off%chunkSize:min(chunkSize, m.meta.Size-off/chunkSize*chunkSize)])
		n += part
		off += int64(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *image) IsZero(_ context.Context, chunk int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chunks[chunk] == nil, nil
}

func random(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + rnd.UintN(255))
	}
	return b
}

func bitmap(t *testing.T, size int64, extents ...block.Extent) *block.Bitmap {
	t.Helper()
	b, err := block.NewBitmap(size, 512)
	require.NoError(t, err)
	for _, e := range extents {
		require.NoError(t, b.Set(e))
	}
	return b
}

func TestBackupReadsTouchedChunks(t *testing.T) {
	const size = 100*chunkSize + 512
	data := random(1, size)
	read := bitmap(t, size, block.Extent{Offset: 5000, Length: 1}, block.Extent{Offset: 20 * chunkSize, Length: 10 * chunkSize},
		block.Extent{Offset: size - 1, Length: 1})
	for _, o := range []datapath.Options{{}, {Workers: 1}, {Workers: 3, ReadSize: 1}, {Workers: 16, ReadSize: 3*chunkSize + 1}} {
		img := newImage(size)
		o.Progress = &datapath.Progress{}
		stats, err := datapath.Backup(t.Context(), device.NewMemory(bytes.Clone(data), 512), read, img, o)
		require.NoError(t, err)
		require.Equal(t, int64(11*chunkSize+512), stats.BytesRead)
		require.Equal(t, stats.BytesRead, o.Progress.Done())
		require.Equal(t, stats.BytesRead, o.Progress.Total())
		require.Equal(t, int64(101), img.advanced)
		require.Len(t, img.chunks, 12)
		for c, got := range img.chunks {
			want := make([]byte, chunkSize)
			copy(want, data[c*chunkSize:])
			require.True(t, bytes.Equal(want, got), "chunk %d", c)
		}
	}
}

func TestBackupResumes(t *testing.T) {
	const size = 100 * chunkSize
	img := newImage(size)
	img.resumed = 40
	read := bitmap(t, size, block.Extent{Offset: 10 * chunkSize, Length: 50 * chunkSize})
	progress := &datapath.Progress{}
	stats, err := datapath.Backup(t.Context(), device.NewMemory(random(1, size), 512), read, img, datapath.Options{Progress: progress})
	require.NoError(t, err)
	require.Equal(t, int64(20*chunkSize), stats.BytesRead)
	require.Equal(t, int64(50*chunkSize), progress.Total(), "with what earlier runs have finished")
	require.Equal(t, progress.Total(), progress.Done())
	require.Equal(t, int64(20*chunkSize), progress.Read())
	require.Len(t, img.chunks, 20)
	require.NotContains(t, img.chunks, int64(39))
}

func TestBackupReadsChangedPages(t *testing.T) {
	const size = 10*chunkSize + 700
	data := random(1, size)
	old := bytes.Clone(data[2*chunkSize : 3*chunkSize])
	clear(data[2*chunkSize+1024 : 2*chunkSize+1536])
	copy(data[2*chunkSize+2000:], "changed")
	read := bitmap(t, size,
		block.Extent{Offset: 0, Length: 2 * chunkSize},                 // all of 0 and 1
		block.Extent{Offset: 2*chunkSize + 1024, Length: 512},          // a page of 2, and
		block.Extent{Offset: 2*chunkSize + 1600, Length: 600},          // a run of two
		block.Extent{Offset: 3 * chunkSize, Length: 1},                 // 3 is not in pages
		block.Extent{Offset: 10 * chunkSize, Length: size % chunkSize}) // all that there is of 10
	img := newImage(size)
	img.meta.Kind = repository.Incremental
	img.paged = map[int64][]byte{2: old}
	progress := &datapath.Progress{}
	stats, err := datapath.Backup(t.Context(), device.NewMemory(bytes.Clone(data), 512), read, img, datapath.Options{Progress: progress})
	require.NoError(t, err)
	require.Equal(t, int64(3*chunkSize+3*512+700), stats.BytesRead)
	require.Equal(t, progress.Total(), progress.Done())
	require.Len(t, img.chunks, 5)
	require.Equal(t, 2, img.inPages)
	for c, got := range img.chunks {
		want := make([]byte, chunkSize)
		copy(want, data[c*chunkSize:])
		require.True(t, bytes.Equal(want, got), "chunk %d", c)
	}
}

func TestBackupOfNothing(t *testing.T) {
	img := newImage(chunkSize)
	stats, err := datapath.Backup(t.Context(), device.NewMemory(make([]byte, chunkSize), 512), bitmap(t, chunkSize), img, datapath.Options{})
	require.NoError(t, err)
	require.Zero(t, stats.BytesRead)
	require.Empty(t, img.chunks)
}

func TestBackupStopsAtTheFirstError(t *testing.T) {
	const size = 100 * chunkSize
	all := bitmap(t, size, block.Extent{Length: size})
	broken := errors.New("broken")
	t.Run("reading", func(t *testing.T) {
		dev := devicetest.NewFaulty(device.NewMemory(make([]byte, size), 512))
		dev.Fail(devicetest.Read, 7, broken)
		_, err := datapath.Backup(t.Context(), dev, all, newImage(size), datapath.Options{ReadSize: chunkSize})
		require.ErrorIs(t, err, broken)
		require.Equal(t, 1, dev.Fired())
	})
	t.Run("putting", func(t *testing.T) {
		img := newImage(size)
		img.fail, img.failAt = broken, 50
		_, err := datapath.Backup(t.Context(), device.NewMemory(make([]byte, size), 512), all, img, datapath.Options{})
		require.ErrorIs(t, err, broken)
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := datapath.Backup(ctx, device.NewMemory(make([]byte, size), 512), all, newImage(size), datapath.Options{})
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("another size", func(t *testing.T) {
		_, err := datapath.Backup(t.Context(), device.NewMemory(make([]byte, size-512), 512), all, newImage(size), datapath.Options{})
		require.ErrorContains(t, err, "device has")
	})
}

// reader reads an image.
type reader struct{ *image }

func (reader) Close() error { return nil }

func (r reader) ReadInOrder() { r.inOrder++ }

// filled returns an image with data in the given chunks.
func filled(size int64, chunks ...int64) (reader, []byte) {
	img := newImage(size)
	want := make([]byte, size)
	for _, c := range chunks {
		data := random(uint64(c), chunkSize)
		clear(data[copy(want[c*chunkSize:], data):])
		img.chunks[c] = data
	}
	return reader{img}, want
}

func TestRestoreOverwritesEverything(t *testing.T) {
	const size = 100*chunkSize + 512
	for name, chunks := range map[string][]int64{
		"data at the end":   {0, 1, 2, 3, 50, 99, 100},
		"zeros at the end":  {7, 8, 9},
		"nothing but zeros": {},
		"nothing but data":  slices.Collect(bitmap(t, size, block.Extent{Length: size}).Chunks(geometry(t, size))),
	} {
		for _, extra := range []int{0, 512, 3584, 10*chunkSize + 1} {
			for _, o := range []datapath.Options{{}, {Workers: 1, ReadSize: 1}, {Workers: 3, ReadSize: 3 * chunkSize, Verify: true}} {
				img, want := filled(size, chunks...)
				got := random(9, size+extra)
				o.Progress = &datapath.Progress{}
				var dev device.Writer = device.NewMemory(got, 512)
				if o.Workers == 1 {
					dev = devicetest.Plain{Writer: dev}
				}
				stats, err := datapath.Restore(t.Context(), img, dev, o)
				require.NoError(t, err, name)
				require.True(t, bytes.Equal(want, got[:size]), name)
				require.True(t, block.IsZero(got[size:]), name)
				require.Equal(t, int64(len(got)), stats.BytesWritten+stats.ZeroBytes)
				require.Equal(t, o.Progress.Total(), o.Progress.Done())
			}
		}
	}
}

func geometry(t *testing.T, size int64) block.Geometry {
	t.Helper()
	g, err := block.NewGeometry(size, chunkSize)
	require.NoError(t, err)
	return g
}

func TestRestoreZeroesRunsAtOnce(t *testing.T) {
	const size = 1000 * chunkSize
	img, _ := filled(size, 0, 500)
	dev := devicetest.NewFaulty(device.NewMemory(random(1, size+10*chunkSize), 512))
	_, err := datapath.Restore(t.Context(), img, dev, datapath.Options{})
	require.NoError(t, err)
	require.Equal(t, 2, dev.Calls(devicetest.Zero), "one for each run, the last one with the tail of the device")
	require.Equal(t, 2, dev.Calls(devicetest.Write))
	require.Equal(t, 1, dev.Calls(devicetest.Sync))
	require.Zero(t, dev.Calls(devicetest.Close), "the device is the caller's")
}

// TestRestoreSaysThatItReadsAll: unless it may find something on the device, or looks at a part of it.
func TestRestoreSaysThatItReadsAll(t *testing.T) {
	for _, tc := range []struct {
		options datapath.Options
		want    int
	}{
		{datapath.Options{}, 1},
		{datapath.Options{Verify: true}, 1},
		{datapath.Options{Resume: true}, 0},
		{datapath.Options{Compare: true}, 0},
		{datapath.Options{Only: bitmap(t, 4*chunkSize, block.Extent{Length: chunkSize})}, 0},
	} {
		img, want := filled(4*chunkSize, 1, 2)
		_, err := datapath.Restore(t.Context(), img, device.NewMemory(make([]byte, len(want)), 512), tc.options)
		require.NoError(t, err)
		require.Equal(t, tc.want, img.inOrder, tc.options)
	}
}

func TestRestoreRefusesASmallerDevice(t *testing.T) {
	img, _ := filled(10 * chunkSize)
	old := random(1, 10*chunkSize-512)
	got := bytes.Clone(old)
	_, err := datapath.Restore(t.Context(), img, device.NewMemory(got, 512), datapath.Options{})
	require.ErrorIs(t, err, datapath.ErrTooSmall)
	require.Equal(t, old, got)
}

func TestRestoreReportsFaults(t *testing.T) {
	const size = 100 * chunkSize
	broken := errors.New("broken")
	for _, op := range []devicetest.Op{devicetest.Write, devicetest.Zero, devicetest.Sync, devicetest.Read} {
		img, _ := filled(size, 1, 2, 50)
		dev := devicetest.NewFaulty(device.NewMemory(make([]byte, size), 512))
		dev.Fail(op, 0, broken)
		_, err := datapath.Restore(t.Context(), img, dev, datapath.Options{Verify: true})
		require.ErrorIs(t, err, broken, op)
		require.Equal(t, 1, dev.Fired(), op)
	}
	t.Run("reading the image", func(t *testing.T) {
		img, _ := filled(size, 1)
		img.fail = broken
		_, err := datapath.Restore(t.Context(), img, device.NewMemory(make([]byte, size), 512), datapath.Options{})
		require.ErrorIs(t, err, broken)
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		img, _ := filled(size, 1)
		_, err := datapath.Restore(ctx, img, device.NewMemory(make([]byte, size), 512), datapath.Options{})
		require.ErrorIs(t, err, context.Canceled)
	})
}

// liar is a device that loses what is written to it.
type liar struct {
	device.Writer
	lose func(off int64) bool
}

func (l liar) WriteAt(p []byte, off int64) (int, error) {
	if l.lose(off) {
		return len(p), nil
	}
	return l.Writer.WriteAt(p, off)
}

func (l liar) Zero(e block.Extent) error {
	if l.lose(e.Offset) {
		return nil
	}
	return l.Writer.Zero(e)
}

func TestVerifyFindsLostWrites(t *testing.T) {
	const size = 100 * chunkSize
	for _, lost := range []int64{0, chunkSize, 50 * chunkSize} {
		img, _ := filled(size, 1, 50)
		dev := liar{device.NewMemory(random(4, size), 512), func(off int64) bool { return off == lost }}
		_, err := datapath.Restore(t.Context(), img, dev, datapath.Options{ReadSize: chunkSize})
		require.NoError(t, err)
		_, err = datapath.Restore(t.Context(), img, dev, datapath.Options{ReadSize: chunkSize, Verify: true})
		require.ErrorContains(t, err, "does not hold what was written")
	}
}
