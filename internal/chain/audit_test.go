package chain_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/audit"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
)

const (
	auditedChunks = 1000
	auditedChunk  = 4 << 10
)

// liar is a volume with backups in a Store, and a storage that reports no changes.
type liar struct {
	*repositorytest.Memory
	data   []byte
	source cbt.Source
	// openErr is the error of opening an image.
	openErr error
}

var audited = repository.VolumeKey{Namespace: "app", PVC: "data"}

func newLiar() *liar {
	const size = auditedChunks * auditedChunk
	l := &liar{Memory: repositorytest.NewMemory(), data: make([]byte, size)}
	for i := range l.data {
		l.data[i] = byte(i/auditedChunk) | 1
	}
	l.source = cbttest.Memory{Volume: cbttest.Volume{
		Capacity: size, Changed: map[cbt.ChangeID][]block.Extent{"handle-0": nil, "handle-1": nil},
		Allocated: []block.Extent{{Offset: 0, Length: auditedChunk}}, // a lie, too
	}}
	return l
}

func (l *liar) OpenReader(ctx context.Context, id repository.SnapshotID) (repository.VolumeReader, error) {
	if l.openErr != nil {
		return nil, l.openErr
	}
	return l.Memory.OpenReader(ctx, id)
}

func (l *liar) input(t *testing.T, operation string, at time.Time, percent policy.Percent) chain.Input {
	t.Helper()
	history, err := l.List(t.Context(), audited)
	require.NoError(t, err)
	return chain.Input{
		Request: chain.Request{Parent: identity.ParentAuto, Now: at, Target: repository.Meta{
			Size: int64(len(l.data)), ChunkSize: auditedChunk, SegmentSize: 16 * auditedChunk, VolumeHandle: "vol-1",
			ChangeID: "handle-" + operation, SnapshotTime: at, Mover: identity.DataMover,
		}},
		Volume: audited, History: history, Operation: operation, Store: l, Source: l.source,
		Audit: percent, Device: device.NewMemory(l.data, 512),
	}
}

// backup makes an image. It returns the decision, and what a restore gives.
func (l *liar) backup(t *testing.T, in chain.Input) (chain.Decision, []byte) {
	t.Helper()
	run, err := chain.Begin(t.Context(), in)
	require.NoError(t, err)
	_, err = datapath.Backup(t.Context(), device.NewMemory(l.data, 512), run.Read, run.Writer, datapath.Options{})
	require.NoError(t, err)
	id, _, err := run.Writer.Commit(t.Context(), repository.Snapshot{})
	require.NoError(t, err)
	r, err := l.Memory.OpenReader(t.Context(), id)
	require.NoError(t, err)
	restored := make([]byte, len(l.data))
	_, err = r.ReadAt(restored, 0)
	require.NoError(t, err)
	return run.Decision, restored
}

// first makes the image that all others would build on.
func (l *liar) first(t *testing.T) {
	t.Helper()
	in := l.input(t, "0", now.Add(-day), 0)
	in.Source, in.Unavailable = nil, "not asked yet"
	l.backup(t, in)
}

// TestAuditCatchesALiar: the image is right despite the liar. Without the audit it is wrong,
// and nobody notices.
func TestAuditCatchesALiar(t *testing.T) {
	l := newLiar()
	l.first(t)
	l.data[77*auditedChunk]++

	d, restored := l.backup(t, l.input(t, "1", now, 0))
	require.Equal(t, repository.Incremental, d.Kind)
	require.Empty(t, d.Reason)
	require.Zero(t, d.Audited)
	require.NotEqual(t, l.data, restored, "this is what the audit is for")

	d, restored = l.backup(t, l.input(t, "2", now.Add(time.Hour), 100))
	require.Equal(t, repository.Full, d.Kind)
	require.Equal(t, chain.AuditFailed, d.Reason)
	require.Contains(t, d.Detail, fmt.Sprintf("chunk at offset %d unchanged", 77*auditedChunk))
	require.Empty(t, d.Parent)
	require.True(t, d.Audited.Differs)
	require.Equal(t, l.data, restored)
}

// TestAuditOfAnHonestStorage: the audit reads what it reports, and changes nothing.
func TestAuditOfAnHonestStorage(t *testing.T) {
	l := newLiar()
	l.first(t)
	d, restored := l.backup(t, l.input(t, "1", now, 5))
	require.Equal(t, repository.Incremental, d.Kind)
	require.Empty(t, d.Reason)
	require.Equal(t, audit.Result{Chunks: 50, Bytes: 50 * auditedChunk}, d.Audited)
	require.Equal(t, l.data, restored)
}

// TestAuditCatchesAsOftenAsTheSampleSizePredicts: a storage forgets 20 of 1000 chunks. A
// sample of 50 finds one of them 64 times in 100.
func TestAuditCatchesAsOftenAsTheSampleSizePredicts(t *testing.T) {
	const runs, forgotten, sample = 1000, 20, 50
	l := newLiar()
	l.first(t)
	for i := range forgotten {
		l.data[(i*auditedChunks/forgotten+13)*auditedChunk]++
	}
	caught := 0
	for i := range runs {
		run, err := chain.Begin(t.Context(), l.input(t, fmt.Sprint("op-", i), now, 5))
		require.NoError(t, err)
		require.NoError(t, run.Writer.Close(t.Context(), repository.Discard))
		if run.Reason == chain.AuditFailed {
			caught++
		}
	}
	p := 1 - math.Pow(1-float64(forgotten)/auditedChunks, sample)
	t.Logf("caught %d of %d, predicted %.0f", caught, runs, p*runs)
	require.InDelta(t, p*runs, caught, 3*math.Sqrt(p*(1-p)*runs))
}

// TestAuditIsRepeated: a repeated run decides the same.
func TestAuditIsRepeated(t *testing.T) {
	l := newLiar()
	l.first(t)
	for i := range 20 {
		l.data[i*50*auditedChunk]++
	}
	for _, operation := range []string{"a", "b", "c", "d", "e", "f"} {
		var reasons []chain.Reason
		for range 3 {
			run, err := chain.Begin(t.Context(), l.input(t, operation, now, 5))
			require.NoError(t, err)
			require.NoError(t, run.Writer.Close(t.Context(), repository.Suspend))
			reasons = append(reasons, run.Reason)
		}
		require.Equal(t, []chain.Reason{reasons[0], reasons[0], reasons[0]}, reasons, operation)
	}
}

// TestAuditFailedComesFirst: AuditFailed is the reason even if something else went wrong
// before.
func TestAuditFailedComesFirst(t *testing.T) {
	l := newLiar()
	l.first(t)
	l.backup(t, l.input(t, "unknown", now.Add(-time.Hour), 0)) // the storage does not know its change ID
	l.data[0]++
	d, restored := l.backup(t, l.input(t, "2", now, 100))
	require.Equal(t, chain.AuditFailed, d.Reason)
	require.Equal(t, []chain.Reason{chain.DeltaFailed, chain.AuditFailed}, d.Reasons)
	require.Contains(t, d.Detail, "DeltaFailed: since repo snapshot")
	require.Equal(t, l.data, restored)
}

// TestAuditOfWhatIsNotAllocated: what the storage leaves out of a full image must be zero.
func TestAuditOfWhatIsNotAllocated(t *testing.T) {
	l := newLiar()
	in := l.input(t, "1", now, 0)
	_, restored := l.backup(t, in)
	require.NotEqual(t, l.data, restored, "this is what the audit is for")

	l = newLiar()
	d, restored := l.backup(t, l.input(t, "1", now, 5))
	require.Equal(t, chain.AuditFailed, d.Reason)
	require.Contains(t, d.Detail, "not allocated, and it holds data")
	require.Equal(t, l.data, restored)

	honest := newLiar()
	clear(honest.data[auditedChunk:])
	d, restored = honest.backup(t, honest.input(t, "1", now, 5))
	require.Equal(t, []chain.Reason{chain.NoParent}, d.Reasons)
	require.Equal(t, int64(50*auditedChunk), d.Audited.Bytes)
	require.Equal(t, honest.data, restored)
}

// TestRefutedDataIsNotResumed: a run that trusted the storage has recorded a part of an image.
// A later run of the operation finds that the storage lies, and does not continue from it.
func TestRefutedDataIsNotResumed(t *testing.T) {
	l := newLiar()
	in := l.input(t, "1", now, 0)
	in.Target.SnapshotHandle = "snap-1"
	run, err := chain.Begin(t.Context(), in)
	require.NoError(t, err)
	half := int64(auditedChunks / 2)
	require.NoError(t, run.Writer.Put(t.Context(), 0, l.data[:auditedChunk]))
	require.NoError(t, run.Writer.Advance(t.Context(), half))
	require.NoError(t, run.Writer.Close(t.Context(), repository.Suspend))

	again, err := chain.Begin(t.Context(), in)
	require.NoError(t, err)
	require.Positive(t, again.Writer.Resumed(), "the same basis goes on")
	require.NoError(t, again.Writer.Close(t.Context(), repository.Suspend))

	in.Audit = 5
	d, restored := l.backup(t, in)
	require.Equal(t, chain.AuditFailed, d.Reason)
	require.Equal(t, l.data, restored)
}

// TestUnavailableIsNotDamage: an object store that is away says nothing about a parent.
func TestUnavailableIsNotDamage(t *testing.T) {
	l := newLiar()
	l.first(t)
	l.openErr = fmt.Errorf("root: %w", repository.ErrUnavailable)
	_, err := chain.Begin(t.Context(), l.input(t, "1", now, 5))
	require.ErrorIs(t, err, repository.ErrUnavailable)
}

// TestPatienceIsForAllStreams: a service that is away is waited for once, not for each parent.
func TestPatienceIsForAllStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiar()
		l.first(t)
		l.backup(t, l.input(t, "1", now.Add(-time.Hour), 0))
		in := l.input(t, "2", now, 0)
		require.Len(t, in.History, 2)
		in.Source = &cbttest.Faulty{Source: l.source, After: slices.Repeat([]int{0}, 1000), Err: cbt.ErrInterrupted}
		begun := time.Now()
		run, err := chain.Begin(t.Context(), in)
		require.NoError(t, err)
		require.Equal(t, []chain.Reason{chain.DeltaFailed, chain.AllocatedFailed}, run.Reasons)
		require.Less(t, time.Since(begun), 6*time.Minute)
	})
}

func TestAuditErrors(t *testing.T) {
	l := newLiar()
	l.source = cbttest.Memory{Volume: cbttest.Volume{
		Capacity: int64(len(l.data)), Changed: map[cbt.ChangeID][]block.Extent{"handle-0": nil},
		Allocated: []block.Extent{{Offset: 0, Length: int64(len(l.data))}},
	}}
	l.first(t)
	in := l.input(t, "1", now, 5)

	l.openErr = fmt.Errorf("root: %w", repository.ErrNotFound)
	run, err := chain.Begin(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, chain.ParentGone, run.Reason)
	l.openErr = repository.ErrCorrupt
	run, err = chain.Begin(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, chain.ParentDamaged, run.Reason)
	l.openErr = nil

	broken := errors.New("input/output error")
	faulty := devicetest.NewFaulty(device.NewMemory(l.data, 512))
	faulty.Fail(devicetest.Read, 0, broken)
	in.Device = faulty
	_, err = chain.Begin(t.Context(), in)
	require.ErrorIs(t, err, broken, "a full image would have to read it, too")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in.Device = device.NewMemory(l.data, 512)
	_, err = chain.Begin(ctx, in)
	require.ErrorIs(t, err, context.Canceled)
}

// TestShortDevice: a device that is smaller than the volume is backed up only if the storage says
// that the volume is so small.
func TestShortDevice(t *testing.T) {
	l := newLiar()
	l.first(t)
	l.source = cbttest.Memory{Volume: cbttest.Volume{
		Capacity: int64(len(l.data)), Changed: map[cbt.ChangeID][]block.Extent{"handle-0": {{Offset: 0, Length: auditedChunk}}},
	}}
	in := l.input(t, "1", now, 0)
	in.Capacity = in.Target.Size + 1
	d, _ := l.backup(t, in)
	require.Equal(t, repository.Incremental, d.Kind, "the storage states the size")

	in.Source, in.Unavailable, in.Operation = nil, "no service", "2"
	_, err := chain.Begin(t.Context(), in)
	require.ErrorContains(t, err, "smaller than the volume")
	require.Equal(t, fault.Final, fault.Of(err))
}
