package repositorytest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
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
		{"pages", suite.pages},
		{"comparing", suite.comparing},
		{"misuse of a writer", suite.misuse},
		{"misuse of pages", suite.misuseOfPages},
		{"parents", suite.parents},
		{"a parent that is deleted", suite.held},
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

func options(parent repository.SnapshotID) repository.WriterOptions {
	return repository.WriterOptions{Volume: shopDB, Operation: "op", Parent: parent}
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

// write commits an image from the given chunks of data.
func (s suite) write(t *testing.T, m repository.Meta, parent repository.SnapshotID, data []byte, put []int64) (repository.Image, repository.WriteStats) {
	t.Helper()
	w, err := s.NewWriter(t.Context(), m, options(parent))
	require.NoError(t, err)
	for _, c := range put {
		require.NoError(t, w.Put(t.Context(), c, padded(data, c)))
	}
	img, stats, err := w.Commit(t.Context())
	require.NoError(t, err)
	w.Abort() // does nothing now
	return img, stats
}

func (s suite) save(t *testing.T, v repository.VolumeKey, operation string, img repository.Image) repository.SnapshotID {
	t.Helper()
	id, err := s.Save(t.Context(), repository.Snapshot{
		Volume: v, Tags: map[string]string{repository.TagOperation: operation, "color": "red"}, Start: instant, End: instant.Add(time.Minute),
	}, img)
	require.NoError(t, err)
	require.NotEmpty(t, id)
	return id
}

func (s suite) backup(t *testing.T, operation string, m repository.Meta, parent repository.SnapshotID, data []byte, put []int64) repository.SnapshotID {
	t.Helper()
	img, _ := s.write(t, m, parent, data, put)
	return s.save(t, shopDB, operation, img)
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
	img, stats := s.write(t, meta(size, instant), "", data, []int64{0, 1, 2, 3, 6, 7, 8, 9, 10})
	require.Equal(t, int64(9), stats.ChunksWritten)
	require.Zero(t, stats.ChunksInherited)
	require.Equal(t, int64(7*chunk), stats.BytesUploaded)
	require.Equal(t, int64(2*chunk), stats.ZeroBytes)
	id := s.save(t, shopDB, "op", img)
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
	img, stats := s.write(t, meta(size, instant.Add(time.Hour)), first, v2, put)
	require.Equal(t, int64(5), stats.ChunksWritten)
	require.Equal(t, int64(36), stats.ChunksInherited)
	require.Equal(t, int64(2*chunk+512), stats.BytesUploaded, "padding is not the volume's")
	require.Equal(t, int64(chunk), stats.ZeroBytes)
	second := s.save(t, shopDB, "op-2", img)
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
				_, _, err = w.Commit(t.Context())
				require.Error(t, err, "%d to %d without the tail", from, to)
				w.Abort()
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
	img, stats, err := w.Commit(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(n), stats.ChunksWritten)
	s.holds(t, s.save(t, shopDB, "op", img), data)
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
	img, stats, err := w.Commit(t.Context())
	require.NoError(t, err)
	require.Equal(t, repository.WriteStats{
		BytesUploaded: int64(len(data)) - 4*chunk, ChunksWritten: n, ZeroBytes: 4 * chunk, MetadataBytes: stats.MetadataBytes,
	}, stats)
	parent := s.save(t, shopDB, "op-1", img)
	s.holds(t, parent, data)

	copy(padding[3*chunk:], random(2, 10*chunk))
	w, err = s.NewWriter(t.Context(), meta(int64(len(data)), instant.Add(time.Hour)), options(parent))
	require.NoError(t, err)
	put(w, 3, 13)
	img, stats, err = w.Commit(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 10*chunk, stats.BytesUploaded)
	s.holds(t, s.save(t, shopDB, "op-2", img), padding[:len(data)])
}

func (s suite) advancing(t *testing.T) {
	t.Helper()
	const n = 30
	data := random(1, n*chunk)
	w, err := s.NewWriter(t.Context(), meta(n*chunk, instant), options(""))
	require.NoError(t, err)
	for c := range int64(n) {
		// Later chunks may be there already; promises may come late and twice.
		if c%2 == 0 {
			require.NoError(t, w.Put(t.Context(), c+1, padded(data, c+1)))
			require.NoError(t, w.Put(t.Context(), c, padded(data, c)))
		}
		require.NoError(t, w.Advance(t.Context(), c))
		require.NoError(t, w.Advance(t.Context(), c/2))
	}
	require.NoError(t, w.Advance(t.Context(), n))
	img, _, err := w.Commit(t.Context())
	require.NoError(t, err)
	s.holds(t, s.save(t, shopDB, "op", img), data)

	w, err = s.NewWriter(t.Context(), meta(n*chunk, instant), options(""))
	require.NoError(t, err)
	require.NoError(t, w.Advance(t.Context(), 8))
	require.Error(t, w.Put(t.Context(), 7, padded(data, 7)), "a promise was broken")
	w.Abort()
}

// resuming: a run that ends in any way but Abort is continued by the next one
// of the same operation, and by no other.
func (s suite) resuming(t *testing.T) {
	t.Helper()
	const n = 30
	m := meta(n*chunk-100, instant)
	base := random(1, m.Size)
	parent := s.backup(t, "op-1", m, "", base, chunks(n))
	data := random(2, m.Size)
	begin := func(m repository.Meta, o repository.WriterOptions) repository.VolumeWriter {
		t.Helper()
		o.CheckpointInterval = 1
		w, err := s.NewWriter(t.Context(), m, o)
		require.NoError(t, err)
		return w
	}
	// part puts all chunks from where the writer begins to the given one.
	part := func(w repository.VolumeWriter, end int64) {
		t.Helper()
		for c := w.Resumed(); c < end; c++ {
			require.NoError(t, w.Put(t.Context(), c, padded(data, c)))
			require.NoError(t, w.Advance(t.Context(), c+1))
		}
	}
	for _, from := range []repository.SnapshotID{"", parent} {
		o := options(from)
		o.Operation = "op-on-" + string(from)
		w := begin(m, o)
		require.Zero(t, w.Resumed())
		part(w, 13)
		w.Suspend()
		w.Abort() // comes too late
		require.Error(t, w.Put(t.Context(), 20, padded(data, 20)))

		w = begin(m, o)
		require.Equal(t, int64(12), w.Resumed())
		require.NoError(t, w.Put(t.Context(), 20, padded(data, 20)))
		require.Error(t, w.Put(t.Context(), 11, padded(data, 11)), "finished already")
		w.Suspend()

		later := m
		later.SnapshotTime = instant.Add(time.Hour)
		w = begin(later, o)
		require.Equal(t, int64(12), w.Resumed(), "the time of a run does not matter")
		require.Equal(t, later.SnapshotTime, w.Meta().SnapshotTime)
		part(w, n-1)
		_ = begin(m, o) // a run that is killed does not even suspend

		w = begin(m, o)
		require.Equal(t, int64(28), w.Resumed())
		part(w, n)
		img, _, err := w.Commit(t.Context())
		require.NoError(t, err)
		s.holds(t, s.save(t, shopDB, o.Operation, img), data)
	}

	o := options(parent)
	w := begin(m, o)
	part(w, 13)
	w.Suspend()
	other := o
	other.Operation = "other"
	w = begin(m, other)
	require.Zero(t, w.Resumed(), "another operation")
	w.Abort()
	require.Equal(t, int64(12), begin(m, o).Resumed(), "it is still there")
	changed := m
	changed.SnapshotHandle = "other"
	w = begin(changed, o)
	require.Zero(t, w.Resumed(), "another content of the device")
	part(w, 13)
	w.Abort()
	require.Zero(t, begin(changed, o).Resumed(), "Abort forgets")
	changed.SnapshotHandle = ""
	w = begin(changed, o)
	part(w, 13)
	w.Suspend()
	require.Zero(t, begin(changed, o).Resumed(), "nobody knows what the device holds")
}

// disk is a volume whose chunks are of four pages.
type disk struct {
	suite
	meta repository.Meta
	data []byte
}

const (
	page  = chunk
	large = 4 * page
)

func (s suite) disk(size int64) *disk {
	m := meta(size, instant)
	m.ChunkSize, m.SegmentSize, m.PageSize = large, 4*large, page
	return &disk{s, m, random(1, size)}
}

// whole is a chunk with its padding.
func (d *disk) whole(c int64) []byte { return d.part(c, 0, large/page).Data }

// part is a run of pages of a chunk.
func (d *disk) part(c, from, end int64) repository.Pages {
	buf := make([]byte, (end-from)*page)
	copy(buf, d.data[min(c*large+from*page, d.meta.Size):])
	return repository.Pages{Offset: from * page, Data: buf}
}

// write saves the image that put makes, and reads it back.
func (d *disk) write(t *testing.T, parent repository.SnapshotID, operation string, put func(w repository.VolumeWriter)) repository.SnapshotID {
	t.Helper()
	o := options(parent)
	o.Operation = operation
	w, err := d.NewWriter(t.Context(), d.meta, o)
	require.NoError(t, err)
	put(w)
	img, _, err := w.Commit(t.Context())
	require.NoError(t, err)
	id := d.save(t, shopDB, operation, img)
	r, err := d.OpenReader(t.Context(), id)
	require.NoError(t, err)
	got := make([]byte, d.meta.Size)
	_, err = r.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(d.data, got), operation)
	require.NoError(t, r.Close())
	return id
}

// writeAll saves a full image.
func (d *disk) writeAll(t *testing.T, operation string) repository.SnapshotID {
	t.Helper()
	return d.write(t, "", operation, func(w repository.VolumeWriter) {
		for c := range (d.meta.Size + large - 1) / large {
			paged, err := w.Paged(t.Context(), c)
			require.NoError(t, err)
			require.False(t, paged, "there is no parent")
			require.NoError(t, w.Put(t.Context(), c, d.whole(c)))
		}
	})
}

// pages: any page of a chunk that was put in pages before may be put alone.
func (s suite) pages(t *testing.T) {
	t.Helper()
	d := s.disk(10*large + page + 100)
	clear(d.data[5*large : 6*large])
	full := d.writeAll(t, "op-1")
	d.data[2*large+100]++
	d.data[d.meta.Size-1]++
	d.data[5*large+page]++ // in zeros
	split := d.write(t, full, "op-2", func(w repository.VolumeWriter) {
		require.NoError(t, w.PutPages(t.Context(), 2, []repository.Pages{d.part(2, 0, 4)}))
		require.NoError(t, w.PutPages(t.Context(), 10, []repository.Pages{d.part(10, 0, 1), d.part(10, 1, 4)}))
		paged, err := w.Paged(t.Context(), 5)
		require.NoError(t, err)
		require.True(t, paged, "zeros")
		require.NoError(t, w.PutPages(t.Context(), 5, []repository.Pages{d.part(5, 1, 2)}))
	})
	d.data[2*large+3*page]++
	d.data[10*large]++
	clear(d.data[5*large : 6*large])
	third := d.write(t, split, "op-3", func(w repository.VolumeWriter) {
		for _, c := range []int64{2, 10} {
			paged, err := w.Paged(t.Context(), c)
			require.NoError(t, err)
			require.True(t, paged)
		}
		require.NoError(t, w.PutPages(t.Context(), 2, []repository.Pages{d.part(2, 0, 1), d.part(2, 3, 4)}))
		require.NoError(t, w.PutPages(t.Context(), 5, []repository.Pages{d.part(5, 0, 4)}))
		require.NoError(t, w.PutPages(t.Context(), 10, []repository.Pages{d.part(10, 0, 1)}))
	})
	d.data[2*large]++
	d.write(t, third, "op-4", func(w repository.VolumeWriter) {
		require.NoError(t, w.Put(t.Context(), 2, d.whole(2)))
	})
}

func (s suite) misuseOfPages(t *testing.T) {
	t.Helper()
	d := s.disk(10*large + page + 100)
	full := d.writeAll(t, "op-1")
	paged := d.write(t, full, "op-2", func(w repository.VolumeWriter) {
		require.NoError(t, w.PutPages(t.Context(), 2, []repository.Pages{d.part(2, 0, 4)}))
		require.NoError(t, w.PutPages(t.Context(), 10, []repository.Pages{d.part(10, 0, 4)}))
	})
	for name, wrong := range map[string]struct {
		parent repository.SnapshotID
		chunk  int64
		pages  []repository.Pages
	}{
		"none":               {paged, 2, []repository.Pages{}},
		"empty":              {paged, 2, []repository.Pages{{}}},
		"between":            {paged, 2, []repository.Pages{{Offset: 512, Data: make([]byte, page)}}},
		"half a page":        {paged, 2, []repository.Pages{{Data: make([]byte, page/2)}}},
		"descending":         {paged, 2, []repository.Pages{d.part(2, 1, 2), d.part(2, 0, 1)}},
		"overlapping":        {paged, 2, []repository.Pages{d.part(2, 0, 2), d.part(2, 1, 3)}},
		"beyond":             {paged, 2, []repository.Pages{{Offset: 3 * page, Data: make([]byte, 2*page)}}},
		"before start":       {paged, 2, []repository.Pages{{Offset: -page, Data: make([]byte, page)}}},
		"padding":            {paged, 10, []repository.Pages{{Offset: 3 * page, Data: random(1, page)}}},
		"nothing to inherit": {"", 2, []repository.Pages{d.part(2, 0, 1)}},
	} {
		w, err := s.NewWriter(t.Context(), d.meta, options(wrong.parent))
		require.NoError(t, err)
		require.Error(t, w.PutPages(t.Context(), wrong.chunk, wrong.pages), name)
		w.Abort()
	}
}

// comparing: a chunk matches its own bytes and no others, however it is stored.
func (s suite) comparing(t *testing.T) {
	t.Helper()
	d := s.disk(6*large + 100)
	clear(d.data[large : 2*large])
	full := d.writeAll(t, "op-1")
	d.data[2*large]++ // chunk 2 is in pages, one of which is zero
	clear(d.data[2*large+page : 2*large+2*page])
	id := d.write(t, full, "op-2", func(w repository.VolumeWriter) {
		require.NoError(t, w.PutPages(t.Context(), 2, []repository.Pages{{Data: d.whole(2)}}))
	})
	r, err := s.OpenReader(t.Context(), id)
	require.NoError(t, err)
	for range 2 { // a comparison leaves nothing behind that the next one would see
		for c := range int64(7) {
			same, err := r.Matches(t.Context(), c, d.whole(c))
			require.NoError(t, err)
			require.True(t, same, "chunk %d", c)
			for _, at := range []int64{0, page, large - 1} {
				other := d.whole(c)
				other[at]++
				same, err = r.Matches(t.Context(), c, other)
				require.NoError(t, err)
				require.False(t, same, "chunk %d, byte %d", c, at)
			}
			same, err = r.Matches(t.Context(), c, make([]byte, large))
			require.NoError(t, err)
			require.Equal(t, c == 1, same, "chunk %d, zeros", c)
		}
	}
	_, err = r.Matches(t.Context(), 7, make([]byte, large))
	require.Error(t, err, "no such chunk")
	_, err = r.Matches(t.Context(), 0, make([]byte, large-1))
	require.Error(t, err, "too short")
	require.NoError(t, r.Close())
	for c := range int64(7) {
		r, err := s.OpenReader(t.Context(), id)
		require.NoError(t, err)
		got := make([]byte, large)
		_, err = r.ReadAt(got, c*large)
		require.True(t, err == nil || c == 6)
		require.True(t, bytes.Equal(d.whole(c), got), "chunk %d", c)
		require.NoError(t, r.Close())
	}
}

func (s suite) misuse(t *testing.T) {
	t.Helper()
	const size = 2*chunk + 1
	zeros := make([]byte, chunk)
	for name, wrong := range map[string]func(context.Context, repository.VolumeWriter) error{
		"nothing":   func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 0, nil) },
		"too short": func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 0, zeros[1:]) },
		"not whole": func(ctx context.Context, w repository.VolumeWriter) error {
			return w.Put(ctx, 0, make([]byte, chunk+1))
		},
		"over the end": func(ctx context.Context, w repository.VolumeWriter) error {
			return w.Put(ctx, 2, make([]byte, 2*chunk))
		},
		"twice, of two": func(ctx context.Context, w repository.VolumeWriter) error {
			return w.Put(ctx, 0, make([]byte, 2*chunk))
		},
		"before the start": func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, -1, zeros) },
		"after the end":    func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 3, zeros) },
		"twice":            func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 1, zeros) },
		"padding":          func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 2, random(1, chunk)) },
		"advance too far":  func(ctx context.Context, w repository.VolumeWriter) error { return w.Advance(ctx, 4) },
	} {
		w, err := s.NewWriter(t.Context(), meta(size, instant), options(""))
		require.NoError(t, err, name)
		require.NoError(t, w.Put(t.Context(), 1, zeros), name)
		require.Error(t, wrong(t.Context(), w), name)
		require.Error(t, w.Put(t.Context(), 0, zeros), "%s: after an error", name)
		_, _, err = w.Commit(t.Context())
		require.Error(t, err, "%s: after an error", name)
		w.Abort()
		w.Abort()
	}
	w, err := s.NewWriter(t.Context(), meta(size, instant), options(""))
	require.NoError(t, err)
	w.Abort()
	require.Error(t, w.Put(t.Context(), 0, zeros))
	_, _, err = w.Commit(t.Context())
	require.Error(t, err)

	w, err = s.NewWriter(t.Context(), meta(size, instant), options(""))
	require.NoError(t, err)
	_, _, err = w.Commit(t.Context())
	require.NoError(t, err)
	require.Error(t, w.Put(t.Context(), 0, zeros))
	_, _, err = w.Commit(t.Context())
	require.Error(t, err)

	for _, o := range []repository.WriterOptions{{Volume: shopDB}, {Operation: "op"}} {
		_, err := s.NewWriter(t.Context(), meta(size, instant), o)
		require.Error(t, err, "%+v", o)
	}
	for _, m := range []repository.Meta{meta(0, instant), meta(-1, instant), {Size: 1, ChunkSize: 5000, SegmentSize: 10000}} {
		_, err := s.NewWriter(t.Context(), m, options(""))
		require.Error(t, err)
	}
	list, err := s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Empty(t, list, "what is not saved is not seen")
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
	w.Abort()
}

func (s suite) catalog(t *testing.T) {
	t.Helper()
	img, _ := s.write(t, meta(chunk, instant.Add(time.Hour)), "", random(1, chunk), []int64{0})
	newer := s.save(t, shopDB, "op-1", img)
	require.Equal(t, newer, s.save(t, shopDB, "op-1", img), "the operation has saved it")
	other := s.save(t, shopLog, "op-1", img)
	require.NotEqual(t, newer, other)
	m := meta(chunk, instant)
	m.SnapshotHandle = "older"
	img, _ = s.write(t, m, "", random(2, chunk), []int64{0})
	older := s.save(t, shopDB, "op-2", img)

	list, err := s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, []repository.SnapshotID{newer, older}, []repository.SnapshotID{list[0].ID, list[1].ID}, "newest instant first")
	for _, snap := range list {
		require.NoError(t, snap.Damage)
		require.Equal(t, shopDB, snap.Volume)
		require.Equal(t, "red", snap.Tags["color"])
		require.True(t, instant.Equal(snap.Start))
		require.True(t, instant.Add(time.Minute).Equal(snap.End))
		got, err := s.Get(t.Context(), snap.ID)
		require.NoError(t, err)
		require.Equal(t, snap, got)
	}
	found, ok := repository.FindOperation(list, "op-2")
	require.True(t, ok)
	require.Equal(t, older, found.ID)
	_, ok = repository.FindOperation(list, "")
	require.False(t, ok)

	_, err = s.Get(t.Context(), "0123456789abcdef0123456789abcdef")
	require.ErrorIs(t, err, repository.ErrNotFound)
	require.NoError(t, s.Delete(t.Context(), newer))
	require.NoError(t, s.Delete(t.Context(), newer), "gone already")
	_, err = s.Get(t.Context(), newer)
	require.ErrorIs(t, err, repository.ErrNotFound)
	list, err = s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Len(t, list, 1)
	list, err = s.List(t.Context(), repository.VolumeKey{Namespace: "shop", PVC: "none"})
	require.NoError(t, err)
	require.Empty(t, list)

	_, err = s.Save(t.Context(), repository.Snapshot{Volume: shopDB}, img)
	require.Error(t, err, "no operation ID")
	_, err = s.Save(t.Context(), repository.Snapshot{Tags: map[string]string{repository.TagOperation: "op"}}, img)
	require.Error(t, err, "no volume")
}

func (s suite) volumes(t *testing.T) {
	t.Helper()
	require.Empty(t, s.listVolumes(t))
	last := repository.VolumeKey{Namespace: "shop-2", PVC: "a"}
	var ids []repository.SnapshotID
	for i, v := range []repository.VolumeKey{last, shopLog, shopDB, shopLog} {
		m := meta(chunk, instant)
		m.SnapshotHandle = string(rune('a' + i)) // nothing to go on from
		img, _ := s.write(t, m, "", random(1, chunk), []int64{0})
		ids = append(ids, s.save(t, v, "op-"+string(rune('a'+i)), img))
	}
	require.Equal(t, []repository.VolumeKey{shopDB, shopLog, last}, s.listVolumes(t))
	require.NoError(t, s.Delete(t.Context(), ids[1]))
	require.NoError(t, s.Delete(t.Context(), ids[2]))
	require.Equal(t, []repository.VolumeKey{shopLog, last}, s.listVolumes(t))

	// A backup that runs is none yet.
	w, err := s.NewWriter(t.Context(), meta(chunk, instant), repository.WriterOptions{Volume: shopDB, Operation: "op", Parent: ids[3]})
	require.NoError(t, err)
	require.Equal(t, []repository.VolumeKey{shopLog, last}, s.listVolumes(t))
	w.Abort()
}

func (s suite) listVolumes(t *testing.T) []repository.VolumeKey {
	t.Helper()
	v, err := s.Volumes(t.Context())
	require.NoError(t, err)
	return v
}

func (s suite) differences(t *testing.T) {
	t.Helper()
	const size = 30*chunk + 100
	first := random(1, size)
	clear(first[6*chunk : 10*chunk])
	old := s.backup(t, "op-1", meta(size, instant), "", first, chunks(31))
	second := bytes.Clone(first)
	second[2*chunk]++
	second[7*chunk+5]++
	clear(second[3*chunk : 4*chunk])
	second[size-1]++
	changed := []int64{2, 3, 7, 30}
	next := s.backup(t, "op-2", meta(size, instant), old, second, changed)
	full := s.backup(t, "op-3", meta(size, instant), "", second, chunks(31))
	shorter := s.backup(t, "op-4", meta(20*chunk+1, instant), next, second[:20*chunk+1], []int64{20})
	other := meta(size, instant)
	other.ChunkSize, other.SegmentSize = 2*chunk, 4*chunk
	w, err := s.NewWriter(t.Context(), other, options(""))
	require.NoError(t, err)
	img, _, err := w.Commit(t.Context())
	require.NoError(t, err)
	zeros := s.save(t, shopDB, "op-5", img)

	want := []block.Extent{{Offset: 2 * chunk, Length: 2 * chunk}, {Offset: 7 * chunk, Length: chunk}, {Offset: 30 * chunk, Length: 100}}
	require.Equal(t, want, s.compare(t, old, next))
	require.Equal(t, want, s.compare(t, next, old))
	require.Equal(t, want, s.compare(t, old, full))
	require.Empty(t, s.compare(t, next, next))
	require.Empty(t, s.compare(t, next, full), "the same content")
	// The last chunk of the shorter one has padding in it.
	require.Equal(t, []block.Extent{{Offset: 20 * chunk, Length: 1}}, s.compare(t, next, shorter))
	require.Equal(t, s.compare(t, next, shorter), s.compare(t, shorter, next))
	require.Equal(t, []block.Extent{{Length: size}}, s.compare(t, next, zeros), "cut in another way")

	stop := errors.New("stop")
	require.ErrorIs(t, s.Compare(t.Context(), old, next, func(block.Extent) error { return stop }), stop)
	for _, pair := range [][2]repository.SnapshotID{{old, "0123456789abcdef0123456789abcdef"}, {"0123456789abcdef0123456789abcdef", old}} {
		err := s.Compare(t.Context(), pair[0], pair[1], func(block.Extent) error { return nil })
		require.ErrorIs(t, err, repository.ErrNotFound)
	}
}

func (s suite) compare(t *testing.T, a, b repository.SnapshotID) []block.Extent {
	t.Helper()
	var found []block.Extent
	require.NoError(t, s.Compare(t.Context(), a, b, func(e block.Extent) error {
		found = append(found, e)
		return nil
	}))
	return found
}

// held: a parent that is deleted while an image is written on it is whole to
// the end.
func (s suite) held(t *testing.T) {
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
	img, _, err := w.Commit(t.Context())
	require.NoError(t, err)
	s.holds(t, s.save(t, shopDB, "op", img), data)
}

func (s suite) defaults(t *testing.T) {
	t.Helper()
	w, err := s.NewWriter(t.Context(), repository.Meta{Size: 1, SnapshotTime: instant}, options(""))
	require.NoError(t, err)
	require.Equal(t, int64(64<<10), w.Meta().ChunkSize)
	require.Equal(t, int64(8<<20), w.Meta().SegmentSize)
	require.Equal(t, int64(8<<10), w.Meta().PageSize)
	w.Abort()
}
