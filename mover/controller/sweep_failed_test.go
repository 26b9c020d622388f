package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/operation"
)

// TestFailedBackupsAreForgotten: Velero does not call the delete item action for a backup that failed
// before its contents were in the object store. So its images are named to Velero's controller before.
func TestFailedBackupsAreForgotten(t *testing.T) {
	yes := true
	for name, tc := range map[string]struct {
		moves *bool
		note  func() client.ObjectList
	}{
		"of a policy":           {nil, func() client.ObjectList { return &velerov1.PodVolumeBackupList{} }},
		"with snapshotMoveData": {&yes, func() client.ObjectList { return &corev1.ConfigMapList{} }},
	} {
		t.Run(name, func(t *testing.T) {
			w := uploadWorld(t)
			w.run(w.uploads, "du")
			upload := w.dataUpload()
			require.NotEmpty(t, upload.Status.SnapshotID)
			backup := &velerov1.Backup{
				ObjectMeta: metav1.ObjectMeta{Namespace: upload.Namespace, Name: "failed", UID: "failed-uid"},
				Spec:       velerov1.BackupSpec{SnapshotMoveData: tc.moves},
				Status:     velerov1.BackupStatus{Phase: velerov1.BackupPhaseWaitingForPluginOperations},
			}
			require.NoError(t, w.c.Create(w.ctx, backup))
			upload.OwnerReferences = operation.OwnedBy("Backup", backup)
			w.update(upload)
			notes := func() int {
				list := tc.note()
				require.NoError(t, w.c.List(w.ctx, list, client.InNamespace(upload.Namespace),
					client.MatchingLabels{velerov1.BackupNameLabel: backup.Name}))
				n := 0
				switch list := list.(type) {
				case *velerov1.PodVolumeBackupList:
					n = len(list.Items)
					for _, note := range list.Items {
						require.Equal(t, upload.Status.SnapshotID, note.Status.SnapshotID)
						require.True(t, metav1.IsControlledBy(&note, backup), "it goes with the backup")
					}
				case *corev1.ConfigMapList:
					n = len(list.Items)
					for _, note := range list.Items {
						require.Equal(t, upload.Status.SnapshotID, note.Data["snapshotID"])
						require.True(t, metav1.IsControlledBy(&note, backup), "it goes with the backup")
					}
				}
				return n
			}
			w.sweepUp()
			require.Zero(t, notes(), "the backup has not failed")
			backup.Status.Phase = velerov1.BackupPhaseFailed
			w.update(backup)
			w.sweepUp()
			w.sweepUp()
			require.Equal(t, 1, notes())
		})
	}
}
