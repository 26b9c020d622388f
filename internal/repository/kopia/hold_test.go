package kopia

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

// maintain runs kopia's full maintenance in a process of its own, without safety delays. It
// waits for the next second: if a content and its deletion are of the same second, kopia
// keeps the content, and nothing would be lost.
func maintain(t *testing.T, dir string) {
	t.Helper()
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
	maintainStore(t, openStoreAt(t, dir, &clock{})) // kopia locks a file beside that of the connection
}

// maintainStore is maintain for a test with a clock of its own.
func maintainStore(t *testing.T, s *Store) {
	t.Helper()
	require.NoError(t, s.rep.Refresh(t.Context()))
	direct, ok := s.rep.(repo.DirectRepository)
	require.True(t, ok)
	require.NoError(t, repo.DirectWriteSession(t.Context(), direct, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return snapshotmaintenance.Run(ctx, w, maintenance.ModeFull, true, maintenance.SafetyNone)
	}))
	requireNoLoss(t, s)
}

// holdsIn lists the incomplete manifests in the repository.
func holdsIn(t *testing.T, s *Store) []*snapshot.Manifest {
	t.Helper()
	require.NoError(t, s.rep.Refresh(t.Context()))
	ids, err := snapshot.ListSnapshotManifests(t.Context(), s.rep, nil, nil)
	require.NoError(t, err)
	all, err := snapshot.LoadSnapshots(t.Context(), s.rep, ids)
	require.NoError(t, err)
	var result []*snapshot.Manifest
	for _, m := range all {
		if m.IncompleteReason != "" {
			result = append(result, m)
		}
	}
	return result
}

// TestParentIsDeletedWhileAnIncrementRuns is the worst case for a parent: its backup is
// deleted, and maintenance runs, twice.
func TestParentIsDeletedWhileAnIncrementRuns(t *testing.T) {
	// run deletes the parent after so many steps of the increment, which looks for it in the end.
	run := func(t *testing.T, deleteAfter int, begun func(s *Store), looks bool) (*Store, repository.SnapshotID, []byte, error) {
		t.Helper()
		dir := newRepository(t)
		s := openStore(t, dir)
		begun(s)
		meta := testMeta(200<<10, testTime)
		data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
		if looks {
			clear(data[100<<10 : 110<<10])
		} else {
			// Another volume keeps the zeros, which are looked for because every writer puts them.
			other, err := s.NewWriter(t.Context(), testMeta(4<<10, testTime), repository.WriterOptions{
				Volume: repository.VolumeKey{Namespace: "shop", PVC: "log"}, Operation: "zeros",
			})
			require.NoError(t, err)
			commit(t, other)
		}
		full, _ := backup(t, s, meta, "", data, allChunks(t, meta))

		w, err := s.NewWriter(t.Context(), meta, nextOperation(full))
		require.NoError(t, err)
		defer w.Close(t.Context(), repository.Discard) //nolint:errcheck // it may be committed
		inner, ok := w.(*writer)
		require.True(t, ok)
		data[5000]++
		if looks {
			clear(data[60<<10 : 64<<10])
		} else {
			inner.hold.parent = ""
			data[60<<10]++
		}
		var id repository.SnapshotID
		for i, step := range []func() error{
			func() error { return w.Put(t.Context(), 1, chunkOf(meta, data, 1)) },
			func() error { return w.Put(t.Context(), 15, chunkOf(meta, data, 15)) },
			func() error { return w.Advance(t.Context(), 16) },
			func() error { return w.Advance(t.Context(), meta.Size/meta.ChunkSize) },
			func() (err error) { id, _, err = w.Commit(t.Context(), named); return err },
		} {
			if i == deleteAfter {
				require.NoError(t, openStore(t, dir).Delete(t.Context(), full))
			}
			if i == deleteAfter || i == deleteAfter+1 {
				maintain(t, dir)
			}
			if err := step(); err != nil {
				require.NoError(t, w.Close(t.Context(), repository.Discard))
				return openStore(t, dir), "", nil, err
			}
		}
		if looks {
			maintain(t, dir)
		}
		return openStore(t, dir), id, data, nil
	}
	for _, remembers := range []bool{false, true} {
		remember := func(s *Store) {
			if remembers {
				s.rep = remembering(s.rep) // as in a mover pod
			}
		}
		for _, deleteAfter := range []int{0, 3, 4} {
			t.Run(fmt.Sprintf("after %d steps, the store remembers when it has read the index: %t", deleteAfter, remembers), func(t *testing.T) {
				s, id, data, err := run(t, deleteAfter, func(s *Store) { s.holdDelay = 1; remember(s) }, true)
				require.NoError(t, err, "held")
				requireImage(t, s, id, data)
				require.Empty(t, holdsIn(t, s))

				s, _, _, err = run(t, deleteAfter, remember, true)
				require.True(t, errors.Is(err, repository.ErrParentDeleted) || errors.Is(err, errLost), "not held yet: %v", err)
				require.NotErrorIs(t, err, repository.ErrNotFound, "another attempt does without the parent")
				list, err := s.List(t.Context(), testVolume)
				require.NoError(t, err)
				require.Empty(t, list)
				require.Empty(t, holdsIn(t, s))

				if deleteAfter == 4 {
					return // maintenance runs only once before the image is saved, which is not enough to lose anything
				}
				s, id, data, err = run(t, deleteAfter, remember, false)
				if err == nil {
					var r repository.VolumeReader
					if r, err = s.OpenReader(t.Context(), id); err == nil {
						_, err = r.ReadAt(make([]byte, len(data)), 0)
					}
				}
				require.ErrorIs(t, err, repository.ErrNotFound, "without a look for the parent, there is loss")
				require.Equal(t, deleteAfter > 2, id != "", "which nothing notices before a restore, once all is sealed")
			})
		}
	}
}

// TestFirstHold: an operation has a hold once it has run for some time.
func TestFirstHold(t *testing.T) {
	s := newStore(t)
	meta := testMeta(40<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	for _, deleted := range []bool{false, true} {
		w, err := s.NewWriter(t.Context(), meta, nextOperation(full))
		require.NoError(t, err)
		inner, ok := w.(*writer)
		require.True(t, ok)
		require.NoError(t, w.Advance(t.Context(), 4))
		require.Empty(t, holdsIn(t, s), "not yet")
		inner.hold.start = inner.hold.start.Add(-holdDelay)
		if deleted {
			require.NoError(t, s.Delete(t.Context(), full))
			require.ErrorIs(t, w.Advance(t.Context(), 8), repository.ErrParentDeleted)
			require.NoError(t, w.Close(t.Context(), repository.Discard))
			require.Empty(t, holdsIn(t, s))
			continue
		}
		require.NoError(t, w.Advance(t.Context(), 8))
		require.Len(t, holdsIn(t, s), 1)
		require.NoError(t, w.Close(t.Context(), repository.Discard))
		require.Empty(t, holdsIn(t, s))
	}
}

// TestUploadedPacksAreDeleted: without its safety delays, maintenance deletes what was
// uploaded while nothing refers to it. The writer cannot prevent that, but it makes no image
// that lacks something.
func TestUploadedPacksAreDeleted(t *testing.T) {
	for _, c := range []struct {
		name     string
		interval int64
		when     string
	}{
		{"before the commit", 0, "commit image"},
		{"before a checkpoint", 1, "record what is finished"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := newRepository(t)
			s := openStore(t, dir)
			meta := testMeta(64<<20, testTime) // three packs, of 20 MiB
			meta.ChunkSize, meta.SegmentSize = 1<<20, 8<<20
			data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
			o := nextOperation("")
			o.CheckpointInterval = c.interval
			w, err := s.NewWriter(t.Context(), meta, o)
			require.NoError(t, err)
			defer w.Close(t.Context(), repository.Discard) //nolint:errcheck // it may be committed
			for chunk := range meta.Size / meta.ChunkSize {
				require.NoError(t, w.Put(t.Context(), chunk, chunkOf(meta, data, chunk)))
			}
			maintain(t, dir)
			if c.interval > 0 {
				err = w.Advance(t.Context(), 48)
			} else {
				_, _, err = w.Commit(t.Context(), named)
			}
			require.ErrorIs(t, err, errLost)
			require.NotErrorIs(t, err, repository.ErrNotFound, "another attempt stores it again")
			require.ErrorContains(t, err, c.when)
			after := openStore(t, dir)
			require.Empty(t, holdsIn(t, after), "nobody goes on from there")
			list, err := after.List(t.Context(), testVolume)
			require.NoError(t, err)
			require.Empty(t, list)
		})
	}
}

// TestZerosThatNobodyUses: volume.json names zeros that no chunk refers to, and maintenance
// deletes them.
func TestZerosThatNobodyUses(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(64<<10, testTime)
	meta.ChunkSize, meta.PageSize = 16<<10, 4<<10
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	id, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	_, img, err := s.load(t.Context(), id)
	require.NoError(t, err)
	maintain(t, dir)
	again := openStore(t, dir)
	for _, z := range img.document.Zero {
		require.ErrorIs(t, checkPresent(t.Context(), again.rep, z.Object), repository.ErrNotFound)
	}
	requireImage(t, again, id, data)

	// They come back with the first image that needs them.
	clear(data[:16<<10])
	clear(data[20<<10 : 24<<10])
	w, err := again.NewWriter(t.Context(), meta, nextOperation(id))
	require.NoError(t, err)
	require.NoError(t, w.Put(t.Context(), 0, chunkOf(meta, data, 0)))
	require.NoError(t, w.PutPages(t.Context(), 1, []repository.Pages{{Data: chunkOf(meta, data, 1)}}))
	id, _ = commit(t, w)
	maintain(t, dir)
	requireImage(t, openStore(t, dir), id, data)
}

func TestHoldsComeAndGo(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(20<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	require.Empty(t, holdsIn(t, s))
	s.holdDelay = 1

	o := nextOperation(full)
	w, err := s.NewWriter(t.Context(), meta, o)
	require.NoError(t, err)
	holds := holdsIn(t, s)
	require.Len(t, holds, 1, "from the first moment")
	_, err = s.Get(t.Context(), repository.SnapshotID(holds[0].ID))
	require.ErrorIs(t, err, repository.ErrNotFound)
	list, err := s.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Len(t, list, 1)

	// Another operation on the volume has its own.
	other := o
	other.Operation = "other"
	second, err := s.NewWriter(t.Context(), meta, other)
	require.NoError(t, err)
	require.Len(t, holdsIn(t, s), 2)
	require.NoError(t, second.Close(t.Context(), repository.Discard))
	require.Len(t, holdsIn(t, s), 1, "discarded")

	// A second run of the operation takes over what the first has left.
	next := openStore(t, dir)
	next.holdDelay = 1
	again, err := next.NewWriter(t.Context(), meta, o)
	require.NoError(t, err)
	require.Len(t, holdsIn(t, s), 1)
	require.NoError(t, again.Close(t.Context(), repository.Discard))
	require.Empty(t, holdsIn(t, s))

	id, _ := commit(t, w)
	require.Empty(t, holdsIn(t, s), "replaced")
	requireImage(t, s, id, data)

	bad := meta
	bad.ChunkSize *= 2
	_, err = s.NewWriter(t.Context(), bad, nextOperation(full))
	require.Error(t, err)
	require.Empty(t, holdsIn(t, s))
}

// TestDeadOperationsAreSwept: their holds are deleted when the next operation of any volume
// starts, and only when they are old.
func TestDeadOperationsAreSwept(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(20<<10, testTime)
	full, _ := backup(t, s, meta, "", make([]byte, meta.Size), allChunks(t, meta))
	s.holdDelay = 1
	_, err := s.NewWriter(t.Context(), meta, nextOperation(full)) // and it never continues
	require.NoError(t, err)

	next := func(now time.Time) int {
		later := &Store{rep: clockRepository{s.rep, now}}
		o := repository.WriterOptions{Volume: repository.VolumeKey{Namespace: "shop", PVC: "log"}, Operation: "next"}
		w, err := later.NewWriter(t.Context(), meta, o)
		require.NoError(t, err)
		require.NoError(t, w.Close(t.Context(), repository.Discard))
		return len(holdsIn(t, s))
	}
	require.Equal(t, 1, next(time.Now().Add(holdLife-time.Minute)))
	require.Equal(t, 0, next(time.Now().Add(holdLife+time.Minute)))
}

// TestHoldsOfSavedImagesAreSwept: a compaction of kopia can bring back a hold that was deleted when its image was saved.
func TestHoldsOfSavedImagesAreSwept(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(20<<10, testTime)
	data := bytes.Repeat([]byte{7}, int(meta.Size))
	o := nextOperation("")
	o.CheckpointInterval = 1
	w, err := s.NewWriter(t.Context(), meta, o)
	require.NoError(t, err)
	for c := range meta.Size / meta.ChunkSize {
		require.NoError(t, w.Put(t.Context(), c, chunkOf(meta, data, c)))
	}
	require.NoError(t, w.Advance(t.Context(), 4))
	hold, err := snapshot.LoadSnapshot(t.Context(), s.rep, holdsIn(t, s)[0].ID)
	require.NoError(t, err)
	id, _ := commit(t, w)
	require.Empty(t, holdsIn(t, s))

	require.NoError(t, repo.WriteSession(t.Context(), s.rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		_, err := snapshot.SaveSnapshot(ctx, w, hold)
		return err
	}))
	require.Len(t, holdsIn(t, s), 1)

	other, err := openStore(t, dir).NewWriter(t.Context(), meta, repository.WriterOptions{
		Volume: repository.VolumeKey{Namespace: "shop", PVC: "log"}, Operation: "another",
	})
	require.NoError(t, err)
	require.Empty(t, holdsIn(t, s))
	require.NoError(t, other.Close(t.Context(), repository.Discard))
	requireImage(t, s, id, data)
}

// clockRepository is a repository at another time.
type clockRepository struct {
	repo.Repository
	now time.Time
}

func (r clockRepository) Time() time.Time { return r.now }

// TestOpenAfterMaintenance: a store that was opened before maintenance moved everything finds
// it.
func TestOpenAfterMaintenance(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(20<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	var ids []repository.SnapshotID
	for range 3 {
		id, _ := backup(t, s, meta, "", data, allChunks(t, meta))
		ids = append(ids, id)
		data[0]++
	}
	data[0]--
	for _, id := range ids[:2] {
		require.NoError(t, openStore(t, dir).Delete(t.Context(), id))
	}
	_, err := s.OpenReader(t.Context(), ids[2])
	require.NoError(t, err)
	maintain(t, dir)
	maintain(t, dir)
	requireImage(t, s, ids[2], data)
}

func TestSweepLeavesBackupsAlone(t *testing.T) {
	s := newStore(t)
	meta := testMeta(20<<10, testTime)
	data := bytes.Repeat([]byte{7}, int(meta.Size))
	id, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	later := &Store{rep: clockRepository{s.rep, time.Now().Add(100 * holdLife)}}
	require.NoError(t, sweepHolds(t.Context(), later.rep))
	_, err := snapshot.LoadSnapshot(t.Context(), s.rep, manifest.ID(id))
	require.NoError(t, err)
}
