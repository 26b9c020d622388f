package repositorytest

import (
	"bytes"
	"context"
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
		{"advancing", suite.advancing},
		{"resuming", suite.resuming},
		{"pages", suite.pages},
		{"comparing", suite.comparing},
		{"misuse of a writer", suite.misuse},
		{"parents", suite.parents},
		{"a parent that is deleted", suite.held},
		{"catalog", suite.catalog},
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

		w = begin(m, o)
		require.Equal(t, int64(12), w.Resumed())
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

// pages: any page of a chunk that was put in pages before may be put alone.
func (s suite) pages(t *testing.T) {
	t.Helper()
	const (
		page  = chunk
		large = 4 * page
	)
	m := meta(10*large+page+100, instant)
	m.ChunkSize, m.SegmentSize, m.PageSize = large, 4*large, page
	data := random(1, m.Size)
	clear(data[5*large : 6*large])
	part := func(c, from, end int64) repository.Pages {
		buf := make([]byte, (end-from)*page)
		copy(buf, data[min(c*large+from*page, m.Size):])
		return repository.Pages{Offset: from * page, Data: buf}
	}
	write := func(parent repository.SnapshotID, operation string, put func(w repository.VolumeWriter)) repository.SnapshotID {
		t.Helper()
		o := options(parent)
		o.Operation = operation
		w, err := s.NewWriter(t.Context(), m, o)
		require.NoError(t, err)
		put(w)
		img, _, err := w.Commit(t.Context())
		require.NoError(t, err)
		id := s.save(t, shopDB, operation, img)
		r, err := s.OpenReader(t.Context(), id)
		require.NoError(t, err)
		got := make([]byte, m.Size)
		_, err = r.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got), operation)
		return id
	}
	full := write("", "op-1", func(w repository.VolumeWriter) {
		for c := range int64(11) {
			paged, err := w.Paged(t.Context(), c)
			require.NoError(t, err)
			require.False(t, paged, "there is no parent")
			require.NoError(t, w.Put(t.Context(), c, part(c, 0, 4).Data))
		}
	})
	data[2*large+100]++
	data[m.Size-1]++
	data[5*large+page]++ // in zeros
	split := write(full, "op-2", func(w repository.VolumeWriter) {
		require.NoError(t, w.PutPages(t.Context(), 2, []repository.Pages{part(2, 0, 4)}))
		require.NoError(t, w.PutPages(t.Context(), 10, []repository.Pages{part(10, 0, 1), part(10, 1, 4)}))
		paged, err := w.Paged(t.Context(), 5)
		require.NoError(t, err)
		require.True(t, paged, "zeros")
		require.NoError(t, w.PutPages(t.Context(), 5, []repository.Pages{part(5, 1, 2)}))
	})
	data[2*large+3*page]++
	data[10*large]++
	clear(data[5*large : 6*large])
	third := write(split, "op-3", func(w repository.VolumeWriter) {
		for _, c := range []int64{2, 10} {
			paged, err := w.Paged(t.Context(), c)
			require.NoError(t, err)
			require.True(t, paged)
		}
		require.NoError(t, w.PutPages(t.Context(), 2, []repository.Pages{part(2, 0, 1), part(2, 3, 4)}))
		require.NoError(t, w.PutPages(t.Context(), 5, []repository.Pages{part(5, 0, 4)}))
		require.NoError(t, w.PutPages(t.Context(), 10, []repository.Pages{part(10, 0, 1)}))
	})
	data[2*large]++
	write(third, "op-4", func(w repository.VolumeWriter) {
		require.NoError(t, w.Put(t.Context(), 2, part(2, 0, 4).Data))
	})

	for name, wrong := range map[string][]repository.Pages{
		"none":         {},
		"empty":        {{}},
		"between":      {{Offset: 512, Data: make([]byte, page)}},
		"half a page":  {{Data: make([]byte, page/2)}},
		"descending":   {part(2, 1, 2), part(2, 0, 1)},
		"overlapping":  {part(2, 0, 2), part(2, 1, 3)},
		"beyond":       {{Offset: 3 * page, Data: make([]byte, 2*page)}},
		"before start": {{Offset: -page, Data: make([]byte, page)}},
	} {
		w, err := s.NewWriter(t.Context(), m, options(third))
		require.NoError(t, err)
		require.Error(t, w.PutPages(t.Context(), 2, wrong), name)
		w.Abort()
	}
	w, err := s.NewWriter(t.Context(), m, options(third))
	require.NoError(t, err)
	require.Error(t, w.PutPages(t.Context(), 10, []repository.Pages{{Offset: 3 * page, Data: random(1, page)}}), "padding")
	w.Abort()
	w, err = s.NewWriter(t.Context(), m, options(""))
	require.NoError(t, err)
	require.Error(t, w.PutPages(t.Context(), 2, []repository.Pages{part(2, 0, 1)}), "nothing to inherit")
	w.Abort()
}

// comparing: a chunk matches its own bytes and no others, however it is stored.
func (s suite) comparing(t *testing.T) {
	t.Helper()
	const large = 4 * chunk
	m := meta(6*large+100, instant)
	m.ChunkSize, m.SegmentSize, m.PageSize = large, 4*large, chunk
	data := random(1, m.Size)
	clear(data[large : 2*large])
	whole := func(data []byte, c int64) []byte {
		buf := make([]byte, large)
		copy(buf, data[c*large:])
		return buf
	}
	image := func(parent repository.SnapshotID, operation string, put func(w repository.VolumeWriter)) repository.SnapshotID {
		t.Helper()
		o := options(parent)
		o.Operation = operation
		w, err := s.NewWriter(t.Context(), m, o)
		require.NoError(t, err)
		put(w)
		img, _, err := w.Commit(t.Context())
		require.NoError(t, err)
		return s.save(t, shopDB, operation, img)
	}
	full := image("", "op-1", func(w repository.VolumeWriter) {
		for c := range int64(7) {
			require.NoError(t, w.Put(t.Context(), c, whole(data, c)))
		}
	})
	data[2*large]++ // chunk 2 is in pages, one of which is zero
	clear(data[2*large+chunk : 2*large+2*chunk])
	id := image(full, "op-2", func(w repository.VolumeWriter) {
		require.NoError(t, w.PutPages(t.Context(), 2, []repository.Pages{{Data: whole(data, 2)}}))
	})
	r, err := s.OpenReader(t.Context(), id)
	require.NoError(t, err)
	for range 2 { // a comparison leaves nothing behind that the next one would see
		for c := range int64(7) {
			same, err := r.Matches(t.Context(), c, whole(data, c))
			require.NoError(t, err)
			require.True(t, same, "chunk %d", c)
			for _, at := range []int64{0, chunk, large - 1} {
				other := whole(data, c)
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
		require.True(t, bytes.Equal(whole(data, c), got), "chunk %d", c)
		require.NoError(t, r.Close())
	}
}

func (s suite) misuse(t *testing.T) {
	t.Helper()
	const size = 2*chunk + 1
	zeros := make([]byte, chunk)
	for name, wrong := range map[string]func(context.Context, repository.VolumeWriter) error{
		"too short":        func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 0, zeros[1:]) },
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
	img, _ = s.write(t, meta(chunk, instant), "", random(2, chunk), []int64{0})
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
	require.Equal(t, int64(repository.DefaultChunkSize), w.Meta().ChunkSize)
	require.Equal(t, int64(repository.DefaultSegmentSize), w.Meta().SegmentSize)
	w.Abort()
}
