package repositorytest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

const (
	chunk   = 4 << 10
	segment = 4 * chunk
)

var (
	shopDB  = repository.VolumeKey{Namespace: "shop", PVC: "db"}
	shopLog = repository.VolumeKey{Namespace: "shop", PVC: "log"}
	instant = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// Contract runs the suite. open returns an empty Store.
func Contract(t *testing.T, open func(t *testing.T) repository.Store) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(suite, *testing.T)
	}{
		{"full image", suite.full},
		{"incremental image", suite.incremental},
		{"sizes", suite.sizes},
		{"reading at random", suite.reading},
		{"putting from many goroutines", suite.concurrent},
		{"putting many at once", suite.together},
		{"advancing", suite.advancing},
		{"resuming", suite.resuming},
		{"not resuming another run", suite.notResuming},
		{"pages", suite.pages},
		{"comparing", suite.comparing},
		{"misuse of a writer", suite.misuse},
		{"misuse of pages", suite.misuseOfPages},
		{"parents", suite.parents},
		{"a parent that is deleted", suite.deletedParent},
		{"catalog", suite.catalog},
		{"volumes", suite.volumes},
		{"differences", suite.differences},
		{"defaults", suite.defaults},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(suite{open(t)}, t) })
	}
}

type suite struct{ repository.Store }

func meta(size int64, at time.Time) repository.Meta {
	return repository.Meta{
		Size: size, ChunkSize: chunk, SegmentSize: segment,
		Driver: "csi.example.com", VolumeHandle: "vol", SnapshotHandle: "snap", ChangeID: "change", SnapshotTime: at, Mover: "blockmover",
	}
}

var operations atomic.Int64

// options are those of an operation of its own.
func options(parent repository.SnapshotID) repository.WriterOptions {
	return repository.WriterOptions{Volume: shopDB, Operation: fmt.Sprintf("operation-%d", operations.Add(1)), Parent: parent}
}

func random(seed uint64, n int64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + rnd.UintN(255))
	}
	return b
}

func padded(data []byte, c int64) []byte {
	buf := make([]byte, chunk)
	copy(buf, data[c*chunk:])
	return buf
}

func chunks(n int64) []int64 {
	all := make([]int64, n)
	for i := range all {
		all[i] = int64(i)
	}
	return all
}

// end closes a writer.
func end(t *testing.T, w repository.VolumeWriter, how repository.Ending) {
	t.Helper()
	require.NoError(t, w.Close(t.Context(), how))
}

// write commits an image from the given chunks of data.
func (s suite) write(t *testing.T, o repository.WriterOptions, m repository.Meta, data []byte, put []int64) (repository.SnapshotID, repository.WriteStats) {
	t.Helper()
	w, err := s.NewWriter(t.Context(), m, o)
	require.NoError(t, err)
	for _, c := range put {
		require.NoError(t, w.Put(t.Context(), c, padded(data, c)))
	}
	id, stats := commit(t, w)
	end(t, w, repository.Discard) // does nothing now
	return id, stats
}

// named is what images are committed with.
var named = repository.Snapshot{Tags: map[string]string{"color": "red"}, Start: instant, End: instant.Add(time.Minute)}

func commit(t *testing.T, w repository.VolumeWriter) (repository.SnapshotID, repository.WriteStats) {
	t.Helper()
	id, stats, err := w.Commit(t.Context(), named)
	require.NoError(t, err)
	require.NotEmpty(t, id)
	return id, stats
}

func (s suite) backup(t *testing.T, operation string, m repository.Meta, parent repository.SnapshotID, data []byte, put []int64) repository.SnapshotID {
	t.Helper()
	id, _ := s.write(t, repository.WriterOptions{Volume: shopDB, Operation: operation, Parent: parent}, m, data, put)
	return id
}

func (s suite) holds(t *testing.T, id repository.SnapshotID, want []byte) {
	t.Helper()
	r, err := s.OpenReader(t.Context(), id)
	require.NoError(t, err)
	got := make([]byte, len(want))
	n, err := r.ReadAt(got, 0)
	require.NoError(t, err)
	require.Len(t, want, n)
	require.True(t, bytes.Equal(want, got), "image differs")
	require.Equal(t, int64(len(want)), r.Meta().Size)
	for c := range int64((len(want) + chunk - 1) / chunk) {
		zero, err := r.IsZero(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, block.IsZero(padded(want, c)), zero, "chunk %d", c)
	}
	require.NoError(t, r.Close())
}

func (s suite) full(t *testing.T) {
	t.Helper()
	const size = 11 * chunk
	data := random(1, size)
	clear(data[2*chunk : 6*chunk])
	// Chunks 2 and 3 are put as zeros, 4 and 5 not at all.
	id, stats := s.write(t, options(""), meta(size, instant), data, []int64{0, 1, 2, 3, 6, 7, 8, 9, 10})
	require.Equal(t, int64(9), stats.ChunksWritten)
	require.Zero(t, stats.ChunksInherited)
	require.Equal(t, int64(7*chunk), stats.BytesUploaded)
	require.Equal(t, int64(2*chunk), stats.ZeroBytes)
	s.holds(t, id, data)

	got, err := s.Get(t.Context(), id)
	require.NoError(t, err)
	want := meta(size, instant)
	want.Version, want.Kind, want.PageSize = repository.MetaVersion, repository.Full, chunk
	require.Equal(t, want, got.Meta)
}

func (s suite) incremental(t *testing.T) {
	t.Helper()
	const size = 40*chunk + 512
	v1 := random(1, size)
	clear(v1[8*chunk : 16*chunk])
	first := s.backup(t, "op-1", meta(size, instant), "", v1, chunks(41))

	v2 := bytes.Clone(v1)
	v2[0]++                     // data to data
	clear(v2[chunk : 2*chunk])  // data to zeros
	v2[9*chunk]++               // zeros to data
	v2[size-1]++                // the padded chunk
	put := []int64{0, 1, 9, 20, // 20 is as it was
		40}
	second, stats := s.write(t, options(first), meta(size, instant.Add(time.Hour)), v2, put)
	require.Equal(t, int64(5), stats.ChunksWritten)
	require.Equal(t, int64(36), stats.ChunksInherited)
	require.Equal(t, int64(2*chunk+512), stats.BytesUploaded, "padding is not the volume's")
	require.Equal(t, int64(chunk), stats.ZeroBytes)
	s.holds(t, first, v1)
	s.holds(t, second, v2)

	got, err := s.Get(t.Context(), second)
	require.NoError(t, err)
	require.Equal(t, repository.Incremental, got.Meta.Kind)
	require.Equal(t, first, got.Meta.Parent)

	// The parent may go: the image shares its contents, not its manifest.
	require.NoError(t, s.Delete(t.Context(), first))
	third := s.backup(t, "op-3", meta(size, instant.Add(2*time.Hour)), second, v2, nil)
	s.holds(t, third, v2)
	s.holds(t, second, v2)
}

// sizes grows and shrinks a volume from every kind of end to every other.
func (s suite) sizes(t *testing.T) {
	t.Helper()
	ends := []int64{1, chunk, chunk + 1, segment, segment + 1, 2*segment - 1, 2*segment + chunk + 512, 3 * segment}
	data := random(1, 3*segment)
	for i, from := range ends {
		parent := s.backup(t, "from-"+string(rune('a'+i)), meta(from, instant), "", data[:from], chunks((from+chunk-1)/chunk))
		for j, to := range ends {
			m := meta(to, instant.Add(time.Hour))
			smaller := min(from, to)
			if from != to && smaller%chunk != 0 {
				w, err := s.NewWriter(t.Context(), m, options(parent))
				require.NoError(t, err)
				_, _, err = w.Commit(t.Context(), named)
				require.Error(t, err, "%d to %d without the tail", from, to)
				end(t, w, repository.Discard)
			}
			var put []int64
			want := make([]byte, to)
			copy(want, data[:smaller])
			if from != to && smaller%chunk != 0 {
				put = append(put, smaller/chunk)
			}
			id := s.backup(t, "to-"+string(rune('a'+i))+string(rune('a'+j)), m, parent, want, put)
			s.holds(t, id, want)
		}
	}
}

func (s suite) reading(t *testing.T) {
	t.Helper()
	const size = 11*chunk + 100
	data := random(1, size)
	clear(data[3*chunk : 5*chunk])
	id := s.backup(t, "op", meta(size, instant), "", data, chunks(12))
	r, err := s.OpenReader(t.Context(), id)
	require.NoError(t, err)
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		off := rnd.Int64N(size)
		buf := random(2, rnd.Int64N(4*chunk))
		n, err := r.ReadAt(buf, off)
		if off+int64(len(buf)) > size {
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, size-off, int64(n))
		} else {
			require.NoError(t, err)
			require.Len(t, buf, n)
		}
		require.True(t, bytes.Equal(data[off:off+int64(n)], buf[:n]))
	}
	for _, off := range []int64{size, size + 1, 1 << 60} {
		n, err := r.ReadAt(make([]byte, 1), off)
		require.ErrorIs(t, err, io.EOF)
		require.Zero(t, n)
	}
	_, err = r.ReadAt(make([]byte, 1), -1)
	require.Error(t, err)
	for _, c := range []int64{-1, 12} {
		_, err = r.IsZero(t.Context(), c)
		require.Error(t, err)
	}
	require.NoError(t, r.Close())
}

func (s suite) concurrent(t *testing.T) {
	t.Helper()
	const n = 200
	data := random(1, n*chunk)
	w, err := s.NewWriter(t.Context(), meta(n*chunk, instant), options(""))
	require.NoError(t, err)
	var wg sync.WaitGroup
	for first := range int64(8) {
		wg.Go(func() {
			buf := make([]byte, chunk) // used again and again, as a pool does
			for c := first; c < n; c += 8 {
				copy(buf, data[c*chunk:])
				if err := w.Put(t.Context(), c, buf); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	id, stats := commit(t, w)
	require.Equal(t, int64(n), stats.ChunksWritten)
	s.holds(t, id, data)
}

// together puts runs of chunks, with zeros among them and padding at the end, into
// images that are full and incremental.
func (s suite) together(t *testing.T) {
	t.Helper()
	const n = 25
	data := random(1, n*chunk-100)
	for _, c := range []int64{0, 5, 6, 20} {
		clear(data[c*chunk : (c+1)*chunk])
	}
	padding := append(bytes.Clone(data), make([]byte, 100)...)
	put := func(w repository.VolumeWriter, first, end int64) {
		require.NoError(t, w.Put(t.Context(), first, padding[first*chunk:end*chunk]))
	}
	w, err := s.NewWriter(t.Context(), meta(int64(len(data)), instant), options(""))
	require.NoError(t, err)
	put(w, 12, n)
	put(w, 0, 12)
	parent, stats := commit(t, w)
	require.Equal(t, repository.WriteStats{
		BytesUploaded: int64(len(data)) - 4*chunk, ChunksWritten: n, ZeroBytes: 4 * chunk, MetadataBytes: stats.MetadataBytes,
		IncompressibleBytes: stats.IncompressibleBytes, // whether there is compression is the store's
	}, stats)
	require.LessOrEqual(t, stats.IncompressibleBytes, stats.BytesUploaded)
	s.holds(t, parent, data)

	copy(padding[3*chunk:], random(2, 10*chunk))
	w, err = s.NewWriter(t.Context(), meta(int64(len(data)), instant.Add(time.Hour)), options(parent))
	require.NoError(t, err)
	put(w, 3, 13)
	id, stats := commit(t, w)
	require.EqualValues(t, 10*chunk, stats.BytesUploaded)
	s.holds(t, id, padding[:len(data)])
}

func (s suite) parents(t *testing.T) {
	t.Helper()
	_, err := s.NewWriter(t.Context(), meta(chunk, instant), options("0123456789abcdef0123456789abcdef"))
	require.ErrorIs(t, err, repository.ErrNotFound)
	_, err = s.OpenReader(t.Context(), "0123456789abcdef0123456789abcdef")
	require.ErrorIs(t, err, repository.ErrNotFound)

	id := s.backup(t, "op", meta(chunk, instant), "", random(1, chunk), []int64{0})
	for _, m := range []repository.Meta{
		{Size: chunk, ChunkSize: 2 * chunk, SegmentSize: segment},
		{Size: chunk, ChunkSize: chunk, SegmentSize: 2 * segment},
	} {
		_, err := s.NewWriter(t.Context(), m, options(id))
		require.Error(t, err, "another cut than the parent's")
	}
	w, err := s.NewWriter(t.Context(), repository.Meta{Size: chunk, SnapshotTime: instant}, options(id))
	require.NoError(t, err)
	require.Equal(t, int64(chunk), w.Meta().ChunkSize, "the parent's")
	require.Equal(t, int64(segment), w.Meta().SegmentSize, "the parent's")
	end(t, w, repository.Discard)
}

// deletedParent: a parent that is deleted while an image is written on it is whole to the end, or there is no image.
func (s suite) deletedParent(t *testing.T) {
	t.Helper()
	const size = 20 * chunk
	data := random(1, size)
	parent := s.backup(t, "op-1", meta(size, instant), "", data, chunks(20))
	w, err := s.NewWriter(t.Context(), meta(size, instant.Add(time.Hour)), options(parent))
	require.NoError(t, err)
	require.NoError(t, s.Delete(t.Context(), parent))
	list, err := s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Empty(t, list, "what holds the parent is no backup")
	data[0]++
	require.NoError(t, w.Put(t.Context(), 0, padded(data, 0)))
	id, _, err := w.Commit(t.Context(), named)
	if err == nil {
		s.holds(t, id, data)
		return
	}
	require.ErrorIs(t, err, repository.ErrParentDeleted)
	require.NotErrorIs(t, err, repository.ErrNotFound, "another attempt does without the parent")
	end(t, w, repository.Discard)
	list, err = s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Empty(t, list)
}

func (s suite) defaults(t *testing.T) {
	t.Helper()
	w, err := s.NewWriter(t.Context(), repository.Meta{Size: 1, SnapshotTime: instant}, options(""))
	require.NoError(t, err)
	require.Equal(t, int64(64<<10), w.Meta().ChunkSize)
	require.Equal(t, int64(8<<20), w.Meta().SegmentSize)
	require.Equal(t, int64(8<<10), w.Meta().PageSize)
	end(t, w, repository.Discard)
}
