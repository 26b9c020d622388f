package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
	"github.com/blockmover/blockmover/internal/task"
)

const (
	mib        = 1 << 20
	volumeSize = 8*mib + 4096 // not a whole number of chunks
	chunkSize  = 64 << 10
	chunks     = 8*mib/chunkSize + 1
)

var monday = time.Date(2026, 8, 3, 12, 0, 0, 0, time.UTC)

// fixture is a Worker with everything in memory.
type fixture struct {
	*Worker
	store  *repositorytest.Memory
	device *devicetest.Faulty
	disk   *device.Memory
	// changes, if not nil, is what a backup reads instead of the device.
	changes device.Reader
	volume  cbttest.Volume
	out     *output
	// The faults of the environment.
	storeErr, readerErr, writerErr, sourceErr, listErr, deleteErr, commitErr error
	// cuts are the numbers of messages after which a stream of block metadata breaks.
	cuts []int
	// before is called before each Put.
	before func()
	closed atomic.Int32
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		store:  repositorytest.NewMemory(),
		volume: cbttest.Volume{Capacity: volumeSize, Changed: map[cbt.ChangeID][]block.Extent{}},
		out:    &output{},
	}
	f.insert(random(1))
	f.Worker = &Worker{
		Environment: f,
		Out:         f.out,
		Stop:        func(error) {},
		Log:         logr.Discard(),
		Now:         func() time.Time { return monday },
		Collect:     cbt.Options{Backoff: time.Nanosecond},
	}
	return f
}

func random(seed uint64) []byte {
	data := make([]byte, volumeSize)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	return data
}

// insert makes data the content of the device, all of it allocated.
func (f *fixture) insert(data []byte) {
	f.disk = device.NewMemory(data, 512)
	f.device = devicetest.NewFaulty(f.disk)
	f.volume.Allocated = []block.Extent{{Offset: 0, Length: volumeSize}}
}

func (f *fixture) OpenReader(context.Context) (device.Reader, error) {
	if f.changes != nil {
		return f.changes, f.readerErr
	}
	return f.device, f.readerErr
}

func (f *fixture) ReachAPI(context.Context) error { return nil }

func (f *fixture) OpenWriter(int64) (device.Writer, error) { return f.device, f.writerErr }

func (f *fixture) Source() (cbt.Source, error) {
	return &cbttest.Faulty{Source: cbttest.Memory{Volume: f.volume}, After: f.cuts, Err: cbt.ErrInterrupted}, f.sourceErr
}

func (f *fixture) LiveSource(context.Context) (cbt.Source, error) { return f.Source() }

func (f *fixture) OpenStore(context.Context) (repository.Store, error) {
	return &spoiled{Memory: f.store, f: f}, f.storeErr
}

// spoiled is the store with the faults of a fixture.
type spoiled struct {
	*repositorytest.Memory
	f *fixture
}

func (s *spoiled) List(ctx context.Context, v repository.VolumeKey) ([]repository.Snapshot, error) {
	if s.f.listErr != nil {
		return nil, s.f.listErr
	}
	return s.Memory.List(ctx, v)
}

func (s *spoiled) Delete(ctx context.Context, id repository.SnapshotID) error {
	if s.f.deleteErr != nil {
		return s.f.deleteErr
	}
	return s.Memory.Delete(ctx, id)
}

func (s *spoiled) Close(ctx context.Context) error {
	s.f.closed.Add(1)
	return ctx.Err()
}

func (s *spoiled) NewWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (repository.VolumeWriter, error) {
	w, err := s.Memory.NewWriter(ctx, meta, o)
	return &spoiledWriter{w, s.f}, err
}

type spoiledWriter struct {
	repository.VolumeWriter
	f *fixture
}

func (w *spoiledWriter) Put(ctx context.Context, chunk int64, data []byte) error {
	if w.f.before != nil {
		w.f.before()
	}
	return w.VolumeWriter.Put(ctx, chunk, data)
}

func (w *spoiledWriter) Commit(ctx context.Context, s repository.Snapshot) (repository.SnapshotID, repository.WriteStats, error) {
	if w.f.commitErr != nil {
		return "", repository.WriteStats{}, w.f.commitErr
	}
	return w.VolumeWriter.Commit(ctx, s)
}

var volume = repository.VolumeKey{Namespace: "app", PVC: "data"}

// backupRequest returns the backup of one operation, from the VolumeSnapshot of that time.
func backupRequest(operation string, at time.Time) task.Request {
	return task.Request{
		Namespace: "velero", Name: "upload", OperationID: operation, Device: "/dev/blockmover",
		BackupRepository: "app-default-kopia", Volume: volume,
		Backup: &task.Backup{
			ParentSnapshot: "auto", Audit: "0", Driver: "csi.example.com", VolumeHandle: "volume-1",
			SnapshotHandle: "handle-" + operation, SnapshotTime: at, VolumeSnapshot: "blockmover-uid",
		},
	}
}

func restoreRequest(id repository.SnapshotID) task.Request {
	r := backupRequest("dd-1.1", monday)
	r.Backup, r.Restore = nil, &task.Restore{SnapshotID: id}
	return r
}

func (f *fixture) run(t *testing.T, r task.Request) task.Report {
	t.Helper()
	report, err := f.Run(t.Context(), r)
	require.NoError(t, err)
	return report
}

// content reads the whole device.
func (f *fixture) content(t *testing.T) []byte {
	t.Helper()
	data := make([]byte, f.disk.Size())
	_, err := f.disk.ReadAt(data, 0)
	require.NoError(t, err)
	return data
}

func TestBackupsAndRestores(t *testing.T) {
	f := newFixture(t)
	first := random(1)
	full := f.run(t, backupRequest("du-1.1", monday))
	require.Equal(t, repository.Full, full.Kind)
	require.Equal(t, "NoParent", full.Reason)
	require.NotEmpty(t, full.Detail)
	want := task.Report{
		SnapshotID: full.SnapshotID, Kind: repository.Full, VolumeSize: volumeSize,
		BytesRead: volumeSize, BytesUploaded: volumeSize, ChunksWritten: chunks, VolumeHandle: "volume-1",
	}
	require.Empty(t, cmp.Diff(want, full, cmpopts.IgnoreFields(task.Report{}, "Reason", "Reasons", "Detail")))

	second := random(1)
	copy(second[3*mib:], random(2)[:4096])
	f.insert(second)
	f.volume.Changed["handle-du-1.1"] = []block.Extent{{Offset: 3 * mib, Length: 4096}}
	incremental := f.run(t, backupRequest("du-2.1", monday.Add(24*time.Hour)))
	want = task.Report{
		SnapshotID: incremental.SnapshotID, Kind: repository.Incremental, Parent: full.SnapshotID, VolumeSize: volumeSize,
		BytesRead: chunkSize, BytesUploaded: chunkSize, ChunksWritten: 1, ChunksInherited: chunks - 1, VolumeHandle: "volume-1",
	}
	require.Empty(t, cmp.Diff(want, incremental))

	saved, err := f.store.Get(t.Context(), incremental.SnapshotID)
	require.NoError(t, err)
	require.Equal(t, "du-2.1", saved.Tags[repository.TagOperation])
	require.Equal(t, repository.Meta{
		Version: 1, Size: volumeSize, ChunkSize: chunkSize, SegmentSize: 8 << 20, PageSize: 8 << 10,
		Kind: repository.Incremental, Parent: full.SnapshotID, Driver: "csi.example.com", VolumeHandle: "volume-1",
		SnapshotHandle: "handle-du-2.1", ChangeID: "handle-du-2.1", SnapshotTime: monday.Add(24 * time.Hour), Mover: "blockmover",
	}, saved.Meta)

	for id, data := range map[repository.SnapshotID][]byte{full.SnapshotID: first, incremental.SnapshotID: second} {
		f.insert(random(3))
		report := f.run(t, restoreRequest(id))
		require.Equal(t, task.Report{SnapshotID: id, VolumeSize: volumeSize, BytesWritten: volumeSize}, report)
		require.Equal(t, data, f.content(t))
		require.Equal(t, 1, f.device.Calls(devicetest.Sync))
		require.Equal(t, 1, f.device.Calls(devicetest.Close))
	}
	require.EqualValues(t, 4, f.closed.Load(), "stores closed")
	require.Equal(t, task.Progress{Done: volumeSize, Total: volumeSize}, f.out.last())
}

func TestBackupSaysWhyItIsFull(t *testing.T) {
	for name, test := range map[string]struct {
		spoil          func(*fixture, *task.Request)
		reason, detail string
	}{
		"asked for":           {func(_ *fixture, r *task.Request) { r.Backup.ParentSnapshot = "none" }, "ForcedFull", ""},
		"due":                 {func(_ *fixture, r *task.Request) { r.Backup.FullEvery = time.Hour; r.Backup.SnapshotTime = monday }, "FullDue", "1h0m0s"},
		"no metadata service": {func(f *fixture, _ *task.Request) { f.sourceErr = errors.New("no SnapshotMetadataService") }, "CBTUnavailable", "no SnapshotMetadataService"},
		"base is unknown":     {func(f *fixture, _ *task.Request) { f.volume.Changed = nil }, "DeltaFailed", "no such base snapshot"},
		"another volume":      {func(_ *fixture, r *task.Request) { r.Backup.VolumeHandle = "volume-2" }, "VolumeReplaced", "volume-2"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.run(t, backupRequest("du-1.1", monday.Add(-time.Hour)))
			f.volume.Changed["handle-du-1.1"] = nil
			r := backupRequest("du-2.1", monday)
			test.spoil(f, &r)
			report := f.run(t, r)
			require.Equal(t, repository.Full, report.Kind)
			require.Equal(t, test.reason, report.Reason)
			require.Contains(t, report.Detail, test.detail)
			require.EqualValues(t, volumeSize, report.BytesRead)
		})
	}
}

// A stream that breaks again and again is resumed, and the report says how often.
func TestBackupResumesStreams(t *testing.T) {
	f := newFixture(t)
	f.run(t, backupRequest("du-1.1", monday))
	data := random(1)
	var changed []block.Extent
	for off := int64(0); off < 8*mib; off += mib / 2 {
		data[off]++
		changed = append(changed, block.Extent{Offset: off, Length: 4096})
	}
	f.insert(data)
	f.volume.Changed["handle-du-1.1"], f.volume.PerMessage, f.cuts = changed, 1, []int{3, 3, 3, 3, 3}
	report := f.run(t, backupRequest("du-2.1", monday.Add(time.Hour)))
	require.Equal(t, repository.Incremental, report.Kind)
	require.Empty(t, report.Reason)
	require.EqualValues(t, 5, report.Resumptions)
	f.requireRestores(t, report, data)
}

// The audit finds what the storage forgot. Nothing else does.
func TestBackupAudits(t *testing.T) {
	f := newFixture(t)
	f.run(t, backupRequest("du-1.1", monday))
	f.volume.Changed["handle-du-1.1"], f.volume.Changed["handle-du-3.1"] = nil, nil
	honest := backupRequest("du-2.1", monday.Add(time.Hour))
	honest.Backup.Audit = "100%"
	report := f.run(t, honest)
	require.Equal(t, repository.Incremental, report.Kind)
	require.Zero(t, report.BytesRead)
	require.EqualValues(t, chunks, report.ChunksAudited)
	require.EqualValues(t, volumeSize, report.BytesAudited)

	forgotten := random(1)
	forgotten[5*mib]++
	f.insert(forgotten)
	trusting := backupRequest("du-3.1", monday.Add(2*time.Hour))
	f.volume.Changed["handle-du-2.1"] = nil
	report = f.run(t, trusting)
	require.Equal(t, repository.Incremental, report.Kind)
	require.Zero(t, report.BytesAudited)
	f.requireRestores(t, report, random(1)) // this is the damage that an audit is for

	f.insert(forgotten)
	distrustful := backupRequest("du-4.1", monday.Add(3*time.Hour))
	distrustful.Backup.Audit = "100%"
	report = f.run(t, distrustful)
	require.Equal(t, repository.Full, report.Kind)
	require.Equal(t, "AuditFailed", report.Reason)
	require.Contains(t, report.Detail, "offset 5242880")
	require.EqualValues(t, volumeSize, report.BytesRead)
	f.requireRestores(t, report, forgotten)
	f.insert(forgotten)
	require.Equal(t, "AuditFailed", f.run(t, distrustful).Reason, "of a repeated operation, too")

	wrong := backupRequest("du-5.1", monday.Add(4*time.Hour))
	wrong.Backup.Audit = "much"
	_, err := f.Run(t.Context(), wrong)
	require.ErrorContains(t, err, `"much"`)
}

// requireRestores restores what a backup reported, onto a device full of other data.
func (f *fixture) requireRestores(t *testing.T, report task.Report, want []byte) {
	t.Helper()
	f.insert(random(9))
	f.run(t, restoreRequest(report.SnapshotID))
	require.Equal(t, want, f.content(t))
}

// A repeated operation reports what it saved, and writes nothing.
func TestBackupSavedBefore(t *testing.T) {
	f := newFixture(t)
	first := f.run(t, backupRequest("du-1.1", monday))
	f.readerErr = errors.New("must not be opened")
	again := f.run(t, backupRequest("du-1.1", monday))
	require.Equal(t, first.SnapshotID, again.SnapshotID)
	require.Equal(t, repository.Full, again.Kind)
	require.Equal(t, "NoParent", again.Reason)
	require.Equal(t, []string{"NoParent"}, again.Reasons)
	require.EqualValues(t, volumeSize, again.VolumeSize)
	require.Zero(t, again.BytesRead)
	all, err := f.store.List(t.Context(), volume)
	require.NoError(t, err)
	require.Len(t, all, 1)
}

// What an upload saved before it failed is no parent, and is deleted.
func TestBackupForgetsFailedUploads(t *testing.T) {
	f := newFixture(t)
	f.volume.Changed["handle-du-1.1"], f.volume.Changed["handle-du-2.1"] = nil, nil
	good := f.run(t, backupRequest("du-1.1", monday)).SnapshotID
	lost := f.run(t, backupRequest("du-2.1", monday.Add(time.Hour))).SnapshotID
	r := backupRequest("du-3.1", monday.Add(2*time.Hour))
	r.Backup.Failed = []string{"du-0.1", "du-2.1"}
	report := f.run(t, r)
	require.Equal(t, good, report.Parent)
	require.Empty(t, report.Reason)
	_, err := f.store.Get(t.Context(), lost)
	require.ErrorIs(t, err, repository.ErrNotFound)

	f.deleteErr = errors.New("broken")
	r = backupRequest("du-4.1", monday.Add(3*time.Hour))
	r.Backup.Failed = []string{"du-3.1"}
	require.Equal(t, good, f.run(t, r).Parent, "one that cannot be deleted is no parent either")
}

func TestBackupFailures(t *testing.T) {
	broken := errors.New("broken")
	for name, spoil := range map[string]func(*fixture){
		"store":  func(f *fixture) { f.storeErr = broken },
		"list":   func(f *fixture) { f.listErr = broken },
		"device": func(f *fixture) { f.readerErr = broken },
		"read":   func(f *fixture) { f.device.Fail(devicetest.Read, 0, broken) },
		"commit": func(f *fixture) { f.commitErr = broken },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			spoil(f)
			report, err := f.Run(t.Context(), backupRequest("du-1.1", monday))
			require.ErrorIs(t, err, broken)
			require.Empty(t, report.SnapshotID)
			all, err := f.store.List(t.Context(), volume)
			require.NoError(t, err)
			require.Empty(t, all, "repo snapshots of a backup that failed")
			if name != "store" {
				require.EqualValues(t, 1, f.closed.Load(), "stores closed")
			}
		})
	}
}

func TestRestoreFailures(t *testing.T) {
	broken := errors.New("broken")
	f := newFixture(t)
	id := f.run(t, backupRequest("du-1.1", monday)).SnapshotID
	for name, test := range map[string]struct {
		spoil func()
		id    repository.SnapshotID
		want  error
	}{
		"store":   {func() { f.storeErr = broken }, id, broken},
		"device":  {func() { f.writerErr = broken }, id, broken},
		"write":   {func() { f.device.Fail(devicetest.Write, 0, broken) }, id, broken},
		"sync":    {func() { f.device.Fail(devicetest.Sync, 0, broken) }, id, broken},
		"close":   {func() { f.device.Fail(devicetest.Close, 0, broken) }, id, broken},
		"image":   {func() { f.writerErr = broken }, "gone", repository.ErrNotFound},
		"smaller": {func() { f.device = devicetest.NewFaulty(device.NewMemory(make([]byte, mib), 512)) }, id, datapath.ErrTooSmall},
	} {
		t.Run(name, func(t *testing.T) {
			f.insert(random(3))
			f.storeErr, f.writerErr = nil, nil
			test.spoil()
			_, err := f.Run(t.Context(), restoreRequest(test.id))
			require.ErrorIs(t, err, test.want)
		})
	}
}

func TestBackupIsCanceled(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.before = cancel
	_, err := f.Run(ctx, backupRequest("du-1.1", monday))
	require.ErrorIs(t, err, context.Canceled)
	all, err := f.store.List(t.Context(), volume)
	require.NoError(t, err)
	require.Empty(t, all)
	require.EqualValues(t, 1, f.closed.Load(), "stores closed")

	// The next attempt starts over.
	f.before = nil
	require.Equal(t, repository.Full, f.run(t, backupRequest("du-1.1", monday)).Kind)
}

func TestRestoreGoesOn(t *testing.T) {
	f := newFixture(t)
	id := f.run(t, backupRequest("du-1.1", monday)).SnapshotID
	half := random(1)
	copy(half[4*mib:], random(2))
	f.insert(half)
	r := restoreRequest(id)
	r.Restore.Resume = true
	report := f.run(t, r)
	require.EqualValues(t, 4*mib, report.BytesFound)
	require.EqualValues(t, volumeSize-4*mib, report.BytesWritten)
	require.Equal(t, random(1), f.content(t))
}

// TestRestoreInPlace writes what differs, into the volume that the image is of. Into another one only if
// that was asked for.
func TestRestoreInPlace(t *testing.T) {
	for name, tc := range map[string]struct {
		live task.InPlace
		want string
	}{
		"same volume": {live: task.InPlace{Mode: inplace.SameVolume, Driver: "csi.example.com", VolumeHandle: "volume-1"}},
		"any volume":  {live: task.InPlace{Mode: inplace.AnyVolume, Driver: "csi.example.com", VolumeHandle: "volume-2"}},
		"another volume": {
			live: task.InPlace{Mode: inplace.SameVolume, Driver: "csi.example.com", VolumeHandle: "volume-2"},
			want: `refuse to write in place: PVC app/data has volume "volume-2", and the image is of volume "volume-1"`,
		},
		"the same handle of another driver": {
			live: task.InPlace{Mode: inplace.SameVolume, Driver: "other.example.com", VolumeHandle: "volume-1"},
			want: `the image is of volume "csi.example.com/volume-1"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			made := f.run(t, backupRequest("du-1.1", monday))
			require.Equal(t, "volume-1", made.VolumeHandle)
			changed := random(1)
			changed[5*mib]++
			f.insert(changed)
			r := restoreRequest(made.SnapshotID)
			tc.live.Claim, tc.live.Audit, tc.live.MetadataUnavailable = "app/data", "1%", "no service"
			r.Restore.InPlace = &tc.live
			report, err := f.Run(t.Context(), r)
			if tc.want != "" {
				require.ErrorContains(t, err, tc.want)
				require.Equal(t, fault.Final, fault.Of(err))
				require.True(t, report.Untouched)
				require.Equal(t, changed, f.content(t))
				return
			}
			require.NoError(t, err)
			require.EqualValues(t, 4096, report.BytesWritten)
			require.EqualValues(t, volumeSize, report.BytesRead)
			require.NotEmpty(t, report.Reason)
			require.False(t, report.Untouched)
			require.Equal(t, random(1), f.content(t))
			require.True(t, f.run(t, r).Untouched, "a volume that is equal is not written")
		})
	}
}

// An image of before the handles were recorded could be of any volume.
func TestRestoreInPlaceOfAnUnknownVolume(t *testing.T) {
	live := &task.InPlace{Claim: "app/data", Mode: inplace.SameVolume, Driver: "csi.example.com", VolumeHandle: "volume-1"}
	require.ErrorContains(t, fits(live, repository.Meta{}), "the image does not say which volume it is of")
	live.Mode = inplace.AnyVolume
	require.NoError(t, fits(live, repository.Meta{}))
}

// TestRestoreInPlaceByCBT reads only what the storage calls changed.
func TestRestoreInPlaceByCBT(t *testing.T) {
	f := newFixture(t)
	made := f.run(t, backupRequest("du-1.1", monday))
	changed := random(1)
	changed[5*mib]++
	f.insert(changed)
	r := restoreRequest(made.SnapshotID)
	r.Restore.InPlace = &task.InPlace{
		Claim: "app/data", Mode: inplace.SameVolume, Driver: "csi.example.com", VolumeHandle: "volume-1", Audit: "0",
		VolumeSnapshot: "blockmover-uid-1", Metadata: &task.MetadataService{},
	}
	f.volume.Changed["handle-du-1.1"] = []block.Extent{{Offset: 5 * mib, Length: 4096}}
	report := f.run(t, r)
	require.EqualValues(t, chunkSize, report.BytesRead)
	require.EqualValues(t, 4096, report.BytesWritten)
	require.Equal(t, made.SnapshotID, report.Parent)
	require.Empty(t, report.Reasons)
	require.Equal(t, random(1), f.content(t))
	require.False(t, f.held.Load())

	// The storage has forgotten the base, or does not answer.
	for reason, sourceErr := range map[string]error{"DeltaFailed": nil, "CBTUnavailable": cbt.ErrUnavailable} {
		f.insert(changed)
		f.volume.Changed, f.sourceErr = map[cbt.ChangeID][]block.Extent{}, sourceErr
		report = f.run(t, r)
		require.Equal(t, reason, report.Reason)
		require.Contains(t, report.Detail, reason+": ")
		require.EqualValues(t, volumeSize, report.BytesRead)
		require.Equal(t, random(1), f.content(t))
	}
}

// TestRateLimit uses the clock of synctest, which moves when all goroutines wait.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		r := backupRequest("du-1.1", monday)
		r.RateLimit = mib
		start := time.Now()
		id := f.run(t, r).SnapshotID
		require.InDelta(t, 8, time.Since(start).Seconds(), 0.1)

		f.insert(random(3))
		r = restoreRequest(id)
		r.RateLimit = 2 * mib
		start = time.Now()
		f.run(t, r)
		require.InDelta(t, 4, time.Since(start).Seconds(), 0.1)
		require.Equal(t, random(1), f.content(t))

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		r.RateLimit = task.MinRateLimit
		start = time.Now()
		_, err := f.Run(ctx, r)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, time.Second, time.Since(start))
	})
}

// A backup succeeds without progress.
func TestProgressFails(t *testing.T) {
	f := newFixture(t)
	f.out.failing.Store(true)
	f.run(t, backupRequest("du-1.1", monday))
	require.Positive(t, f.out.calls.Load())
}
