package repositorytest

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

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
	id, _ := commit(t, w)
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
		end(t, w, repository.Discard)
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
