package kopia

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

func TestPlanRanges(t *testing.T) {
	at := func(pack blob.ID, offset, length uint32) content.Info {
		return content.Info{PackBlobID: pack, PackOffset: offset, PackedLength: length}
	}
	for _, c := range []struct {
		name  string
		infos []content.Info
		want  []packRange
	}{
		{"nothing", nil, nil},
		{"alone", []content.Info{at("p1", 0, 10)}, []packRange{{pack: "p1", offset: 0, end: 10}}},
		{"one in each of two packs", []content.Info{at("p2", 10, 10), at("p1", 0, 10)}, []packRange{
			{pack: "p1", offset: 0, end: 10},
			{pack: "p2", offset: 10, end: 20},
		}},
		{"neighbours, in any order", []content.Info{at("p1", 30, 10), at("p1", 10, 20)}, []packRange{
			{pack: "p1", offset: 10, end: 40},
		}},
		{"the same twice", []content.Info{at("p1", 10, 20), at("p1", 10, 20)}, []packRange{
			{pack: "p1", offset: 10, end: 30},
		}},
		{"a gap", []content.Info{at("p1", 0, 10), at("p1", 10+maxGap, 10)}, []packRange{
			{pack: "p1", offset: 0, end: 20 + maxGap},
		}},
		{"a wide gap", []content.Info{at("p1", 0, 10), at("p1", 11+maxGap, 10), at("p1", 21+maxGap, 10)}, []packRange{
			{pack: "p1", offset: 0, end: 10},
			{pack: "p1", offset: 11 + maxGap, end: 31 + maxGap},
		}},
		{"two ranges", []content.Info{at("p1", 0, maxRange-1), at("p1", maxRange-1, 1), at("p1", maxRange, 5), at("p1", maxRange+5, 5)}, []packRange{
			{pack: "p1", offset: 0, end: maxRange},
			{pack: "p1", offset: maxRange, end: maxRange + 10},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []packRange
			for _, r := range planRanges(c.infos) {
				got = append(got, *r)
			}
			require.Equal(t, c.want, got)
		})
	}
}

// TestFindInRanges: a content is found in the range that holds all of it, and nowhere else.
func TestFindInRanges(t *testing.T) {
	var ranges fetched
	for _, r := range []packRange{{pack: "p1", offset: 10, end: 20}, {pack: "p1", offset: 30, end: 40}, {pack: "p3", offset: 0, end: 5}} {
		buf := make(rangeBuffer, r.end-r.offset)
		for i := range buf {
			buf[i] = byte(r.offset) + byte(i)
		}
		r.buf = &buf
		ranges.ranges = append(ranges.ranges, &r)
	}
	for _, c := range []struct {
		pack           blob.ID
		offset, length int64
		found          bool
	}{
		{"p1", 10, 10, true},
		{"p1", 12, 3, true},
		{"p1", 30, 10, true},
		{"p1", 39, 1, true},
		{"p3", 0, 5, true},
		{"p1", 9, 1, false},
		{"p1", 9, 2, false},
		{"p1", 19, 2, false},
		{"p1", 25, 1, false},
		{"p1", 15, 20, false},
		{"p1", 40, 1, false},
		{"p0", 10, 1, false},
		{"p2", 10, 1, false},
		{"p3", 4, 2, false},
		{"p4", 0, 1, false},
	} {
		data, found := ranges.find(c.pack, c.offset, c.length)
		require.Equal(t, c.found, found, c)
		if found {
			require.Len(t, data, int(c.length))
			require.Equal(t, byte(c.offset), data[0])
		}
	}
	_, found := new(fetched).find("p1", 0, 1)
	require.False(t, found)
}

// vanishing counts requests. It removes a pack once a range of it was fetched, so that a
// second request fails.
type vanishing struct {
	blob.Reader
	repo     string
	requests atomic.Int64
}

func (v *vanishing) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	v.requests.Add(1)
	if err := v.Reader.GetBlob(ctx, id, offset, length, output); err != nil {
		return err
	}
	// The first letters of the ID are directories.
	return filepath.WalkDir(v.repo, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(strings.ReplaceAll(path, "/", ""), string(id)+".f") {
			return os.Remove(path)
		}
		return err
	})
}

// TestReadFetchesRanges reads an image in pages, and finds every page in the answers of a few
// requests.
func TestReadFetchesRanges(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	const size = 256 << 10
	meta := testMeta(size, testTime)
	meta.ChunkSize, meta.SegmentSize, meta.PageSize = 64<<10, 128<<10, 4<<10
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	full, _ := backup(t, s, meta, "", data, []int64{0, 1, 2, 3})
	data[1] ^= 1
	w, err := s.NewWriter(t.Context(), meta, nextOperation(full))
	require.NoError(t, err)
	require.NoError(t, w.PutPages(t.Context(), 0, []repository.Pages{{Data: data[:meta.ChunkSize]}}))
	id, _ := commit(t, w)

	r, err := s.openReader(t.Context(), id)
	require.NoError(t, err)
	v := &vanishing{Reader: r.ranges.blobs, repo: dir}
	r.ranges.blobs = v
	got := make([]byte, size)
	_, err = r.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, data, got)
	require.Equal(t, int64(2), v.requests.Load(), "one for the pages, one for the chunks of the parent")

	_, err = r.ReadAt(got, 0)
	require.ErrorIs(t, err, repository.ErrNotFound, "the packs are gone, and the test would not notice a read")
	require.ErrorContains(t, err, "read pack p")
}
