package kopia

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/object"
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

// TestRandomHistories drives everything from the choice of a parent to the
// restored device with random histories of a volume, against plain byte slices.
func TestRandomHistories(t *testing.T) {
	steps := 400
	if testing.Short() {
		steps = 60
	}
	for seed := range uint64(3) {
		h := newHistory(t, seed)
		for range steps / 3 {
			h.step()
		}
		h.checkAll()
		require.Equal(t, seed > 0, h.pages > 0, "chunks in pages")
		require.NotZero(t, h.kinds[repository.Full])
		require.NotZero(t, h.kinds[repository.Incremental])
	}
}

// history is a volume, the snapshots of it that storage and repository keep,
// and what each of them must hold.
type history struct {
	t     *testing.T
	rnd   *rand.Rand
	store *Store
	now   time.Time
	// data is the volume now.
	data []byte
	// snapshots are the backups, oldest first.
	snapshots []savedVolume
	kinds     map[repository.Kind]int
	// cut is how all images of the history are cut.
	cut repository.Meta
	// pages counts the chunks of the images that are in pages.
	pages int
}

type savedVolume struct {
	id     repository.SnapshotID
	change cbt.ChangeID
	data   []byte
}

const historyMax = 200 << 10

func newHistory(t *testing.T, seed uint64) *history {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	cut := testMeta(1, testTime)
	if seed > 0 { // chunks of several pages
		cut.ChunkSize, cut.SegmentSize, cut.PageSize = 16<<10, 64<<10, 4<<10
	}
	return &history{
		cut: cut,
		t:   t, rnd: rnd, store: newStore(t), now: testTime,
		data: randomBytes(rnd, 1+rnd.Int64N(historyMax)), kinds: map[repository.Kind]int{},
	}
}

func (h *history) step() {
	switch n := h.rnd.IntN(20); {
	case n < 8:
		e := h.extent()
		copy(h.data[e.Offset:e.End()], randomBytes(h.rnd, e.Length))
	case n < 10: // discard
		e := h.extent()
		clear(h.data[e.Offset:e.End()])
	case n == 10: // grow; what is new need not be zero
		h.data = append(h.data, randomBytes(h.rnd, h.rnd.Int64N(historyMax/4))...)
		if h.rnd.IntN(2) == 0 {
			h.data = append(h.data, make([]byte, h.rnd.Int64N(historyMax/4))...)
		}
	case n == 11: // shrink
		h.data = h.data[:1+h.rnd.IntN(len(h.data))]
	case n < 14:
		h.restore(h.pick())
	case n == 14:
		h.delete()
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
	h.kinds[run.Kind]++
	if h.rnd.IntN(10) == 0 {
		run.Writer.Abort()
		return
	}
	options := datapath.Options{Workers: 1 + h.rnd.IntN(4), ReadSize: int64(1+h.rnd.IntN(3)) * h.cut.ChunkSize}
	_, err = datapath.Backup(h.t.Context(), device.NewMemory(bytes.Clone(h.data), 512), run.Read, run.Writer, options)
	require.NoError(h.t, err)
	img, _, err := run.Writer.Commit(h.t.Context())
	require.NoError(h.t, err)
	h.countPages(img)
	h.snapshots = append(h.snapshots, savedVolume{save(h.t, h.store, img), cbt.ChangeID(meta.ChangeID), bytes.Clone(h.data)})
}

func (h *history) countPages(img repository.Image) {
	id, err := object.ParseID(img.Root)
	require.NoError(h.t, err)
	require.NoError(h.t, h.store.rep.Refresh(h.t.Context()))
	dir, err := readDirectory(h.t.Context(), h.store.rep, id)
	require.NoError(h.t, err)
	l := mustLayout(h.t, dir.document.Meta)
	root, err := loadRoot(h.t.Context(), h.store.rep, dir.disk, l)
	require.NoError(h.t, err)
	for i, id := range root {
		seg, err := loadSegment(h.t.Context(), h.store.rep, id, l.length(int64(i)), l.ChunkSize())
		require.NoError(h.t, err)
		for c := range seg.count() {
			if len(seg.chunk(c)) > 1 {
				h.pages++
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

func (h *history) delete() {
	i := h.pick()
	if i < 0 {
		return
	}
	require.NoError(h.t, h.store.Delete(h.t.Context(), h.snapshots[i].id))
	h.snapshots = append(h.snapshots[:i], h.snapshots[i+1:]...)
}

func (h *history) checkAll() {
	list, err := h.store.List(h.t.Context(), testVolume)
	require.NoError(h.t, err)
	require.Len(h.t, list, len(h.snapshots))
	for i, s := range h.snapshots {
		require.Equal(h.t, s.id, list[len(list)-1-i].ID)
		requireImage(h.t, h.store, s.id, s.data)
		h.restore(i)
	}
}
