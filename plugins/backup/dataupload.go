package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/veleroapi"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
)

// newDataUpload renders the DataUpload as Velero's built-in action would, with our settings
// and without the generated name.
func newDataUpload(pvc *corev1.PersistentVolumeClaim, driver string, backup *velerov1.Backup, volumeSnapshot, class string, settings policy.Settings) *velerov2alpha1.DataUpload {
	return &velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       backup.Namespace,
			Name:            identity.DataUploadName(string(backup.UID), string(pvc.UID)),
			OwnerReferences: operation.OwnedBy("Backup", backup),
			Labels: map[string]string{
				velerov1.BackupNameLabel:       label.GetValidName(backup.Name),
				velerov1.BackupUIDLabel:        string(backup.UID),
				velerov1.PVCUIDLabel:           string(pvc.UID),
				velerov1.AsyncOperationIDLabel: operationID(backup, pvc),
			},
		},
		Spec: velerov2alpha1.DataUploadSpec{
			SnapshotType: velerov2alpha1.SnapshotTypeCSI,
			CSISnapshot: &velerov2alpha1.CSISnapshotSpec{
				VolumeSnapshot: volumeSnapshot,
				StorageClass:   ptr.Deref(pvc.Spec.StorageClassName, ""),
				SnapshotClass:  class,
				Driver:         driver,
			},
			SourcePVC:             pvc.Name,
			SourceNamespace:       pvc.Namespace,
			DataMover:             identity.DataMover,
			DataMoverConfig:       settings.ToConfig(),
			BackupStorageLocation: backup.Spec.StorageLocation,
			OperationTimeout:      backup.Spec.CSISnapshotTimeout,
		},
	}
}

// upload waits for the snapshot and creates the DataUpload.
func (a *PVCAction) upload(ctx context.Context, vs client.ObjectKey, wanted *velerov2alpha1.DataUpload, snapshotTimeout time.Duration) (*velerov2alpha1.DataUpload, error) {
	waitCtx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	if _, err := volumesnapshot.WaitForHandle(waitCtx, a.api, vs); err != nil {
		return nil, adviseExhausted(ctx, a.api, err, wanted)
	}
	return a.create(ctx, wanted)
}

// create creates the DataUpload, or adopts that of an earlier attempt.
func (a *PVCAction) create(ctx context.Context, wanted *velerov2alpha1.DataUpload) (*velerov2alpha1.DataUpload, error) {
	err := veleroapi.CreateDataUpload(ctx, a.api, wanted, wanted.Spec.DataMoverConfig[identity.ConfigParentSnapshot])
	return kube.AdoptAfter(ctx, a.api, wanted, err, adoptableAs(wanted))
}

// adviseExhausted adds advice to the error of a storage that takes no more snapshots of the
// volume: which of them are ours, and how to release them.
func adviseExhausted(ctx context.Context, api client.Client, err error, wanted *velerov2alpha1.DataUpload) error {
	if !errors.Is(err, volumesnapshot.ErrExhausted) {
		return err
	}
	retained, listErr := rehome.New(api, api, wanted.Namespace).
		ListRetainedOf(ctx, wanted.Spec.SourceNamespace, wanted.Spec.SourcePVC)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	names := make([]string, len(retained))
	for i, r := range retained {
		names[i] = fmt.Sprintf("%s of backup %s (retainSnapshot %s)", r.Name, r.Backup, r.Retention)
	}
	return fmt.Errorf("%w; blockmover retains %d snapshots of volume %s/%s in namespace %s: [%s]: "+
		"raise the limit of the storage, or delete backups, or set retainSnapshot to auto or never",
		err, len(retained), wanted.Spec.SourceNamespace, wanted.Spec.SourcePVC, wanted.Namespace, strings.Join(names, ", "))
}

// adoptableAs returns a check for an existing DataUpload. Its error says why the DataUpload
// cannot be the wanted one, created by an earlier attempt.
func adoptableAs(wanted *velerov2alpha1.DataUpload) func(found *velerov2alpha1.DataUpload) error {
	return func(found *velerov2alpha1.DataUpload) error {
		if err := operation.Adoptable(found, wanted); err != nil {
			return err
		}
		switch {
		case found.Spec.CSISnapshot == nil || found.Spec.CSISnapshot.VolumeSnapshot != wanted.Spec.CSISnapshot.VolumeSnapshot:
			return fmt.Errorf("it does not move VolumeSnapshot %s", wanted.Spec.CSISnapshot.VolumeSnapshot)
		case !maps.Equal(found.Spec.DataMoverConfig, wanted.Spec.DataMoverConfig):
			return fmt.Errorf("its dataMoverConfig is %v, want %v", found.Spec.DataMoverConfig, wanted.Spec.DataMoverConfig)
		}
		return nil
	}
}

// checkClass checks the class that a policy names.
func checkClass(ctx context.Context, c client.Client, name, driver string) error {
	class := &snapshotv1.VolumeSnapshotClass{}
	if err := c.Get(ctx, client.ObjectKey{Name: name}, class); err != nil {
		return fmt.Errorf("get VolumeSnapshotClass %s of the volume policy: %w", name, err)
	}
	if class.Driver != driver {
		return fmt.Errorf("VolumeSnapshotClass %s of the volume policy is of driver %s, the volume of %s", name, class.Driver, driver)
	}
	return nil
}
