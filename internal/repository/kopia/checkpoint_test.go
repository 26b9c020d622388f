package kopia

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
)

// mortal is a device that kills its process at one of its reads.
type mortal struct {
	device.Reader
	reads atomic.Int64
	bytes atomic.Int64
	kill  context.CancelFunc
}

func (m *mortal) ReadAt(p []byte, off int64) (int, error) {
	if m.reads.Add(-1) == 0 {
		m.kill()
	}
	m.bytes.Add(int64(len(p)))
	return m.Reader.ReadAt(p, off)
}

// TestKilledBackupsGoOn kills backups at random reads. No writer is closed, and maintenance
// without delays runs before the next run.
func TestKilledBackupsGoOn(t *testing.T) {
	const (
		segment  = 16 << 10
		inFlight = 2 * segment
		interval = 5 * segment
	)
	dir := newRepository(t)
	s := openStore(t, dir)
	rnd := rand.New(rand.NewPCG(1, 1))
	meta := testMeta(600<<10+700, testTime)
	data := randomBytes(rnd, meta.Size)
	clear(data[100<<10 : 200<<10])
	parent, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	parentData := append([]byte(nil), data...)
	for i := range 300 {
		data[300<<10+i*1000]++
	}
	all, err := block.NewBitmap(meta.Size, 1<<10)
	require.NoError(t, err)
	all.SetAll()

	for _, from := range []repository.SnapshotID{parent, ""} {
		o := nextOperation(from)
		o.CheckpointInterval = interval
		kills, resumptions, read := int64(0), 0, int64(0)
		for done := false; !done; {
			s := openStore(t, dir)
			s.rep = remembering(s.rep) // as in a mover pod
			w, err := s.NewWriter(t.Context(), meta, o)
			require.NoError(t, err)
			if w.Resumed() > 0 {
				resumptions++
			}
			ctx, kill := context.WithCancel(t.Context())
			dev := &mortal{Reader: device.NewMemory(data, 512), kill: kill}
			dev.reads.Store(1 + rnd.Int64N(100))
			_, err = datapath.Backup(ctx, dev, all, w, datapath.Options{
				Workers: 1 + rnd.IntN(2), ReadSize: 4 << 10, InFlight: inFlight,
			})
			read += dev.bytes.Load()
			if err != nil {
				kill()
				require.ErrorIs(t, err, context.Canceled)
				kills++
				if kills%3 == 0 {
					maintain(t, dir)
				}
				continue
			}
			id, _ := commit(t, w)
			kill()
			requireImage(t, openStore(t, dir), id, data)
			done = true
		}
		require.NotZero(t, resumptions)
		require.LessOrEqual(t, read, meta.Size+kills*interval, "%d kills", kills)
		require.Empty(t, holdsIn(t, openStore(t, dir)))
	}
	requireImage(t, openStore(t, dir), parent, parentData)
}

// TestCheckpointsHoldWhatIsStored: everything that a checkpoint has flushed survives
// maintenance, including chunks of segments that are not finished.
func TestCheckpointsHoldWhatIsStored(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	rnd := rand.New(rand.NewPCG(1, 1))
	meta := testMeta(64<<10, testTime)
	first := randomBytes(rnd, meta.Size)
	parent, _ := backup(t, s, meta, "", first, allChunks(t, meta))
	data := randomBytes(rnd, meta.Size)
	clear(data[20<<10 : 24<<10])

	o := nextOperation(parent)
	o.CheckpointInterval = 1
	w, err := s.NewWriter(t.Context(), meta, o)
	require.NoError(t, err)
	// Chunks of three segments, of which only the first is complete.
	for _, c := range []int64{9, 5, 0, 1, 2, 3} {
		require.NoError(t, w.Put(t.Context(), c, chunkOf(meta, data, c)))
	}
	page := repository.Pages{Data: chunkOf(meta, data, 13)} // here, a chunk is a page
	require.NoError(t, w.PutPages(t.Context(), 13, []repository.Pages{page}))
	require.NoError(t, w.Advance(t.Context(), 4))
	require.NoError(t, s.Delete(t.Context(), parent))
	maintain(t, dir)
	maintain(t, dir)
	require.NoError(t, w.Put(t.Context(), 4, chunkOf(meta, data, 4)))
	id, _ := commit(t, w)
	want := append([]byte(nil), first...)
	for _, c := range []int64{0, 1, 2, 3, 4, 5, 9, 13} {
		copy(want[c*4096:(c+1)*4096], data[c*4096:])
	}
	requireImage(t, openStore(t, dir), id, want)
}

// TestHoldsAreRenewed: a backup that puts little renews its hold.
func TestHoldsAreRenewed(t *testing.T) {
	s := newStore(t)
	meta := testMeta(64<<10, testTime)
	full, _ := backup(t, s, meta, "", make([]byte, meta.Size), allChunks(t, meta))
	s.holdDelay = 1
	w, err := s.NewWriter(t.Context(), meta, nextOperation(full))
	require.NoError(t, err)
	defer w.Close(t.Context(), repository.Discard) //nolint:errcheck // it may be committed
	inner, ok := w.(*writer)
	require.True(t, ok)
	before := holdsIn(t, s)
	require.NoError(t, w.Advance(t.Context(), 1))
	require.Equal(t, before, holdsIn(t, s), "too early")
	inner.hold.taken = time.Now().Add(-holdRenewal)
	require.NoError(t, w.Advance(t.Context(), 2))
	after := holdsIn(t, s)
	require.Len(t, after, 1)
	require.NotEqual(t, before[0].ID, after[0].ID)
	require.Equal(t, before[0].RootEntry.ObjectID, after[0].RootEntry.ObjectID)
}
