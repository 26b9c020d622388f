package restore

import (
	"context"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	uploader "github.com/vmware-tanzu/velero/pkg/uploader/util"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
)

// newDataDownload renders the DataDownload as Velero's built-in action would, except for the
// generated name.
func newDataDownload(restore *velerov1.Restore, backup *velerov1.Backup, result velerov2alpha1.DataUploadResult, namespace, pvc, pvcUID string) *velerov2alpha1.DataDownload {
	download := &velerov2alpha1.DataDownload{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       restore.Namespace,
			Name:            identity.DataDownloadName(string(restore.UID), pvcUID),
			OwnerReferences: operation.OwnedBy("Restore", restore),
			Labels: map[string]string{
				velerov1.RestoreNameLabel: label.GetValidName(restore.Name),
				velerov1.RestoreUIDLabel:  string(restore.UID),
				velerov1.AsyncOperationIDLabel: label.GetValidName(
					string(velerov1.AsyncOperationIDPrefixDataDownload) + string(restore.UID) + "." + pvcUID),
			},
		},
		Spec: velerov2alpha1.DataDownloadSpec{
			TargetVolume:          velerov2alpha1.TargetVolumeSpec{Namespace: namespace, PVC: pvc},
			BackupStorageLocation: result.BackupStorageLocation,
			DataMover:             identity.DataMover,
			SnapshotID:            result.SnapshotID,
			SnapshotSize:          result.SnapshotSize,
			SourceNamespace:       result.SourceNamespace,
			OperationTimeout:      backup.Spec.CSISnapshotTimeout,
			NodeOS:                result.NodeOS,
		},
	}
	if restore.Spec.UploaderConfig != nil {
		download.Spec.DataMoverConfig = uploader.StoreRestoreConfig(restore.Spec.UploaderConfig)
	}
	if result.DataMoverResult != nil && (*result.DataMoverResult)[identity.ConfigVM] != "" {
		if download.Spec.DataMoverConfig == nil {
			download.Spec.DataMoverConfig = map[string]string{}
		}
		download.Spec.DataMoverConfig[identity.ConfigVM] = (*result.DataMoverResult)[identity.ConfigVM]
	}
	return download
}

// ensureDataDownload creates the DataDownload, or adopts the one that an earlier
// attempt created.
func (a *PVCAction) ensureDataDownload(ctx context.Context, wanted *velerov2alpha1.DataDownload) error {
	_, err := kube.CreateOrAdopt(ctx, a.api, wanted, func(found *velerov2alpha1.DataDownload) error {
		if err := operation.Adoptable(found, wanted); err != nil {
			return err
		}
		is, want := found.Spec.TargetVolume, wanted.Spec.TargetVolume
		switch {
		case is != want:
			return fmt.Errorf("its target is PVC %s/%s, want %s/%s", is.Namespace, is.PVC, want.Namespace, want.PVC)
		case found.Spec.SnapshotID != wanted.Spec.SnapshotID:
			return fmt.Errorf("its snapshotID is %s, want %s", found.Spec.SnapshotID, wanted.Spec.SnapshotID)
		}
		return nil
	})
	return err
}
