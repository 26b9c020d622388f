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
	type planned struct {
		pack                blob.ID
		offset, end, unread int64
	}
	for _, c := range []struct {
		name  string
		infos []content.Info
		want  []planned
	}{
		{"nothing", nil, nil},
		{"alone", []content.Info{at("p1", 0, 10)}, []planned{{"p1", 0, 10, 1}}},
		{"one in each of two packs", []content.Info{at("p2", 10, 10), at("p1", 0, 10)}, []planned{{"p1", 0, 10, 1}, {"p2", 10, 20, 1}}},
		{"neighbours, in any order", []content.Info{at("p1", 30, 10), at("p1", 10, 20)}, []planned{{"p1", 10, 40, 2}}},
		{"the same twice", []content.Info{at("p1", 10, 20), at("p1", 10, 20)}, []planned{{"p1", 10, 30, 2}}},
		{"a gap", []content.Info{at("p1", 0, 10), at("p1", 10+maxGap, 10)}, []planned{{"p1", 0, 20 + maxGap, 2}}},
		{"a wide gap", []content.Info{at("p1", 0, 10), at("p1", 11+maxGap, 10), at("p1", 21+maxGap, 10)}, []planned{
			{"p1", 0, 10, 1},
			{"p1", 11 + maxGap, 31 + maxGap, 2},
		}},
		{"two ranges", []content.Info{at("p1", 0, maxRange-1), at("p1", maxRange-1, 1), at("p1", maxRange, 5), at("p1", maxRange+5, 5)}, []planned{
			{"p1", 0, maxRange, 2},
			{"p1", maxRange, maxRange + 10, 2},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []planned
			for _, r := range planRanges(c.infos, maxGap) {
				got = append(got, planned{r.pack, r.offset, r.end, r.unread.Load()})
			}
			require.Equal(t, c.want, got)
		})
	}
}

// TestFindInRanges: a content is found in the range that holds all of it, and nowhere else.
func TestFindInRanges(t *testing.T) {
	var ranges fetched
	for _, r := range []*packRange{{pack: "p1", offset: 10, end: 20}, {pack: "p1", offset: 30, end: 40}, {pack: "p3", offset: 0, end: 5}} {
		buf := make(rangeBuffer, r.end-r.offset)
		for i := range buf {
			buf[i] = byte(r.offset) + byte(i)
		}
		r.buf = &buf
		ranges.ranges = append(ranges.ranges, r)
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
		found := several{new(fetched), &ranges}.find(c.pack, c.offset, c.length, func(data []byte) {
			require.Len(t, data, int(c.length))
			require.Equal(t, byte(c.offset), data[0])
		})
		require.Equal(t, c.found, found, c)
	}
	ranges.ranges[2].buf = nil // it was freed
	require.False(t, several{&ranges}.find("p3", 0, 5, nil))
}

// TestRangesAreFreed: a range is freed with the last read of what it was fetched for, and read anew by who comes later.
func TestRangesAreFreed(t *testing.T) {
	s := openStore(t, newRepository(t))
	meta := testMeta(256<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 2)), meta.Size)
	copy(data[meta.ChunkSize:], data[:meta.ChunkSize]) // the second chunk is the first one again
	id, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	r, err := s.openReader(t.Context(), id)
	require.NoError(t, err)

	ids, _, err := r.regionContents(0, 1)
	require.NoError(t, err)
	require.Equal(t, ids[0], ids[1])
	found := r.ranges.plan(t.Context(), ids, 1<<20)
	require.Len(t, found.ranges, 1)
	require.NoError(t, r.ranges.get(t.Context(), found))
	ctx := context.WithValue(t.Context(), fetchedKey{}, several{found})
	got := make([]byte, meta.ChunkSize)
	for again := range 2 {
		for n, id := range ids {
			fetched := r.ranges.read(ctx, id, got)
			require.Equal(t, again == 0, fetched, n)
			if fetched {
				require.Equal(t, data[int64(n)*meta.ChunkSize:][:meta.ChunkSize], got)
			}
			require.Equal(t, again > 0 || n == len(ids)-1, found.ranges[0].buf == nil, n)
		}
	}
	require.Zero(t, found.held.Load())
	found.release()
	require.Zero(t, found.held.Load())
	all := make([]byte, meta.Size)
	_, err = r.ReadAt(all, 0)
	require.NoError(t, err)
	require.Equal(t, data, all)
	require.NoError(t, r.Close())
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
