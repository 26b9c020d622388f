package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
)

const (
	chunkSize   = 64 << 10
	segmentSize = 2 * chunkSize
	volumeSize  = 8*segmentSize + 4096 // not a whole number of chunks
)

var (
	volume = repository.VolumeKey{Namespace: "app", PVC: "data"}
	monday = time.Date(2026, 8, 3, 12, 0, 0, 0, time.UTC)
)

// taken has the times of the storage snapshots of the operations.
var taken = map[string]time.Time{
	"first": monday, "good": monday, "failed": monday.Add(time.Hour), "second": monday.Add(2 * time.Hour), "next": monday.Add(2 * time.Hour),
}

func random(seed uint64) []byte {
	data := make([]byte, volumeSize)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	return data
}

// world is a volume and a repository.
type world struct {
	store   *faulty
	data    []byte
	changed map[cbt.ChangeID][]block.Extent
	opened  int
}

func newWorld() *world {
	return &world{
		store:   &faulty{Memory: repositorytest.NewMemory()},
		data:    random(1),
		changed: map[cbt.ChangeID][]block.Extent{},
	}
}

// job is a run of an operation, which reads one chunk after the other.
func (w *world) job(operation string) backup.Job {
	return backup.Job{
		Store:     w.store,
		Volume:    volume,
		Operation: operation,
		Open: func() (device.Reader, error) {
			w.opened++
			return device.NewMemory(w.data, 512), nil
		},
		Plan: func(_ context.Context, dev device.Reader, _ []repository.Snapshot) (chain.Input, error) {
			return chain.Input{
				Request: chain.Request{Parent: identity.ParentAuto, Now: monday, Target: repository.Meta{
					Size: dev.Size(), ChunkSize: chunkSize, SegmentSize: segmentSize, Driver: "driver", VolumeHandle: "volume",
					SnapshotHandle: operation, ChangeID: operation, SnapshotTime: taken[operation], Mover: identity.DataMover,
				}},
				Source: cbttest.Memory{Volume: cbttest.Volume{
					Capacity: volumeSize, Changed: w.changed, Allocated: []block.Extent{{Length: volumeSize}},
				}},
			}, nil
		},
		Options: datapath.Options{Workers: 1, ReadSize: chunkSize},
		Now:     func() time.Time { return monday },
	}
}

// image reads the image of a repo snapshot.
func (w *world) image(t *testing.T, id repository.SnapshotID) []byte {
	t.Helper()
	r, err := w.store.OpenReader(t.Context(), id)
	require.NoError(t, err)
	data, err := io.ReadAll(io.NewSectionReader(r, 0, r.Meta().Size))
	require.NoError(t, err)
	return data
}

// saved returns how many repo snapshots an operation has saved.
func (w *world) saved(t *testing.T, operation string) int {
	t.Helper()
	history, err := w.store.Memory.List(t.Context(), volume)
	require.NoError(t, err)
	n := 0
	for _, s := range history {
		if s.Tags[repository.TagOperation] == operation {
			n++
		}
	}
	return n
}

// fault is what happens at a call of the repository.
type fault string

const (
	// kill ends the process: no later call has any effect.
	kill fault = "kill"
	// fail is an error of the repository.
	fail fault = "fail"
	// refuse is an error of the repository that is final.
	refuse fault = "refuse"
	// stop cancels the run.
	stop fault = "stop"
)

var errInjected = errors.New("injected fault")

// faulty is a repository with one fault: before or after a call has its effect.
type faulty struct {
	*repositorytest.Memory
	fault  fault
	after  bool
	at     int
	calls  int
	cancel context.CancelFunc
	// checkpoints counts the calls of Advance that had an effect.
	checkpoints int
	dead        bool
	// checked is what Check returns, if it is not nil.
	checked error
}

func (f *faulty) call(do func() error) error {
	f.calls++
	switch {
	case f.dead:
		return errInjected
	case f.calls != f.at:
		return do()
	case f.after:
		if err := do(); err != nil {
			return err
		}
	}
	switch f.fault {
	case fail:
	case refuse:
		return fmt.Errorf("%w: %w", errInjected, repository.ErrCorrupt)
	case kill:
		f.dead = true
	case stop:
		f.cancel()
		return context.Canceled
	}
	return errInjected
}

func (f *faulty) List(ctx context.Context, v repository.VolumeKey) (list []repository.Snapshot, err error) {
	err = f.call(func() error { list, err = f.Memory.List(ctx, v); return err })
	return list, err
}

func (f *faulty) Check(ctx context.Context, id repository.SnapshotID) error {
	if f.checked != nil {
		return f.checked
	}
	return f.call(func() error { return f.Memory.Check(ctx, id) })
}

func (f *faulty) NewWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (w repository.VolumeWriter, err error) {
	err = f.call(func() error { w, err = f.Memory.NewWriter(ctx, meta, o); return err })
	return &faultyWriter{w, f}, err
}

type faultyWriter struct {
	repository.VolumeWriter
	f *faulty
}

func (w *faultyWriter) Put(ctx context.Context, chunk int64, data []byte) error {
	return w.f.call(func() error { return w.VolumeWriter.Put(ctx, chunk, data) })
}

func (w *faultyWriter) PutPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	return w.f.call(func() error { return w.VolumeWriter.PutPages(ctx, chunk, runs) })
}

func (w *faultyWriter) Advance(ctx context.Context, chunk int64) error {
	return w.f.call(func() error {
		if chunk*chunkSize >= segmentSize {
			w.f.checkpoints++
		}
		return w.VolumeWriter.Advance(ctx, chunk)
	})
}

func (w *faultyWriter) Commit(ctx context.Context, s repository.Snapshot) (id repository.SnapshotID, stats repository.WriteStats, err error) {
	err = w.f.call(func() error { id, stats, err = w.VolumeWriter.Commit(ctx, s); return err })
	return id, stats, err
}

func (w *faultyWriter) Close(ctx context.Context, how repository.Ending) error {
	if w.f.dead {
		return nil
	}
	return w.VolumeWriter.Close(ctx, how)
}

// TestInterruptions interrupts a run at each call of the repository, in each way, and
// runs the operation again. It keeps the table of the package documentation.
func TestInterruptions(t *testing.T) {
	for _, kind := range []repository.Kind{repository.Full, repository.Incremental} {
		for _, f := range []fault{kill, fail, refuse, stop} {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/after=%t", kind, f, after), func(t *testing.T) {
					interruptEach(t, kind, f, after)
				})
			}
		}
	}
}

func interruptEach(t *testing.T, kind repository.Kind, f fault, after bool) {
	t.Helper()
	resumed, savedBefore := 0, 0
	for at := 1; ; at++ {
		w := newWorld()
		if kind == repository.Incremental {
			_, err := backup.Run(t.Context(), w.job("first"))
			require.NoError(t, err)
			w.data = random(2)
			w.changed["first"] = []block.Extent{{Offset: chunkSize, Length: volumeSize - chunkSize}}
			copy(w.data[:chunkSize], random(1))
		}
		ctx, cancel := context.WithCancel(t.Context())
		*w.store = faulty{Memory: w.store.Memory, fault: f, after: after, at: at, cancel: cancel}
		result, err := backup.Run(ctx, w.job("second"))
		cancel()
		if w.store.calls < at {
			require.NoError(t, err)
			require.Greater(t, at, 20, "there is more to interrupt")
			break
		}
		if err == nil { // a parent that cannot be used is a reason for a full image
			require.Equal(t, chain.ParentDamaged, result.Reason)
			require.True(t, bytes.Equal(w.data, w.image(t, result.SnapshotID)))
			continue
		}
		checkpoints := w.store.checkpoints
		saved := w.saved(t, "second")

		*w.store = faulty{Memory: w.store.Memory}
		result, err = backup.Run(t.Context(), w.job("second"))
		require.NoError(t, err)
		require.Equal(t, saved == 1, result.SavedBefore)
		require.Equal(t, 1, w.saved(t, "second"))
		require.True(t, bytes.Equal(w.data, w.image(t, result.SnapshotID)), "interrupted at call %d", at)
		require.Equal(t, kind, result.Kind)
		switch {
		case result.SavedBefore:
			savedBefore++
			require.EqualValues(t, volumeSize, result.Resumed)
		case f == refuse:
			require.Zero(t, result.Resumed, "a run that was refused leaves nothing")
		default:
			require.Equal(t, checkpoints > 0, result.Resumed > 0, "interrupted at call %d", at)
			if result.Resumed > 0 {
				resumed++
			}
		}
	}
	require.Equal(t, f != refuse, resumed > 0)
	require.Equal(t, after, savedBefore > 0, "only what Commit did counts")
}

// TestSavedBefore: the device is not opened again.
func TestSavedBefore(t *testing.T) {
	w := newWorld()
	first, err := backup.Run(t.Context(), w.job("first"))
	require.NoError(t, err)
	require.Equal(t, 1, w.opened)
	require.Equal(t, []chain.Reason{chain.NoParent}, first.Reasons)

	again, err := backup.Run(t.Context(), w.job("first"))
	require.NoError(t, err)
	require.Equal(t, 1, w.opened)
	require.Equal(t, backup.Result{
		SnapshotID: first.SnapshotID, SavedBefore: true, Size: volumeSize, Resumed: volumeSize,
		Decision: chain.Decision{Kind: repository.Full, Reason: chain.NoParent, Reasons: []chain.Reason{chain.NoParent}},
	}, again)

	job := w.job("first")
	job.Size = volumeSize + 512
	_, err = backup.Run(t.Context(), job)
	require.ErrorContains(t, err, "and the device has 1053184")
}

// TestSavedBeforeAndLost: what an earlier run saved is gone, or may be, and is made again.
func TestSavedBeforeAndLost(t *testing.T) {
	run := func(t *testing.T, break_ func(w *world, parent repository.SnapshotID)) (w *world, before, after backup.Result, err error) {
		t.Helper()
		w = newWorld()
		first, err := backup.Run(t.Context(), w.job("first"))
		require.NoError(t, err)
		w.changed["first"] = nil
		before, err = backup.Run(t.Context(), w.job("second"))
		require.NoError(t, err)
		require.Equal(t, first.SnapshotID, before.Parent)
		break_(w, first.SnapshotID)
		after, err = backup.Run(t.Context(), w.job("second"))
		return w, before, after, err
	}
	for name, break_ := range map[string]func(w *world, parent repository.SnapshotID){
		"a part of it is gone": func(w *world, _ repository.SnapshotID) {
			w.store.checked = fmt.Errorf("look up: %w", repository.ErrNotFound)
		},
		"its parent is gone": func(w *world, parent repository.SnapshotID) { require.NoError(t, w.store.Delete(t.Context(), parent)) },
	} {
		t.Run(name, func(t *testing.T) {
			w, before, after, err := run(t, break_)
			require.NoError(t, err)
			require.False(t, after.SavedBefore)
			require.Len(t, after.Deleted, 1)
			require.ErrorIs(t, after.Deleted[0].Lost, repository.ErrNotFound)
			require.Equal(t, before.SnapshotID, after.Deleted[0].ID)
			require.Equal(t, 1, w.saved(t, "second"))
			require.True(t, bytes.Equal(w.data, w.image(t, after.SnapshotID)))
		})
	}
	t.Run("nobody knows", func(t *testing.T) {
		w, _, _, err := run(t, func(w *world, _ repository.SnapshotID) { w.store.checked = repository.ErrUnavailable })
		require.ErrorIs(t, err, repository.ErrUnavailable)
		require.Equal(t, 1, w.saved(t, "second"))
	})
}

// damaged lists each repo snapshot with damage.
type damaged struct{ *faulty }

func (d damaged) List(ctx context.Context, v repository.VolumeKey) ([]repository.Snapshot, error) {
	list, err := d.faulty.List(ctx, v)
	for i := range list {
		list[i].Damage = repository.ErrCorrupt
	}
	return list, err
}

func TestSavedBeforeAndDamaged(t *testing.T) {
	w := newWorld()
	_, err := backup.Run(t.Context(), w.job("first"))
	require.NoError(t, err)
	job := w.job("first")
	job.Store = damaged{w.store}
	_, err = backup.Run(t.Context(), job)
	require.ErrorIs(t, err, repository.ErrCorrupt)
	require.ErrorContains(t, err, "which an earlier run of operation first saved")
}

// TestFailedOperations: what they have saved is deleted, and is nobody's parent.
func TestFailedOperations(t *testing.T) {
	w := newWorld()
	for _, operation := range []string{"good", "failed"} {
		_, err := backup.Run(t.Context(), w.job(operation))
		require.NoError(t, err)
		w.changed[cbt.ChangeID(operation)] = []block.Extent{{Length: 512}}
	}
	job := w.job("next")
	job.Failed = []string{"failed", "other"}
	result, err := backup.Run(t.Context(), job)
	require.NoError(t, err)
	require.Equal(t, repository.Incremental, result.Kind)
	require.EqualValues(t, chunkSize, result.Read.BytesRead)
	require.Len(t, result.Deleted, 1)
	require.Equal(t, "failed", result.Deleted[0].Operation)
	require.NoError(t, result.Deleted[0].Err)
	require.Zero(t, w.saved(t, "failed"))
	parent, err := w.store.Get(t.Context(), result.Parent)
	require.NoError(t, err)
	require.Equal(t, "good", parent.Tags[repository.TagOperation])
}

// undeletable refuses to delete.
type undeletable struct{ *faulty }

func (undeletable) Delete(context.Context, repository.SnapshotID) error { return errInjected }

// TestFailedOperationStays: a repo snapshot that cannot be deleted fails no backup, and is
// nobody's parent either.
func TestFailedOperationStays(t *testing.T) {
	w := newWorld()
	_, err := backup.Run(t.Context(), w.job("failed"))
	require.NoError(t, err)
	job := w.job("next")
	job.Failed = []string{"failed"}
	job.Store = undeletable{w.store}
	result, err := backup.Run(t.Context(), job)
	require.NoError(t, err)
	require.Equal(t, chain.NoParent, result.Reason)
	require.ErrorIs(t, result.Deleted[0].Err, errInjected)
}

// TestBegun: it is told what is going to be read, and may refuse.
func TestBegun(t *testing.T) {
	w := newWorld()
	job := w.job("first")
	job.Begun = func(r backup.Result) error {
		require.EqualValues(t, volumeSize, r.ToRead)
		require.EqualValues(t, volumeSize, r.Size)
		require.Equal(t, repository.Full, r.Kind)
		require.Zero(t, r.Read)
		return errInjected
	}
	_, err := backup.Run(t.Context(), job)
	require.ErrorIs(t, err, errInjected)
	require.Zero(t, w.saved(t, "first"))
}

func TestErrorsOfTheCaller(t *testing.T) {
	w := newWorld()
	job := w.job("first")
	job.Open = func() (device.Reader, error) { return nil, errInjected }
	_, err := backup.Run(t.Context(), job)
	require.ErrorIs(t, err, errInjected)

	job = w.job("first")
	job.Plan = func(context.Context, device.Reader, []repository.Snapshot) (chain.Input, error) {
		return chain.Input{}, errInjected
	}
	_, err = backup.Run(t.Context(), job)
	require.ErrorIs(t, err, errInjected)
}
