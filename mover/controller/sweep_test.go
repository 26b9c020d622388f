package controller

import (
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
)

// neighbour is the sweep of another Velero in the same cluster.
func (w *world) neighbour() *sweeper {
	const namespace = "velero-of-others"
	return &sweeper{
		client: w.c, reader: w.c, namespace: namespace,
		exposer: &exposer.Exposer{Client: cached(w.c), Reader: w.c, Namespace: namespace},
		rehomer: rehome.New(w.c, w.c, namespace),
		groups:  groupsnapshot.New(w.c, w.c),
	}
}

// runBeside runs an operation while a neighbour sweeps after each step.
func (w *world) runBeside(neighbour *sweeper, e *engine, name string) {
	w.t.Helper()
	const enough = 60
	for range enough {
		_, err := e.Reconcile(w.ctx, requestFor(name))
		require.NoError(w.t, err)
		require.NoError(w.t, neighbour.sweep(w.ctx))
		w.step()
	}
	op := w.operation(e, name)
	require.Equal(w.t, phase.Completed, op.Status.Phase, op.Status.Message)
}

// TestSweepLeavesOperationsOfOthers: what an operation of another Velero has made
// is that Velero's to release.
func TestSweepLeavesOperationsOfOthers(t *testing.T) {
	w := uploadWorld(t)
	w.runBeside(w.neighbour(), w.uploads, "du")
	w = downloadWorld(t)
	w.runBeside(w.neighbour(), w.downs, "dd")
	requireRestored(t, w)
}

// TestSweepLeavesBackupsOfOthers: a VolumeSnapshot and a group do not say whose
// backup they were made for, but that runs.
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
		require.NoError(t, neighbour.sweep(w.ctx))
		w.step()
	}
	require.Len(t, list[snapshotv1.VolumeSnapshotList](w).Items, 2)
	require.Contains(t, get[corev1.PersistentVolumeClaim](w, appNamespace, group).Labels, identity.LabelGrouped)
}
