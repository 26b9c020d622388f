// Package forget names repo snapshots to Velero's deletion controller, which deletes them with their
// backup.
//
// The controller looks in one of two places:
//
//	backup with snapshotMoveData   ConfigMaps labelled as snapshot info: the way of Velero's
//	                               own action, which serves only its own mover
//	other backups                  PodVolumeBackups labelled with the backup
//
// A volume of a policy is usually in a backup without snapshotMoveData. So for those there is a
// PodVolumeBackup that is completed from the start and belongs to no pod. The controller only deletes
// its snapshot.
//
// The delete item action makes these notes. Velero does not call it for a backup that failed before
// its contents were in the object store. So the manager makes those of a failed backup at once. The
// Backup owns its notes, so they go with it.
package forget

import (
	"context"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
)

// Note returns the note about the repo snapshot of a DataUpload.
func Note(upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) client.Object {
	if backup.Spec.SnapshotMoveData == nil || !*backup.Spec.SnapshotMoveData {
		return podVolumeBackup(upload, backup)
	}
	return snapshotInfo(upload, backup)
}

// snapshotInfo has the keys of Velero's pkg/repository/types.SnapshotIdentifier.
func snapshotInfo(upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: backup.Namespace,
			Name:      upload.Name + "-info",
			Labels: map[string]string{
				velerov1.BackupNameLabel:             label.GetValidName(backup.Name),
				velerov1.DataUploadSnapshotInfoLabel: "true",
			},
			OwnerReferences: operation.OwnedBy("Backup", backup),
		},
		Data: map[string]string{
			"volumeNamespace":       upload.Spec.SourceNamespace,
			"backupStorageLocation": backup.Spec.StorageLocation,
			"snapshotID":            upload.Status.SnapshotID,
			"repositoryType":        velerov1.BackupRepositoryTypeKopia,
			"uploaderType":          identity.DataMover,
			"source":                upload.Spec.SourceNamespace + "/" + upload.Spec.SourcePVC,
		},
	}
}

// podVolumeBackup returns one that node agents ignore, because it is completed, and restores
// ignore, because it names no pod and no PVC.
func podVolumeBackup(upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) *velerov1.PodVolumeBackup {
	return &velerov1.PodVolumeBackup{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: backup.Namespace,
			Name:      upload.Name + "-forget",
			Labels: map[string]string{
				velerov1.BackupNameLabel: label.GetValidName(backup.Name),
				velerov1.BackupUIDLabel:  string(backup.UID),
			},
			OwnerReferences: operation.OwnedBy("Backup", backup),
		},
		Spec: velerov1.PodVolumeBackupSpec{
			Pod:                   corev1.ObjectReference{Namespace: upload.Spec.SourceNamespace},
			Volume:                upload.Spec.SourcePVC,
			BackupStorageLocation: backup.Spec.StorageLocation,
			UploaderType:          velerov1.BackupRepositoryTypeKopia,
		},
		Status: velerov1.PodVolumeBackupStatus{
			Phase:      velerov1.PodVolumeBackupPhaseCompleted,
			SnapshotID: upload.Status.SnapshotID,
			Message:    "left by Blockmover so that Velero forgets the repo snapshot of DataUpload " + upload.Name,
		},
	}
}

// Renew creates a note, or overwrites that of a deletion that was interrupted.
func Renew(ctx context.Context, api client.Client, note client.Object) error {
	what := fmt.Sprintf("%T %s", note, client.ObjectKeyFromObject(note))
	err := api.Create(ctx, note)
	if err == nil {
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s: %w", what, err)
	}
	found, ok := note.DeepCopyObject().(client.Object)
	if !ok {
		return fmt.Errorf("copy %s: it is no API object", what)
	}
	if err := api.Get(ctx, client.ObjectKeyFromObject(note), found); err != nil {
		return fmt.Errorf("get %s: %w", what, err)
	}
	note.SetUID(found.GetUID())
	note.SetResourceVersion(found.GetResourceVersion())
	if err := api.Update(ctx, note); err != nil {
		return fmt.Errorf("update %s: %w", what, err)
	}
	return nil
}
