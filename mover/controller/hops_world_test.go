package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
	"github.com/blockmover/blockmover/internal/restore"
	"github.com/blockmover/blockmover/internal/task"
	backupplugin "github.com/blockmover/blockmover/plugins/backup"
)

const (
	hopChunk   = 64 << 10
	hopSegment = 2 * hopChunk
	hopSize    = 8 * hopSegment
)

// hopWorld is a world with all processes of ours: the plugin as Velero calls it, the manager, and
// workers that move data between volumes and a repository.
type hopWorld struct {
	*world
	killer
	by process
	// asPlugin is the client of the plugin.
	asPlugin client.WithWatch
	// seen is when the plugin has last looked at the world.
	seen time.Time
	// also acts with each step of the world.
	also func()

	store *repositorytest.Memory
	// data is what volumes and storage snapshots hold, by handle.
	data  map[string][]byte
	taken int
	// idle is for how many rounds the manager runs after the plugin was killed, before Velero
	// calls the plugin again.
	idle int
	// vm, if there is one, is run by KubeVirt.
	vm *hypervisor
	// mortal says that Velero dies with the plugin, and never calls it again. dead is set then.
	mortal, dead bool
	// holding are the mover pods that have said that they hold their device.
	holding map[types.UID]bool
}

func newHopWorld(t *testing.T, w *world) *hopWorld {
	t.Helper()
	h := &hopWorld{world: w, store: repositorytest.NewMemory(), data: map[string][]byte{}, also: func() {}, holding: map[types.UID]bool{}}
	w.faults.persisted = h.observe
	h.asPlugin = interceptor.NewClient(interceptor.NewClient(w.c, w.faults.funcs()), interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if now := time.Now(); now.After(h.seen) { // the plugin has waited
				h.seen = now
				h.step()
			}
			return c.Get(ctx, key, obj, opts...)
		},
	})
	w.podEnds, w.groupWith = h.work, h.groupWith
	h.restart()
	return h
}

// restart begins the manager anew.
func (h *hopWorld) restart() {
	h.world.restart()
	h.sweep.client, h.sweep.reader = h.narrow, h.faulty
}

func (h *hopWorld) step() {
	h.world.step()
	h.takeSnapshots()
	h.also()
}

func (h *hopWorld) fill(handle string, seed byte) {
	h.data[handle] = make([]byte, hopSize)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(h.data[handle])
}

// takeSnapshots acts as the snapshot controller, the sidecar and the driver.
func (h *hopWorld) takeSnapshots() {
	for _, vs := range list[snapshotv1.VolumeSnapshotList](h.world).Items {
		claim := vs.Spec.Source.PersistentVolumeClaimName
		if claim == nil || vs.Status != nil || vs.DeletionTimestamp != nil {
			continue
		}
		volume := h.handleOf(vs.Namespace, *claim)
		h.taken++
		snapshot := fmt.Sprintf("snapshot-%d", h.taken)
		h.snapshots[snapshot], h.data[snapshot] = true, slices.Clone(h.data[volume])
		content := h.putContent(&vs, "snapcontent-"+string(vs.UID), volume, snapshot, "")
		ready := true
		controllerutil.AddFinalizer(&vs, finalizerVS)
		vs.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, ReadyToUse: &ready}
		h.update(&vs)
	}
}

// putContent makes the content of a VolumeSnapshot.
func (h *hopWorld) putContent(vs *snapshotv1.VolumeSnapshot, name, volume, snapshot, group string) string {
	at, size, ready := h.clock.UnixNano(), int64(hopSize), true
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{finalizerContent}},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain, VolumeSnapshotClassName: vs.Spec.VolumeSnapshotClassName,
			Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volume},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: vs.Namespace, Name: vs.Name, UID: vs.UID},
		},
	}
	status := &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &snapshot, CreationTime: &at, RestoreSize: &size, ReadyToUse: &ready}
	if group != "" {
		content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
		status.VolumeGroupSnapshotHandle = &group
		content.Annotations = map[string]string{"groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle": group}
	}
	require.NoError(h.t, h.c.Create(h.ctx, content))
	content.Status = status
	require.NoError(h.t, h.c.Status().Update(h.ctx, content))
	return name
}

// handleOf returns the handle of the volume of a PVC.
func (h *hopWorld) handleOf(namespace, claim string) string {
	h.t.Helper()
	pvc := get[corev1.PersistentVolumeClaim](h.world, namespace, claim)
	require.NotNil(h.t, pvc)
	return get[corev1.PersistentVolume](h.world, "", pvc.Spec.VolumeName).Spec.CSI.VolumeHandle
}

// manage runs the manager for a number of rounds, or until all operations have ended.
func (h *hopWorld) manage(rounds int) {
	h.t.Helper()
	for range rounds {
		left := 0
		for _, e := range []*engine{h.uploads, h.downs} {
			ops, err := operation.List(h.ctx, h.c, e.kind)
			require.NoError(h.t, err)
			for _, op := range ops {
				if op.Status.Phase.Terminal() {
					continue
				}
				left++
				if !h.live(manager, func() { _, _ = e.Reconcile(h.ctx, requestFor(op.Name)) }) {
					h.restart()
					break // the engine is another one now
				}
			}
		}
		h.step()
		if left == 0 {
			return
		}
	}
}

// settle runs the manager until all operations have ended and the sweep has nothing to do.
func (h *hopWorld) settle() {
	h.t.Helper()
	h.manage(200)
	const quiet, enough = 4, 30
	for idle, round := 0, 0; idle < quiet && round < enough; round++ {
		idle++
		calls := h.all
		if !h.live(sweeping, func() {
			if left, err := h.sweep.sweep(h.ctx); left > 0 || err != nil {
				idle = 0
			}
		}) {
			h.restart()
		}
		if h.all != calls {
			idle = 0
		}
		h.step()
	}
}

// again calls a process until it comes to its end, or once if Velero dies with it.
func (h *hopWorld) again(by process, do func()) {
	h.t.Helper()
	for !h.dead && !h.live(by, do) {
		h.dead = h.mortal
		h.manage(h.idle)
	}
}

// hopPolicy gives every volume to Blockmover.
const hopPolicy = `version: v1
volumePolicies:
- conditions: {csi: {driver: driver.example.com}}
  action: {type: custom, parameters: {mover: blockmover}}
`

// addBackup begins a Backup.
func (h *hopWorld) addBackup(name string) *velerov1.Backup {
	h.t.Helper()
	b := &velerov1.Backup{
		TypeMeta:   metav1.TypeMeta{APIVersion: "velero.io/v1", Kind: "Backup"},
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: name, UID: types.UID("uid-of-" + name)},
		Spec: velerov1.BackupSpec{
			StorageLocation: "default", CSISnapshotTimeout: metav1.Duration{Duration: 10 * time.Minute}, ItemOperationTimeout: metav1.Duration{Duration: 4 * time.Hour},
			ResourcePolicy: &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "policies"}, VolumeGroupSnapshotLabelKey: "group",
		},
		Status: velerov1.BackupStatus{Phase: velerov1.BackupPhaseInProgress, StartTimestamp: &metav1.Time{Time: h.clock}},
	}
	require.NoError(h.t, h.c.Create(h.ctx, b))
	return b
}

func (h *hopWorld) setPhase(b *velerov1.Backup, phase velerov1.BackupPhase) {
	h.t.Helper()
	found := get[velerov1.Backup](h.world, veleroNamespace, b.Name)
	found.Status.Phase, b.Status.Phase = phase, phase
	h.update(found)
}

// itemOf is an object as Velero passes it to a plugin.
func (h *hopWorld) itemOf(kind string, object client.Object) *unstructured.Unstructured {
	h.t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	require.NoError(h.t, err)
	item := &unstructured.Unstructured{Object: content}
	item.SetAPIVersion("v1")
	item.SetKind(kind)
	return item
}

func quiet() logrus.FieldLogger {
	log, _ := logrustest.NewNullLogger()
	return log
}

// backUp backs up PVCs up to their DataUploads, as Velero does: it calls the plugin.
func (h *hopWorld) backUp(b *velerov1.Backup, claims ...string) {
	h.t.Helper()
	for _, claim := range claims {
		h.again(plugin, func() {
			pvc := get[corev1.PersistentVolumeClaim](h.world, appNamespace, claim)
			action := backupplugin.NewPVCAction(quiet(), h.asPlugin, "", true)
			_, _, id, _, err := action.Execute(h.itemOf("PersistentVolumeClaim", pvc), b)
			require.NoError(h.t, err)
			require.NotEmpty(h.t, id)
		})
	}
}

// uploadOf returns the DataUpload of a PVC, which has ended well.
func (h *hopWorld) uploadOf(b *velerov1.Backup, claim string) *velerov2alpha1.DataUpload {
	h.t.Helper()
	du := get[velerov2alpha1.DataUpload](h.world, veleroNamespace, identity.DataUploadName(string(b.UID), "uid-of-"+claim))
	require.NotNil(h.t, du)
	require.Equal(h.t, velerov2alpha1.DataUploadPhaseCompleted, du.Status.Phase, du.Status.Message)
	return du
}

// requireImage checks that the repository has one image of a DataUpload, with this data.
func (h *hopWorld) requireImage(du *velerov2alpha1.DataUpload, data []byte) repository.Snapshot {
	h.t.Helper()
	all, err := h.store.List(h.ctx, repository.VolumeKey{Namespace: du.Spec.SourceNamespace, PVC: du.Spec.SourcePVC})
	require.NoError(h.t, err)
	of := slices.DeleteFunc(all, func(s repository.Snapshot) bool { return s.Tags[repository.TagOperation] != string(du.UID) })
	require.Len(h.t, of, 1)
	require.Equal(h.t, du.Status.SnapshotID, string(of[0].ID))
	image, err := h.store.OpenReader(h.ctx, of[0].ID)
	require.NoError(h.t, err)
	read := make([]byte, len(data))
	_, err = image.ReadAt(read, 0)
	require.NoError(h.t, err)
	require.True(h.t, slices.Equal(data, read), "the image has other data")
	return of[0]
}

// work acts as the worker in a mover pod, and reports whether it has ended. A worker that is killed
// takes its pod with it.
func (h *hopWorld) work(pod *corev1.Pod) bool {
	request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
	require.NoError(h.t, err)
	p := &hands{h: h}
	var report task.Report
	waits := false
	switch {
	case request.Backup != nil:
		report, err = h.workBackup(p, request)
	default:
		report, waits, err = h.workRestore(p, pod, request)
	}
	if p.dead {
		require.NoError(h.t, h.c.Delete(h.ctx, pod))
		return false
	}
	require.NoError(h.t, err)
	if waits {
		return false
	}
	report.Version, h.report = task.Version, report
	if h.persisted(call{by: worker, verb: "report"}) {
		h.restart() // the worker has ended: the manager dies with its node
	}
	return true
}

func (h *hopWorld) workBackup(p *hands, request task.Request) (task.Report, error) {
	snapshot := request.Backup.SnapshotHandle
	require.True(h.t, request.Backup.DiskFile != nil || h.snapshots[snapshot], "storage snapshot %s was deleted under the worker", snapshot)
	data := h.data[snapshot]
	if f := request.Backup.DiskFile; f != nil {
		data = h.data[f.Volume]
	}
	result, err := backup.Run(h.ctx, backup.Job{
		Store: held{h.store, p}, Volume: request.Volume, Operation: request.OperationID, Failed: request.Backup.Failed,
		Open: func() (device.Reader, error) { return device.NewMemory(slices.Clone(data), 512), nil },
		Plan: func(context.Context, device.Reader, []repository.Snapshot) (chain.Input, error) {
			return chain.Input{
				Request: chain.Request{Parent: request.Backup.ParentSnapshot, Now: h.clock, Target: repository.Meta{
					Size: hopSize, ChunkSize: hopChunk, SegmentSize: hopSegment, Driver: request.Backup.Driver, VolumeHandle: request.Backup.VolumeHandle,
					SnapshotHandle: snapshot, ChangeID: snapshot, SnapshotTime: request.Backup.SnapshotTime, Mover: identity.DataMover,
				}},
				CheckpointInterval: hopSegment,
				Source:             h.changes(snapshot),
			}, nil
		},
		Options: datapath.Options{Workers: 1, ReadSize: hopChunk},
		Now:     func() time.Time { return h.clock },
	})
	return task.Report{
		SnapshotID: result.SnapshotID, Kind: result.Kind, Parent: result.Parent, Reason: string(result.Reason), VolumeSize: result.Size,
		VolumeHandle: request.Backup.VolumeHandle,
	}, err
}

// changes tells what differs between a storage snapshot and those that exist.
func (h *hopWorld) changes(target string) cbt.Source {
	changed := map[cbt.ChangeID][]block.Extent{}
	for base := range h.snapshots {
		changed[cbt.ChangeID(base)] = nil
		for off := int64(0); off < hopSize; off += hopChunk {
			if !slices.Equal(h.data[base][off:off+hopChunk], h.data[target][off:off+hopChunk]) {
				changed[cbt.ChangeID(base)] = append(changed[cbt.ChangeID(base)], block.Extent{Offset: off, Length: hopChunk})
			}
		}
	}
	return cbttest.Memory{Volume: cbttest.Volume{Capacity: hopSize, Changed: changed, Allocated: []block.Extent{{Length: hopSize}}}}
}

// workRestore waits, as a worker in place does, until the manager has taken the VolumeSnapshot of
// the volume that it holds.
func (h *hopWorld) workRestore(p *hands, pod *corev1.Pod, request task.Request) (report task.Report, waits bool, err error) {
	if live := request.Restore.InPlace; live != nil && !h.holding[pod.UID] {
		h.holding[pod.UID] = true
		h.log = `{"msg":"Progress","bytesDone":0,"bytesTotal":0,"bytesRead":0,"held":true}`
		return report, true, p.do("hold", func() error { return nil })
	} else if live != nil {
		vs := get[snapshotv1.VolumeSnapshot](h.world, veleroNamespace, live.VolumeSnapshot)
		if vs == nil || vs.Status == nil {
			return report, true, nil
		}
	}
	handle := h.handleOf(veleroNamespace, pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
	require.True(h.t, h.volumes[handle], "volume %s was deleted under the worker", handle)
	if len(h.data[handle]) == 0 {
		h.data[handle] = make([]byte, hopSize)
	}
	result, err := restore.Run(h.ctx, restore.Job{
		Store: h.store, Snapshot: request.Restore.SnapshotID,
		Open:    func(int64) (device.Writer, error) { return &heldDevice{device.NewMemory(h.data[handle], 512), p}, nil },
		Options: datapath.Options{Workers: 1, ReadSize: 2 * hopSegment, Resume: request.Restore.Resume, Compare: request.Restore.InPlace != nil},
	})
	return task.Report{VolumeSize: result.Size, BytesWritten: result.BytesWritten, ZeroBytes: result.ZeroBytes}, false, err
}

var errKilled = errors.New("the worker was killed")

// hands are those of a worker. After its death, nothing that it does has an effect.
type hands struct {
	h    *hopWorld
	dead bool
}

func (p *hands) do(verb string, act func() error) error {
	if p.dead {
		return errKilled
	}
	err := act()
	if err == nil && verb != "" && p.h.persisted(call{by: worker, verb: verb}) {
		p.dead, err = true, errKilled
	}
	return err
}

// held is the repository in the hands of a worker.
type held struct {
	*repositorytest.Memory
	p *hands
}

func (s held) NewWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (w repository.VolumeWriter, err error) {
	err = s.p.do("image", func() error { w, err = s.Memory.NewWriter(ctx, meta, o); return err })
	return heldWriter{w, s.p}, err
}

type heldWriter struct {
	repository.VolumeWriter
	p *hands
}

func (w heldWriter) Put(ctx context.Context, chunk int64, data []byte) error {
	return w.p.do("", func() error { return w.VolumeWriter.Put(ctx, chunk, data) })
}

func (w heldWriter) Advance(ctx context.Context, chunk int64) error {
	verb := ""
	if chunk > 0 && chunk*hopChunk%hopSegment == 0 {
		verb = "image"
	}
	return w.p.do(verb, func() error { return w.VolumeWriter.Advance(ctx, chunk) })
}

func (w heldWriter) Commit(ctx context.Context, s repository.Snapshot) (id repository.SnapshotID, stats repository.WriteStats, err error) {
	err = w.p.do("repo snapshot", func() error { id, stats, err = w.VolumeWriter.Commit(ctx, s); return err })
	return id, stats, err
}

func (w heldWriter) Close(ctx context.Context, how repository.Ending) error {
	if w.p.dead {
		return nil
	}
	return w.VolumeWriter.Close(ctx, how)
}

// heldDevice is a device in the hands of a worker.
type heldDevice struct {
	*device.Memory
	p *hands
}

func (d *heldDevice) WriteAt(b []byte, off int64) (n int, err error) {
	err = d.p.do("write", func() error { n, err = d.Memory.WriteAt(b, off); return err })
	return n, err
}

func (d *heldDevice) Zero(e block.Extent) error {
	return d.p.do("write", func() error { return d.Memory.Zero(e) })
}

// retained returns the storage snapshots that are kept, by PVC, with the Backup that keeps each.
func (h *hopWorld) retained() map[string]string {
	h.t.Helper()
	kept := map[string]string{}
	for _, content := range list[snapshotv1.VolumeSnapshotContentList](h.world).Items {
		require.NotEmpty(h.t, content.Labels[identity.LabelRetained], content.Name)
		require.Nil(h.t, content.DeletionTimestamp)
		vs := get[snapshotv1.VolumeSnapshot](h.world, veleroNamespace, content.Name)
		require.NotNil(h.t, vs)
		require.Equal(h.t, content.Labels[identity.LabelRetained], vs.Labels[identity.LabelRetained])
		kept[content.Labels[identity.LabelVolume]] = content.Labels[identity.LabelBackup]
	}
	require.Len(h.t, list[snapshotv1.VolumeSnapshotList](h.world).Items, len(kept))
	require.Len(h.t, h.snapshots, len(kept), "%v", slices.Collect(maps.Keys(h.snapshots)))
	return kept
}

// requireNoOperation checks that no operation has left anything.
func (h *hopWorld) requireNoOperation() {
	h.t.Helper()
	require.Empty(h.t, list[corev1.PodList](h.world, client.InNamespace(veleroNamespace)).Items)
	require.Empty(h.t, list[corev1.PersistentVolumeClaimList](h.world, client.InNamespace(veleroNamespace)).Items)
	require.Empty(h.t, list[corev1.SecretList](h.world, client.InNamespace(veleroNamespace)).Items)
	require.Empty(h.t, list[corev1.PersistentVolumeList](h.world, client.HasLabels{identity.LabelOperation}).Items)
	require.Empty(h.t, list[corev1.PersistentVolumeList](h.world, client.HasLabels{identity.LabelAlias}).Items)
	require.LessOrEqual(h.t, len(list[velerov1.BackupRepositoryList](h.world).Items), 1)
}

// configured changes the settings of the manager.
func (h *hopWorld) configured(edit func(c *config.Config)) {
	h.settings = edited(h.settings, edit)
	h.restart()
}
