package kopia

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// chained is a volume that is backed up as a mover pod does it.
type chained struct {
	*Store
	data []byte
	rnd  *rand.Rand
	// changed is what the storage reports for any base.
	changed []block.Extent
	at      time.Time
	edit    func(*chain.Input)
}

func newChained(t *testing.T, s *Store) *chained {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 1))
	return &chained{Store: s, rnd: rnd, data: randomBytes(rnd, 100*4<<10), at: testTime}
}

// write changes a page and tells the storage.
func (c *chained) write(page int64) {
	copy(c.data[page<<12:], randomBytes(c.rnd, 4<<10))
	c.changed = append(c.changed, block.Extent{Offset: page << 12, Length: 4 << 10})
}

func (c *chained) input(t *testing.T, operation string) chain.Input {
	t.Helper()
	history, err := c.List(t.Context(), testVolume)
	require.NoError(t, err)
	c.at = c.at.Add(time.Hour)
	meta := testMeta(int64(len(c.data)), c.at)
	meta.ChangeID = "handle-" + operation
	volume := cbttest.Volume{
		Capacity: meta.Size, Allocated: []block.Extent{{Length: meta.Size}}, Changed: map[cbt.ChangeID][]block.Extent{},
	}
	for _, s := range history {
		volume.Changed[cbt.ChangeID(s.Meta.ChangeID)] = c.changed
	}
	in := chain.Input{
		Request: chain.Request{Parent: identity.ParentAuto, Now: c.at, Target: meta},
		Volume:  testVolume, History: history, Operation: operation, Store: c.Store,
		Source: cbttest.Memory{Volume: volume}, Audit: 1, Device: device.NewMemory(c.data, 512),
	}
	if c.edit != nil {
		c.edit(&in)
	}
	return in
}

// finish makes the image of a run that has begun and checks what it holds.
func (c *chained) finish(t *testing.T, run chain.Run) repository.SnapshotID {
	t.Helper()
	_, err := datapath.Backup(t.Context(), device.NewMemory(c.data, 512), run.Read, run.Writer, datapath.Options{})
	require.NoError(t, err)
	id, _ := commit(t, run.Writer)
	requireImage(t, c.Store, id, c.data)
	return id
}

func (c *chained) backup(t *testing.T, operation string) (chain.Decision, repository.SnapshotID) {
	t.Helper()
	run, err := chain.Begin(t.Context(), c.input(t, operation))
	require.NoError(t, err)
	return run.Decision, c.finish(t, run)
}

// segmentOf is one segment of an image.
func segmentOf(t *testing.T, s *Store, id repository.SnapshotID, index int64) object.ID {
	t.Helper()
	_, img, err := s.load(t.Context(), id)
	require.NoError(t, err)
	l := mustLayout(t, img.document.Meta)
	root, err := loadRoot(t.Context(), s.rep, img.disk, l)
	require.NoError(t, err)
	return root[index]
}

// TestReasonsByTheirCauses covers the reasons that lie in the repository. The scenarios cover
// those of the storage and of the user.
func TestReasonsByTheirCauses(t *testing.T) {
	for name, test := range map[string]struct {
		cause  func(t *testing.T, c *chained, first, second repository.SnapshotID)
		kind   repository.Kind
		reason chain.Reason
	}{
		"none": {func(*testing.T, *chained, repository.SnapshotID, repository.SnapshotID) {}, repository.Incremental, ""},
		"a segment of the newest is gone": {func(t *testing.T, c *chained, _, second repository.SnapshotID) {
			deleteContent(t, c.Store, segmentOf(t, c.Store, second, 0))
		}, repository.Incremental, chain.ParentGone},
		"a segment of both is gone": {func(t *testing.T, c *chained, first, _ repository.SnapshotID) {
			deleteContent(t, c.Store, segmentOf(t, c.Store, first, 20))
		}, repository.Full, chain.ParentGone},
		"the newest cannot be read": {func(t *testing.T, c *chained, first, second repository.SnapshotID) {
			require.NoError(t, c.Delete(t.Context(), second))
			bad := writeObject(t, c.Store, "", []byte("hello"))
			forge(t, c.Store, bad, bad, noEdit)
		}, repository.Incremental, chain.ParentDamaged},
		"another mover wrote them": {func(_ *testing.T, c *chained, _, _ repository.SnapshotID) {
			c.edit = func(in *chain.Input) { in.Target.Mover = "blockmover-kubevirt" }
		}, repository.Full, chain.MoverChanged},
		"the newest has no change ID": {func(t *testing.T, c *chained, _, _ repository.SnapshotID) {
			c.edit = func(in *chain.Input) { in.Target.ChangeID = "" }
			c.backup(t, "op-2b")
			c.edit = nil
		}, repository.Incremental, chain.NoChangeID},
		"the chunks have another size": {func(_ *testing.T, c *chained, _, _ repository.SnapshotID) {
			c.edit = func(in *chain.Input) { in.Target.ChunkSize, in.Target.SegmentSize = 8<<10, 16<<10 }
		}, repository.Full, chain.ChunkSizeChanged},
		"the storage forgot a block": {func(_ *testing.T, c *chained, _, _ repository.SnapshotID) {
			c.data[50<<12]++
			c.edit = func(in *chain.Input) { in.Audit = 100 }
		}, repository.Full, chain.AuditFailed},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChained(t, newStore(t))
			_, first := c.backup(t, "op-1")
			c.write(3)
			_, second := c.backup(t, "op-2")
			c.write(4)
			test.cause(t, c, first, second)
			d, _ := c.backup(t, "op-3")
			require.Equal(t, test.kind, d.Kind, d.Detail)
			require.Equal(t, test.reason, d.Reason, d.Detail)
		})
	}
}

// TestBackupsOfOneVolumeAtOnce: each builds on a complete image, and neither on the other.
// Later backups build on the newer one.
func TestBackupsOfOneVolumeAtOnce(t *testing.T) {
	dir := newRepository(t)
	c, other := newChained(t, openStore(t, dir)), openStore(t, dir)
	_, full := c.backup(t, "op-1")
	c.write(7)
	earlier, err := chain.Begin(t.Context(), c.input(t, "op-2"))
	require.NoError(t, err)
	// A second mover pod, of a later VolumeSnapshot.
	later := &chained{Store: other, data: bytes.Clone(c.data), rnd: c.rnd, changed: c.changed, at: c.at}
	later.write(8)
	run, err := chain.Begin(t.Context(), later.input(t, "op-3"))
	require.NoError(t, err)
	for _, d := range []chain.Decision{earlier.Decision, run.Decision} {
		require.Equal(t, repository.Incremental, d.Kind)
		require.Equal(t, full, d.Parent)
		require.Empty(t, d.Reason)
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.finish(t, earlier) })
	var newest repository.SnapshotID
	wg.Go(func() { newest = later.finish(t, run) })
	wg.Wait()
	d, _ := later.backup(t, "op-4")
	require.Equal(t, newest, d.Parent)

	// The VolumeSnapshot of this one is older than what the others have saved.
	c.at = testTime.Add(90 * time.Minute)
	c.data, c.changed = bytes.Clone(later.data), later.changed
	late := c.input(t, "op-5")
	late.Target.SnapshotTime = testTime.Add(90 * time.Minute)
	run, err = chain.Begin(t.Context(), late)
	require.NoError(t, err)
	require.Equal(t, full, run.Parent)
	require.Equal(t, chain.ParentNotOlder, run.Reason)
	require.NoError(t, run.Writer.Close(t.Context(), repository.Discard))
}

// TestMatchesDownloadsNothing: Matches works without the packs of the data, and uploads
// nothing.
func TestMatchesDownloadsNothing(t *testing.T) {
	dir := newRepository(t)
	meta := testMeta(400<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	s := openStore(t, dir)
	id, _ := backup(t, s, meta, "", data, allChunks(t, meta))

	packs := func(remove bool) int {
		n := 0
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasPrefix(strings.TrimPrefix(path, dir+"/"), "p") {
				n++
				if remove {
					return os.Remove(path)
				}
			}
			return err
		}))
		return n
	}
	s = openStore(t, dir)
	r, err := s.OpenReader(t.Context(), id)
	require.NoError(t, err)
	require.Positive(t, packs(true))
	for _, c := range allChunks(t, meta) {
		same, err := r.Matches(t.Context(), c, chunkOf(meta, data, c))
		require.NoError(t, err)
		require.True(t, same, "chunk %d", c)
		other := chunkOf(meta, data, c)
		other[7]++
		same, err = r.Matches(t.Context(), c, other)
		require.NoError(t, err)
		require.False(t, same, "chunk %d", c)
	}
	require.NoError(t, r.Close())
	require.Zero(t, packs(false), "a comparison has stored something")
}
