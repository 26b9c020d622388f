// Package volumesnapshot takes and observes the VolumeSnapshot of one PVC:
//
//	Ensure ──▶ WaitForHandle ──▶ an operation takes it over (package rehome)
//	                       └───▶ Release, if none does
//
// Names are derived (see package identity), so any process can repeat each step any
// number of times: a retry finds the object that an earlier attempt created.
//
// Two packages build on it, and neither on the other: groupsnapshot takes the
// VolumeSnapshots of several PVCs at one instant, and rehome hands a VolumeSnapshot
// over to an operation and keeps it for a backup.
package volumesnapshot

import (
	"context"
	"errors"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// Source says what to take a VolumeSnapshot of, and for whom.
type Source struct {
	// Namespace, PVC and PVCUID name the volume.
	Namespace string
	PVC       string
	PVCUID    string
	// Class is the VolumeSnapshotClass.
	Class string
	// BackupUID is the backup that the VolumeSnapshot belongs to.
	BackupUID string
}

// Ensure creates the VolumeSnapshot of a PVC for a backup, or adopts the one that an
// earlier attempt created. It does not wait.
//
// The VolumeSnapshot does not carry Velero's label velero.io/backup-name. Without
// snapshotMoveData, Velero treats every VolumeSnapshot with that label as a local
// snapshot of the backup: it counts it in the status and deletes it with the backup.
func Ensure(ctx context.Context, c client.Client, source Source) (*snapshotv1.VolumeSnapshot, error) {
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: source.Namespace,
			Name:      identity.VolumeSnapshotName(source.BackupUID, source.PVCUID),
			Labels: map[string]string{
				identity.LabelBackupUID:         source.BackupUID,
				velerov1.ExcludeFromBackupLabel: "true",
			},
		},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &source.PVC},
			VolumeSnapshotClassName: &source.Class,
		},
	}
	return kube.CreateOrAdopt(ctx, c, vs, source.adoptable)
}

func (s Source) adoptable(found *snapshotv1.VolumeSnapshot) error {
	claim := found.Spec.Source.PersistentVolumeClaimName
	switch {
	case found.DeletionTimestamp != nil:
		return errors.New("it is being deleted")
	case found.Labels[identity.LabelBackupUID] != s.BackupUID:
		return fmt.Errorf("label %s is %q, want %q", identity.LabelBackupUID, found.Labels[identity.LabelBackupUID], s.BackupUID)
	case claim == nil || *claim != s.PVC:
		return fmt.Errorf("it is not a snapshot of PVC %s", s.PVC)
	}
	return nil
}
