package controller

import (
	"testing"
	"testing/synctest"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

// neighbour is the sweep of another Velero in the same cluster.
func (w *world) neighbour() *sweeper {
	const namespace = "velero-of-others"
	return &sweeper{
		client: w.c, reader: w.c, namespace: namespace,
		exposer: &exposer.Exposer{Client: cached(w.c), Reader: w.c, Namespace: namespace},
		rehomer: rehome.New(w.c, w.c, namespace),
		groups:  groupsnapshot.New(w.c, w.c),
		vms:     &vmbackup.Maker{Client: w.c, Reader: w.c, Namespace: namespace, Now: func() time.Time { return w.clock }},
		now:     func() time.Time { return w.clock }, recorder: events.NewFakeRecorder(1000), held: map[string]bool{},
		metrics: w.uploads.metrics,
	}
}

// TestSweepCountsOnce: what takes several sweeps to go away is released once. What cannot be found is
// not known to be gone.
func TestSweepCountsOnce(t *testing.T) {
	w := uploadWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	w.drive(w.uploads, "du", 20*time.Second)
	require.NoError(t, w.c.Delete(w.ctx, w.dataUpload()))
	for range 3 {
		left, err := w.sweep.sweep(w.ctx)
		require.NoError(t, err)
		require.Positive(t, left)
	}
	require.Equal(t, 1.0, testutil.ToFloat64(w.sweep.metrics.swept.WithLabelValues(sweptOperation)))

	unknown := false
	for n := range 12 {
		w.sweep.metrics.groups.Set(5)
		w.faults.failAt = w.faults.calls + 1 + n
		_, err := w.sweep.sweep(w.ctx)
		unknown = unknown || err != nil && testutil.ToFloat64(w.sweep.metrics.groups) == 5
	}
	require.True(t, unknown)
}

// TestSweepTrustsNoLabels: a tenant can give our labels and owner references to its own
// VolumeSnapshots and groups. The sweep deletes none of them, and changes no deletion policy.
func TestSweepTrustsNoLabels(t *testing.T) {
	for name, forge := range map[string]func(vs *snapshotv1.VolumeSnapshot){
		"label": func(*snapshotv1.VolumeSnapshot) {},
		"label and owner": func(vs *snapshotv1.VolumeSnapshot) {
			vs.OwnerReferences = []metav1.OwnerReference{{
				APIVersion: groupsnapshot.APIGroup + "/v1", Kind: "VolumeGroupSnapshot", Name: identity.GroupName("x", appNamespace, "db", driver), UID: "forged",
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := uploadWorld(t)
			require.NoError(t, w.c.Delete(w.ctx, w.dataUpload()))
			vs := get[snapshotv1.VolumeSnapshot](w, appNamespace, "snap")
			vs.Labels = map[string]string{identity.LabelBackupUID: "x"}
			claim := "data"
			vs.Spec.Source.PersistentVolumeClaimName = &claim
			forge(vs)
			w.update(vs)
			content := get[snapshotv1.VolumeSnapshotContent](w, "", "snapcontent-1")
			content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
			w.update(content)
			w.sweepUp()
			require.NotNil(t, get[snapshotv1.VolumeSnapshot](w, appNamespace, "snap"))
			content = get[snapshotv1.VolumeSnapshotContent](w, "", "snapcontent-1")
			require.Equal(t, snapshotv1.VolumeSnapshotContentRetain, content.Spec.DeletionPolicy)
			require.True(t, w.snapshots["snapshot-1"])
		})
	}
}

// TestSweepReleasesWhatWasTaken: the name says that our action took it.
func TestSweepReleasesWhatWasTaken(t *testing.T) {
	w := uploadWorld(t)
	require.NoError(t, w.c.Delete(w.ctx, w.dataUpload()))
	pvc := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	require.NotNil(t, pvc)
	claim := pvc.Name
	name := identity.VolumeSnapshotName("gone", string(pvc.UID))
	require.NoError(t, w.c.Create(w.ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: name, Labels: map[string]string{identity.LabelBackupUID: "gone"}},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}},
	}))
	w.sweepUp()
	require.Nil(t, get[snapshotv1.VolumeSnapshot](w, appNamespace, name))
}

// runBeside runs an operation while a neighbour sweeps after each step.
func (w *world) runBeside(neighbour *sweeper, e *engine, name string) {
	w.t.Helper()
	const enough = 60
	for range enough {
		_, err := e.Reconcile(w.ctx, requestFor(name))
		require.NoError(w.t, err)
		_, err = neighbour.sweep(w.ctx)
		require.NoError(w.t, err)
		w.step()
	}
	op := w.operation(e, name)
	require.Equal(w.t, phase.Completed, op.Status.Phase, op.Status.Message)
}

// TestSweepLeavesOperationsOfOthers: another Velero releases what its own operations have
// made.
func TestSweepLeavesOperationsOfOthers(t *testing.T) {
	w := uploadWorld(t)
	w.runBeside(w.neighbour(), w.uploads, "du")
	w = downloadWorld(t)
	w.runBeside(w.neighbour(), w.downs, "dd")
	requireRestored(t, w)
}

// TestSweepLeavesBackupsOfOthers: a VolumeSnapshot and a group do not say which Velero's
// backup they were made for, but that the backup runs.
func TestSweepLeavesBackupsOfOthers(t *testing.T) {
	w := newWorld(t, &velerov1.Backup{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "b", UID: "b-uid"},
		Status:     velerov1.BackupStatus{Phase: velerov1.BackupPhaseInProgress},
	})
	group := groupOf(t, w, "b-uid")
	require.NoError(t, w.c.Create(w.ctx, &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{
		Namespace: appNamespace, Name: "single", Labels: map[string]string{identity.LabelBackupUID: "b-uid"},
	}}))
	neighbour := w.neighbour()
	for range 10 {
		_, err := neighbour.sweep(w.ctx)
		require.NoError(t, err)
		w.step()
	}
	require.Len(t, list[snapshotv1.VolumeSnapshotList](w).Items, 2)
	require.Contains(t, get[corev1.PersistentVolumeClaim](w, appNamespace, group).Labels, identity.LabelGrouped)
}

// TestSweepIsLimited: however often the sweep is asked for, it runs once in 30 s.
func TestSweepIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		reconcileSweep := func() time.Duration {
			result, err := w.sweep.Reconcile(w.ctx, requestFor("sweep"))
			require.NoError(t, err)
			return result.RequeueAfter
		}
		lists := func() int { calls := w.live; w.live = 0; return calls }
		require.Equal(t, sweepInterval, reconcileSweep())
		require.NotZero(t, lists())

		time.Sleep(10 * time.Second)
		require.Equal(t, minSweepInterval-10*time.Second, reconcileSweep())
		require.Zero(t, lists())

		time.Sleep(20 * time.Second)
		require.Equal(t, sweepInterval, reconcileSweep())
		require.NotZero(t, lists())

		// What is being deleted is checked again soon, for a while.
		w.sweep.again = 1
		w.faults.failAt = w.faults.calls + 1
		time.Sleep(sweepInterval)
		_, err := w.sweep.Reconcile(w.ctx, requestFor("sweep"))
		require.ErrorIs(t, err, errInjected)
		require.Equal(t, minSweepInterval, reconcileSweep(), "a failed sweep is not repeated at once")
	})
}

func TestNeedsSweep(t *testing.T) {
	p := needsSweep()
	upload := func(ph phase.Phase) client.Object { return queued(t, ph)[0].Object() }
	backup := func(ph velerov1.BackupPhase) client.Object {
		return &velerov1.Backup{Status: velerov1.BackupStatus{Phase: ph}}
	}
	for name, tc := range map[string]struct {
		was, is client.Object
		want    bool
	}{
		"upload ends":      {upload(phase.InProgress), upload(phase.Completed), true},
		"upload runs":      {upload(phase.Accepted), upload(phase.InProgress), false},
		"upload has ended": {upload(phase.Completed), upload(phase.Completed), false},
		"backup ends":      {backup(velerov1.BackupPhaseFinalizing), backup(velerov1.BackupPhaseCompleted), true},
		"backup runs":      {backup(velerov1.BackupPhaseInProgress), backup(velerov1.BackupPhaseWaitingForPluginOperations), false},
	} {
		require.Equal(t, tc.want, p.Update(event.UpdateEvent{ObjectOld: tc.was, ObjectNew: tc.is}), name)
		require.False(t, p.Create(event.CreateEvent{Object: tc.was}), name)
	}
	require.True(t, p.Delete(event.DeleteEvent{Object: upload(phase.InProgress)}))
	require.False(t, p.Delete(event.DeleteEvent{Object: upload(phase.Completed)}))
	require.True(t, p.Delete(event.DeleteEvent{Object: backup(velerov1.BackupPhaseCompleted)}))
}
