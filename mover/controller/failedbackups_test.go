package controller

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
)

// TestFailedBackupsAreForgotten: Velero does not call the delete item action for a backup that failed
// before its contents were in the object store. So its images are named to Velero's controller before: by
// the upload before it ends, or, if the backup fails later, by the controller of failed backups.
func TestFailedBackupsAreForgotten(t *testing.T) {
	yes := true
	for name, tc := range map[string]struct {
		moves *bool
		note  func() client.ObjectList
	}{
		"of a policy":           {nil, func() client.ObjectList { return &velerov1.PodVolumeBackupList{} }},
		"with snapshotMoveData": {&yes, func() client.ObjectList { return &corev1.ConfigMapList{} }},
	} {
		for _, failsFirst := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, the backup fails before the upload has ended: %t", name, failsFirst), func(t *testing.T) {
				w := uploadWorld(t)
				upload := w.dataUpload()
				backup := &velerov1.Backup{
					ObjectMeta: metav1.ObjectMeta{Namespace: upload.Namespace, Name: "failed", UID: "failed-uid"},
					Spec:       velerov1.BackupSpec{SnapshotMoveData: tc.moves},
					Status:     velerov1.BackupStatus{Phase: velerov1.BackupPhaseInProgress},
				}
				require.NoError(t, w.c.Create(w.ctx, backup))
				upload.OwnerReferences = operation.OwnedBy("Backup", backup)
				w.update(upload)
				fail := func() {
					backup.Status.Phase = velerov1.BackupPhaseFailed
					w.update(backup)
				}
				reconcileBackup := func() {
					controller := &failedBackups{client: w.c, namespace: upload.Namespace}
					_, err := controller.Reconcile(w.ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(backup)})
					require.NoError(t, err)
				}
				notes := func() []client.Object {
					list := tc.note()
					require.NoError(t, w.c.List(w.ctx, list, client.InNamespace(upload.Namespace),
						client.MatchingLabels{velerov1.BackupNameLabel: backup.Name}))
					var all []client.Object
					require.NoError(t, meta.EachListItem(list, func(o runtime.Object) error {
						note, ok := o.(client.Object)
						require.True(t, ok)
						all = append(all, note)
						return nil
					}))
					return all
				}
				if failsFirst {
					fail()
					reconcileBackup()
					require.Empty(t, notes(), "there is no image yet")
				}
				w.run(w.uploads, "du")
				upload = w.dataUpload()
				require.Equal(t, velerov2alpha1.DataUploadPhaseCompleted, upload.Status.Phase)
				if !failsFirst {
					reconcileBackup()
					require.Empty(t, notes(), "the backup has not failed")
					fail()
					reconcileBackup()
				}
				require.Len(t, notes(), 1)
				reconcileBackup()
				require.Len(t, notes(), 1)
				note := notes()[0]
				require.True(t, metav1.IsControlledBy(note, backup), "it goes with the backup")
				switch note := note.(type) {
				case *velerov1.PodVolumeBackup:
					require.Equal(t, upload.Status.SnapshotID, note.Status.SnapshotID)
				case *corev1.ConfigMap:
					require.Equal(t, upload.Status.SnapshotID, note.Data["snapshotID"])
				}
			})
		}
	}
}

// TestFailedBackupsSeen: what begins to be a reason to look at a backup.
func TestFailedBackupsSeen(t *testing.T) {
	backup := func(phase velerov1.BackupPhase) client.Object {
		return &velerov1.Backup{Status: velerov1.BackupStatus{Phase: phase}}
	}
	upload := func(mover, snapshot string) client.Object {
		return &velerov2alpha1.DataUpload{
			Spec:   velerov2alpha1.DataUploadSpec{DataMover: mover},
			Status: velerov2alpha1.DataUploadStatus{SnapshotID: snapshot},
		}
	}
	for name, tc := range map[string]struct {
		holds    func(client.Object) bool
		old, now client.Object
		want     bool
	}{
		"a backup fails":              {hasFailed, backup("InProgress"), backup("Failed"), true},
		"a backup is deleted":         {hasFailed, backup("Failed"), backup("Deleting"), false},
		"a failed backup is changed":  {hasFailed, backup("Failed"), backup("Failed"), false},
		"an image is saved":           {hasImage, upload(identity.DataMover, ""), upload(identity.DataMover, "k1"), true},
		"an image of another mover":   {hasImage, upload("velero", ""), upload("velero", "k1"), false},
		"an upload ends with nothing": {hasImage, upload(identity.DataMover, ""), upload(identity.DataMover, ""), false},
	} {
		t.Run(name, func(t *testing.T) {
			seen := becomes(tc.holds)
			require.Equal(t, tc.want, seen.Update(event.UpdateEvent{ObjectOld: tc.old, ObjectNew: tc.now}))
			require.Equal(t, tc.holds(tc.now), seen.Create(event.CreateEvent{Object: tc.now}), "when the manager starts")
			require.False(t, seen.Delete(event.DeleteEvent{Object: tc.now}))
		})
	}
}
