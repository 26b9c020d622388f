package restore

import (
	"cmp"
	"context"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/livevolume"
)

// restoreInPlace starts the operation that writes the image into the volume of the PVC that
// exists. It returns "" if there is no such PVC, or if the restore leaves the volume out. Nobody
// touches the PVC: Velero is told to leave it out, whatever the policy for existing resources.
//
// PVCs that Velero's own action has marked are restored in place, too, if the data mover was
// blockmover: that action does nothing for a PVC that exists.
func (a *PVCAction) restoreInPlace(ctx context.Context, pvc, fromBackup *corev1.PersistentVolumeClaim, mode inplace.Mode, restore *velerov1.Restore) (string, error) {
	uploadName := cmp.Or(fromBackup.Annotations[identity.AnnotationDataUpload], fromBackup.Annotations[velerov1.DataUploadNameAnnotation])
	live, err := a.findLive(ctx, pvc, restore)
	if err != nil || live == nil || uploadName == "" || restore.Spec.RestorePVs != nil && !*restore.Spec.RestorePVs {
		return "", err
	}
	backup := &velerov1.Backup{}
	backupKey := client.ObjectKey{Namespace: restore.Namespace, Name: restore.Spec.BackupName}
	if err := a.api.Get(ctx, backupKey, backup); err != nil {
		return "", fmt.Errorf("get Backup %s: %w", backupKey, err)
	}
	result, err := findResult(ctx, a.api, restore, fromBackup.Namespace, fromBackup.Name, uploadName)
	if err != nil {
		return "", err
	}
	if err := checkResult(result, uploadName); err != nil {
		return "", err
	}
	result.SnapshotSize = sizeOf(result, fromBackup)
	download := newDataDownload(restore, backup, result, live.Namespace, live.Name, string(fromBackup.UID))
	askInPlace(download, live, mode, result)
	if err := a.checkInPlace(ctx, live, download); err != nil {
		return "", fmt.Errorf("in place: %w", err)
	}
	if _, err := a.poller.AcceptTimeout(ctx, restore.Namespace, restore.Spec.ItemOperationTimeout.Duration); err != nil {
		return "", err
	}
	if err := a.ensureDataDownload(ctx, download); err != nil {
		return "", err
	}
	a.log.WithField("dataDownload", client.ObjectKeyFromObject(download).String()).Info("The volume is restored in place by the blockmover data mover")
	return download.Labels[velerov1.AsyncOperationIDLabel], nil
}

// askInPlace makes a DataDownload write into the volume of a live PVC.
func askInPlace(download *velerov2alpha1.DataDownload, live *corev1.PersistentVolumeClaim, mode inplace.Mode, result velerov2alpha1.DataUploadResult) {
	if download.Spec.DataMoverConfig == nil {
		download.Spec.DataMoverConfig = map[string]string{}
	}
	config := download.Spec.DataMoverConfig
	config[identity.ConfigInPlace] = string(live.UID)
	config[identity.ConfigInPlaceVolume] = string(mode)
	if result.DataMoverResult != nil && (*result.DataMoverResult)[identity.ConfigVolumeHandle] != "" {
		config[identity.ConfigVolumeHandle] = (*result.DataMoverResult)[identity.ConfigVolumeHandle]
	}
}

// checkInPlace asks now what the manager asks again later, so that the Restore has the answer.
// An operation that an earlier call started is not in its own way.
func (a *PVCAction) checkInPlace(ctx context.Context, live *corev1.PersistentVolumeClaim, download *velerov2alpha1.DataDownload) error {
	config := download.Spec.DataMoverConfig
	if config[identity.ConfigVM] != "" && (live.Spec.VolumeMode == nil || *live.Spec.VolumeMode == corev1.PersistentVolumeFilesystem) {
		return fmt.Errorf("PVC %s/%s has the disk of VM %s in a file, and only disks on Block volumes can be restored in place", live.Namespace, live.Name, config[identity.ConfigVM])
	}
	volume, _, err := livevolume.Look(ctx, a.api, live)
	if err != nil {
		return err
	}
	return inplace.Check(volume, inplace.Wanted{
		Mode:   inplace.Mode(config[identity.ConfigInPlaceVolume]),
		UID:    config[identity.ConfigInPlace],
		Size:   download.Spec.SnapshotSize,
		Handle: config[identity.ConfigVolumeHandle],
	})
}
