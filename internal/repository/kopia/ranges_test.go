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
		{"alone", []content.Info{at("p1", 0, 10)}, nil},
		{"one in each of two packs", []content.Info{at("p1", 0, 10), at("p2", 10, 10)}, nil},
		{"neighbours, in any order", []content.Info{at("p1", 30, 10), at("p1", 10, 20)}, []packRange{
			{pack: "p1", offset: 10, end: 40, contents: 2},
		}},
		{"the same twice", []content.Info{at("p1", 10, 20), at("p1", 10, 20)}, []packRange{
			{pack: "p1", offset: 10, end: 30, contents: 2},
		}},
		{"a gap", []content.Info{at("p1", 0, 10), at("p1", 10+maxGap, 10)}, []packRange{
			{pack: "p1", offset: 0, end: 20 + maxGap, contents: 2},
		}},
		{"a wide gap", []content.Info{at("p1", 0, 10), at("p1", 11+maxGap, 10), at("p1", 21+maxGap, 10)}, []packRange{
			{pack: "p1", offset: 11 + maxGap, end: 31 + maxGap, contents: 2},
		}},
		{"two ranges", []content.Info{at("p1", 0, maxRange-1), at("p1", maxRange-1, 1), at("p1", maxRange, 5), at("p1", maxRange+5, 5)}, []packRange{
			{pack: "p1", offset: 0, end: maxRange, contents: 2},
			{pack: "p1", offset: maxRange, end: maxRange + 10, contents: 2},
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
	img, _, err := w.Commit(t.Context())
	require.NoError(t, err)
	id := save(t, s, img)

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
