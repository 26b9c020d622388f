package kopia

import (
	"context"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

// TestCheck: what is gone is found without reading data.
func TestCheck(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(200<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	clear(data[64<<10 : 128<<10])
	full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	data[180<<10]++
	next, _ := backup(t, s, meta, full, data, []int64{45})
	data[0]++
	third, _ := backup(t, s, meta, full, data, []int64{0})
	for _, id := range []repository.SnapshotID{full, next, third} {
		require.NoError(t, s.Check(t.Context(), id))
	}

	// A chunk that only the second one has.
	_, img, err := s.load(t.Context(), next)
	require.NoError(t, err)
	l := mustLayout(t, meta.WithDefaults())
	root, err := loadRoot(t.Context(), s.rep, img.disk, l)
	require.NoError(t, err)
	seg, err := loadSegment(t.Context(), s.rep, root[11], l.SegmentLength(11), l.ChunkSize())
	require.NoError(t, err)
	info, err := s.rep.ContentInfo(t.Context(), firstContent(seg.chunk(1)[0].Object))
	require.NoError(t, err)
	deleteContent(t, s, seg.chunk(1)[0].Object)
	require.NoError(t, s.Check(t.Context(), full))
	require.ErrorIs(t, s.Check(t.Context(), next), repository.ErrNotFound)
	require.ErrorContains(t, s.Check(t.Context(), next), "chunk 1 of segment 11: content")

	// The pack of all other chunks.
	other, err := s.rep.ContentInfo(t.Context(), firstContent(seg.chunk(0)[0].Object))
	require.NoError(t, err)
	require.NotEqual(t, info.PackBlobID, other.PackBlobID)
	require.NoError(t, os.Remove(last(blobFiles(t, dir, string(other.PackBlobID)))))
	require.ErrorIs(t, s.Check(t.Context(), full), repository.ErrNotFound)
	require.ErrorIs(t, s.Check(t.Context(), third), repository.ErrNotFound)
	require.ErrorContains(t, s.Check(t.Context(), third), "look up pack "+string(other.PackBlobID), "it has its own documents")
}

// dying is a repository whose index cannot be read any more after so many times.
type dying struct {
	repo.DirectRepository
	left int
}

func (d *dying) Refresh(ctx context.Context) error {
	if d.left--; d.left < 0 {
		return context.Canceled
	}
	return d.DirectRepository.Refresh(ctx)
}

// TestKilledBeforeItHasLooked: a run that has saved an image, and is killed before it has looked whether all of it is there, leaves the image.
func TestKilledBeforeItHasLooked(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(64<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	data[0]++
	d := &dying{direct(t, s), 100}
	s.rep = d
	w, err := s.NewWriter(t.Context(), meta, nextOperation(full))
	require.NoError(t, err)
	require.NoError(t, w.Put(t.Context(), 0, chunkOf(meta, data, 0)))
	d.left = 1 // to look whether another process has saved it
	_, _, err = w.Commit(t.Context(), named)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, w.Close(t.Context(), repository.Suspend))

	after := openStore(t, dir)
	list, err := after.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Len(t, list, 2)
	for _, image := range list {
		require.NoError(t, after.Check(t.Context(), image.ID))
		if image.ID != full {
			requireImage(t, after, image.ID, data)
		}
	}
	require.Empty(t, holdsIn(t, after))
}
