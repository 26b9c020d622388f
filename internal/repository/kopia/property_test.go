package kopia

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

// How many histories TestRandomHistories goes through, and how long one is. A
// history is short, so that what went wrong in it can be read. Several share a
// repository, as kopia derives its keys slowly; not too many, as it lists all that
// there is again and again.
const (
	envHistories     = "BLOCKMOVER_HISTORIES"
	defaultHistories = 200
	historySteps     = 25
	historiesShare   = 10
)

// TestRandomHistories drives everything from the choice of a parent to the
// restored device with random histories of a volume, against plain byte slices.
func TestRandomHistories(t *testing.T) {
	histories := defaultHistories
	if testing.Short() {
		histories /= 10
	}
	if text := os.Getenv(envHistories); text != "" {
		var err error
		histories, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	done := map[string]int{}
	for first := 0; first < histories; first += historiesShare {
		t.Run(fmt.Sprintf("from %d", first), func(t *testing.T) {
			dir := newRepositoryIn(t, memoryDir(t))
			// Maintenance is another process's, with the same clock.
			c := &clock{}
			s, maintainer := openStoreAt(t, dir, c), openStoreAt(t, dir, c)
			for seed := first; seed < min(first+historiesShare, histories); seed++ {
				t.Logf("seed %d", seed)
				h := newHistory(t, s, maintainer, uint64(seed)) //nolint:gosec // it is not negative
				h.done, h.clock = done, c
				for range historySteps {
					h.step()
				}
				h.end()
			}
		})
	}
	t.Log(done)
	for _, what := range []string{
		"Full", "Incremental", "abort", "delete", "discard", "exact list", "grow", "list that says more",
		"maintenance", "pages", "restore", "shrink", "write",
	} {
		require.NotZero(t, done[what], what)
	}
}

// clock is ahead of the real one by some seconds.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time {
	return time.Now().Add(time.Duration(c.ahead.Load()) * time.Second)
}

func openStoreAt(t *testing.T, dir string, c *clock) *Store {
	t.Helper()
	st, err := openDirectory(t.Context(), dir, false)
	require.NoError(t, err)
	storage := st.ConnectionInfo()
	file := filepath.Join(t.TempDir(), "repository.config")
	require.NoError(t, writeConnection(file, repo.LocalConfig{
		Storage: &storage, ClientOptions: repo.ClientOptions{Username: snapshotUser, Hostname: snapshotHost},
	}))
	rep, err := repo.Open(t.Context(), file, testPassword, &repo.Options{TimeNowFunc: c.now})
	require.NoError(t, err)
	s := New(rep)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	return s
}

// memoryDir is a temporary directory in memory, where there is such a thing.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "histories")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// history is a volume, the snapshots of it that storage and repository keep,
// and what each of them must hold.
type history struct {
	t                 *testing.T
	rnd               *rand.Rand
	store, maintainer *Store
	clock             *clock
	now               time.Time
	// data is the volume now.
	data []byte
	// snapshots are the backups, oldest first.
	snapshots []savedVolume
	// done counts what has happened, and the chunks in pages.
	done map[string]int
	// cut is how all images of the history are cut.
	cut repository.Meta
}

type savedVolume struct {
	id     repository.SnapshotID
	change cbt.ChangeID
	data   []byte
}

const historyMax = 200 << 10

func newHistory(t *testing.T, s, maintainer *Store, seed uint64) *history {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	cut := testMeta(1, testTime)
	if seed%3 > 0 { // chunks of several pages
		cut.ChunkSize, cut.SegmentSize, cut.PageSize = 16<<10, 64<<10, 4<<10
	}
	return &history{
		cut: cut,
		t:   t, rnd: rnd, store: s, maintainer: maintainer, now: testTime,
		data: randomBytes(rnd, 1+rnd.Int64N(historyMax)),
	}
}

func (h *history) step() {
	switch n := h.rnd.IntN(20); {
	case n < 7:
		h.done["write"]++
		e := h.extent()
		copy(h.data[e.Offset:e.End()], randomBytes(h.rnd, e.Length))
	case n < 9:
		h.done["discard"]++
		e := h.extent()
		clear(h.data[e.Offset:e.End()])
	case n == 9:
		h.done["grow"]++ // what is new need not be zero
		h.data = append(h.data, randomBytes(h.rnd, h.rnd.Int64N(historyMax/4))...)
		if h.rnd.IntN(2) == 0 {
			h.data = append(h.data, make([]byte, h.rnd.Int64N(historyMax/4))...)
		}
	case n == 10:
		h.done["shrink"]++
		h.data = h.data[:1+h.rnd.IntN(len(h.data))]
	case n == 11:
		h.restore(h.pick())
	case n < 14:
		h.delete(h.pick())
	case n == 14:
		h.maintain()
	default:
		h.backup()
	}
}

func (h *history) extent() block.Extent {
	size := int64(len(h.data))
	off := h.rnd.Int64N(size)
	return block.Extent{Offset: off, Length: 1 + h.rnd.Int64N(min(size-off, 12<<10))}
}

// changes is what a storage says: the blocks of 1 KiB that differ, and some
// that do not.
func (h *history) changes(base []byte) []block.Extent {
	const unit = 1 << 10
	var result []block.Extent
	reportMore := h.rnd.IntN(3) == 0
	if reportMore {
		h.done["list that says more"]++
	} else {
		h.done["exact list"]++
	}
	for off := 0; off < len(h.data); off += unit {
		end := min(off+unit, len(h.data))
		same := end <= len(base) && bytes.Equal(h.data[off:end], base[off:end])
		if same && (!reportMore || h.rnd.IntN(4) > 0) {
			continue
		}
		// What the volume has grown by may be reported or not.
		if off >= len(base) && h.rnd.IntN(2) == 0 {
			continue
		}
		result = append(result, block.Extent{Offset: int64(off), Length: int64(end - off)})
	}
	return result
}

func (h *history) backup() {
	h.now = h.now.Add(time.Hour)
	volume := cbttest.Volume{
		Capacity:   int64(len(h.data)),
		Allocated:  h.changes(make([]byte, len(h.data))),
		Changed:    map[cbt.ChangeID][]block.Extent{},
		PerMessage: 1 + h.rnd.IntN(50),
	}
	for _, s := range h.snapshots {
		if h.rnd.IntN(5) > 0 { // sometimes the base is gone from the storage
			volume.Changed[s.change] = h.changes(s.data)
		}
	}
	meta := h.cut
	meta.Size, meta.SnapshotTime = int64(len(h.data)), h.now
	meta.ChangeID = h.now.String()
	parent := identity.ParentAuto
	if h.rnd.IntN(10) == 0 {
		parent = identity.ParentNone
	}
	saved, err := h.store.List(h.t.Context(), testVolume)
	require.NoError(h.t, err)
	run, err := chain.Begin(h.t.Context(), chain.Input{
		Operation: nextOperation("").Operation,
		Request:   chain.Request{Parent: parent, Now: h.now, Target: meta},
		Volume:    testVolume,
		History:   saved,
		Store:     h.store,
		Source:    cbttest.Memory{Volume: volume},
		Collect:   cbt.Options{PageSize: 1 << 10},
		Audit:     100,
		Device:    device.NewMemory(h.data, 512),
	})
	require.NoError(h.t, err)
	require.False(h.t, run.Audited.Differs, "the storage is honest: %s", run.Detail)
	h.done[string(run.Kind)]++
	if h.rnd.IntN(10) == 0 {
		h.done["abort"]++
		require.NoError(h.t, run.Writer.Close(h.t.Context(), repository.Discard))
		return
	}
	options := datapath.Options{Workers: 1 + h.rnd.IntN(4), ReadSize: int64(1+h.rnd.IntN(3)) * h.cut.ChunkSize}
	_, err = datapath.Backup(h.t.Context(), device.NewMemory(bytes.Clone(h.data), 512), run.Read, run.Writer, options)
	require.NoError(h.t, err)
	id, _ := commit(h.t, run.Writer)
	h.countPages(id)
	h.snapshots = append(h.snapshots, savedVolume{id, cbt.ChangeID(meta.ChangeID), bytes.Clone(h.data)})
}

func (h *history) countPages(id repository.SnapshotID) {
	_, dir, err := h.store.load(h.t.Context(), id)
	require.NoError(h.t, err)
	l := mustLayout(h.t, dir.document.Meta)
	root, err := loadRoot(h.t.Context(), h.store.rep, dir.disk, l)
	require.NoError(h.t, err)
	for i, id := range root {
		seg, err := loadSegment(h.t.Context(), h.store.rep, id, l.SegmentLength(int64(i)), l.ChunkSize())
		require.NoError(h.t, err)
		for c := range seg.count() {
			if len(seg.chunk(c)) > 1 {
				h.done["pages"]++
			}
		}
	}
}

func (h *history) pick() int {
	if len(h.snapshots) == 0 {
		return -1
	}
	return h.rnd.IntN(len(h.snapshots))
}

// restore writes an image onto a device full of old bytes.
func (h *history) restore(i int) {
	if i < 0 {
		return
	}
	h.done["restore"]++
	s := h.snapshots[i]
	target := randomBytes(h.rnd, int64(len(s.data))+h.rnd.Int64N(20<<10))
	r, err := h.store.OpenReader(h.t.Context(), s.id)
	require.NoError(h.t, err)
	options := datapath.Options{Workers: 1 + h.rnd.IntN(4), ReadSize: int64(1+h.rnd.IntN(3)) << 12, Verify: h.rnd.IntN(2) == 0}
	_, err = datapath.Restore(h.t.Context(), r, device.NewMemory(target, 512), options)
	require.NoError(h.t, err)
	require.True(h.t, bytes.Equal(s.data, target[:len(s.data)]))
	require.True(h.t, block.IsZero(target[len(s.data):]))
}

func (h *history) delete(i int) {
	if i < 0 {
		return
	}
	h.done["delete"]++
	require.NoError(h.t, h.store.Delete(h.t.Context(), h.snapshots[i].id))
	h.snapshots = append(h.snapshots[:i], h.snapshots[i+1:]...)
}

// maintain runs full maintenance with all safety delays off, while nothing else
// runs.
func (h *history) maintain() {
	h.done["maintenance"]++
	h.clock.ahead.Add(2) // see maintain
	maintainStore(h.t, h.maintainer)
}

// end compares all images with what they must hold, and leaves nothing to the next
// history.
func (h *history) end() {
	list, err := h.store.List(h.t.Context(), testVolume)
	require.NoError(h.t, err)
	require.Len(h.t, list, len(h.snapshots))
	for i, s := range h.snapshots {
		require.Equal(h.t, s.id, list[len(list)-1-i].ID)
		requireImage(h.t, h.store, s.id, s.data)
		h.restore(i)
	}
	requireVerified(h.t, h.maintainer, len(list))
	requireNoLoss(h.t, h.store)
	for len(h.snapshots) > 0 {
		h.delete(0)
	}
}

// requireVerified does what `kopia snapshot verify --verify-files-percent=100` does,
// with all snapshots of the repository.
func requireVerified(t *testing.T, s *Store, want int) {
	t.Helper()
	require.NoError(t, s.rep.Refresh(t.Context()))
	direct, ok := s.rep.(repo.DirectRepository)
	require.True(t, ok)
	blobs, err := blob.ReadBlobMap(t.Context(), direct.BlobReader())
	require.NoError(t, err)
	ids, err := snapshot.ListSnapshotManifests(t.Context(), s.rep, nil, nil)
	require.NoError(t, err)
	require.Len(t, ids, want, "nothing else is left")
	manifests, err := snapshot.LoadSnapshots(t.Context(), s.rep, ids)
	require.NoError(t, err)
	verifier := snapshotfs.NewVerifier(t.Context(), s.rep, snapshotfs.VerifierOptions{VerifyFilesPercent: 100, MaxErrors: 1, BlobMap: blobs})
	result, err := verifier.InParallel(t.Context(), func(walker *snapshotfs.TreeWalker) error {
		for _, m := range manifests {
			root, err := snapshotfs.SnapshotRoot(s.rep, m)
			if err == nil {
				err = walker.Process(t.Context(), root, string(m.ID))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, err)
	require.Empty(t, result.Errors)
	require.GreaterOrEqual(t, result.Stats.ReadFileCount, int64(want), "each volume.json; equal objects are read once")
}
