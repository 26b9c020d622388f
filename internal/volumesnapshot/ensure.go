// Package volumesnapshot ensures and observes VolumeSnapshots: it takes the
// VolumeSnapshot of a PVC (Ensure, WaitForHandle, Delete) or of several at one
// instant (Groups), and re-homes a VolumeSnapshot into Velero's namespace, where the
// mover exposes it.
//
// Names are derived (see package identity), so that each step can be repeated
// by any process any number of times and finds what it made before.
package volumesnapshot

import (
	"context"
	"errors"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
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

// Ensure creates the VolumeSnapshot of a PVC for a backup, or adopts the one
// that an earlier attempt made. It does not wait.
//
// The VolumeSnapshot does not carry Velero's label velero.io/backup-name:
// without snapshotMoveData Velero takes all VolumeSnapshots with it for local
// snapshots of the backup, counts them in its status and deletes them with it.
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
	createErr := c.Create(ctx, vs)
	if createErr == nil {
		return vs, nil
	}
	// It may exist for all that: from an earlier attempt, or because the answer of
	// the API server was lost.
	found := &snapshotv1.VolumeSnapshot{}
	if err := c.Get(ctx, client.ObjectKeyFromObject(vs), found); err != nil {
		return nil, fmt.Errorf("create VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, createErr)
	}
	if err := adoptable(found, source); err != nil {
		return nil, fmt.Errorf("adopt VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return found, nil
}

func adoptable(found *snapshotv1.VolumeSnapshot, source Source) error {
	claim := found.Spec.Source.PersistentVolumeClaimName
	switch {
	case found.DeletionTimestamp != nil:
		return errors.New("it is being deleted")
	case found.Labels[identity.LabelBackupUID] != source.BackupUID:
		return fmt.Errorf("label %s is %q, want %q", identity.LabelBackupUID, found.Labels[identity.LabelBackupUID], source.BackupUID)
	case claim == nil || *claim != source.PVC:
		return fmt.Errorf("it is not a snapshot of PVC %s", source.PVC)
	}
	return nil
}

// WaitForHandle waits until the storage has cut the snapshot, which is when the
// VolumeSnapshotContent has a handle: the data is fixed then, although it may not
// be ready to use yet. The context bounds the wait. Errors of the storage are
// retried by the snapshotter's sidecar and are not final; the last one is part of
// the error when the time is up.
func WaitForHandle(ctx context.Context, c client.Client, key client.ObjectKey) (*snapshotv1.VolumeSnapshotContent, error) {
	var content *snapshotv1.VolumeSnapshotContent
	err := Until(ctx, handleBackoff.DelayFunc(), func(ctx context.Context) (err error) {
		content, err = contentWithHandle(ctx, c, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for snapshot handle of VolumeSnapshot %s: %w", key, err)
	}
	return content, nil
}

// contentWithHandle returns the content, or an error that says what is missing.
func contentWithHandle(ctx context.Context, c client.Reader, key client.ObjectKey) (*snapshotv1.VolumeSnapshotContent, error) {
	vs := &snapshotv1.VolumeSnapshot{}
	if err := c.Get(ctx, key, vs); apierrors.IsNotFound(err) {
		return nil, errGone
	} else if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshot: %w", err)
	}
	if vs.DeletionTimestamp != nil {
		return nil, errGone
	}
	if vs.Status == nil || vs.Status.BoundVolumeSnapshotContentName == nil {
		if vs.Status != nil {
			if text := messageOf(vs.Status.Error); text != "" {
				return nil, NotYetError(text)
			}
		}
		return nil, NotYetError("it is not bound to a VolumeSnapshotContent yet: is the snapshot controller running?")
	}
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := c.Get(ctx, client.ObjectKey{Name: *vs.Status.BoundVolumeSnapshotContentName}, content); err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotContent: %w", err)
	}
	if content.Status == nil || content.Status.SnapshotHandle == nil {
		if content.Status != nil {
			if text := messageOf(content.Status.Error); text != "" {
				return nil, NotYetError(fmt.Sprintf("VolumeSnapshotContent %s: %s", content.Name, text))
			}
		}
		return nil, NotYetError(fmt.Sprintf("VolumeSnapshotContent %s has no snapshot handle yet: is the snapshotter sidecar of driver %s running?",
			content.Name, content.Spec.Driver))
	}
	return content, nil
}

func messageOf(e *snapshotv1.VolumeSnapshotError) string {
	if e == nil || e.Message == nil {
		return ""
	}
	return *e.Message
}

// Delete deletes a VolumeSnapshot together with the snapshot in the storage: a
// class may say Retain, but what we took we also release. A VolumeSnapshot that
// is not there is deleted already. reader answers from the API server: a cache
// that holds some objects only would call the others gone.
func Delete(ctx context.Context, reader client.Reader, c client.Writer, key client.ObjectKey) error {
	vs := &snapshotv1.VolumeSnapshot{}
	if err := reader.Get(ctx, key, vs); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("get VolumeSnapshot %s: %w", key, err)
	}
	if vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil {
		if err := setDeletionPolicyDelete(ctx, reader, c, *vs.Status.BoundVolumeSnapshotContentName); err != nil {
			return err
		}
	}
	if err := client.IgnoreNotFound(c.Delete(ctx, vs, client.Preconditions{UID: &vs.UID})); err != nil {
		return fmt.Errorf("delete VolumeSnapshot %s: %w", key, err)
	}
	return nil
}

func setDeletionPolicyDelete(ctx context.Context, reader client.Reader, c client.Writer, name string) error {
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := reader.Get(ctx, client.ObjectKey{Name: name}, content); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("get VolumeSnapshotContent %s: %w", name, err)
	}
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		return nil
	}
	before := content.DeepCopy()
	content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
	if err := client.IgnoreNotFound(c.Patch(ctx, content, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("set deletion policy of VolumeSnapshotContent %s: %w", name, err)
	}
	return nil
}
