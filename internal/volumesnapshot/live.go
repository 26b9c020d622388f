package volumesnapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// EnsureLive takes the VolumeSnapshot of the PVC of an operation in Velero's namespace, for one
// attempt of a restore in place, or finds the one that it took before. It does not wait.
func EnsureLive(ctx context.Context, c client.Client, op identity.Operation, attempt int, class string) error {
	claim := op.ObjectName()
	labels, annotations := op.Mark(map[string]string{velerov1.ExcludeFromBackupLabel: "true"}, nil)
	return kube.Ensure(ctx, c, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: op.Namespace, Name: op.LiveSnapshotName(attempt), Labels: labels, Annotations: annotations},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim},
			VolumeSnapshotClassName: &class,
		},
	})
}

// sourceProtection is the finalizer by which the snapshot controller protects the PVC of a
// VolumeSnapshot while the storage cuts the snapshot.
const sourceProtection = "snapshot.storage.kubernetes.io/pvc-as-source-protection"

// ReleaseLive deletes the VolumeSnapshots that EnsureLive took, with the snapshots in the storage,
// and returns what is still there. Without one, it lets go of the PVC of the operation if that is
// being deleted.
func ReleaseLive(ctx context.Context, c client.Client, reader client.Reader, op identity.Operation) ([]string, error) {
	found := &snapshotv1.VolumeSnapshotList{}
	if err := reader.List(ctx, found, client.InNamespace(op.Namespace), client.MatchingLabels{identity.LabelOperation: op.UID}); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshots of %s: %w", op, err)
	}
	var left []string
	var errs []error
	for i := range found.Items {
		vs := &found.Items[i]
		if !isOf(vs, op.ObjectName()) {
			continue // a pair, which was re-homed
		}
		still, err := Release(ctx, c, reader, client.ObjectKeyFromObject(vs))
		left, errs = append(left, still...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil || len(left) > 0 {
		return left, err
	}
	return nil, unprotect(ctx, c, reader, client.ObjectKey{Namespace: op.Namespace, Name: op.ObjectName()})
}

// isOf reports whether a VolumeSnapshot is taken of a PVC of its namespace.
func isOf(vs *snapshotv1.VolumeSnapshot, claim string) bool {
	of := vs.Spec.Source.PersistentVolumeClaimName
	return of != nil && *of == claim
}

// unprotect removes the finalizer of the snapshot controller from a PVC that is being deleted, if
// no VolumeSnapshot is of it. The controller does so when it looks at a VolumeSnapshot of the PVC. If
// it could not, and there is none any more, nothing reminds it (external-snapshotter 8).
func unprotect(ctx context.Context, c client.Client, reader client.Reader, key client.ObjectKey) error {
	claim, err := kube.Find(ctx, reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil || claim == nil || claim.DeletionTimestamp == nil || !slices.Contains(claim.Finalizers, sourceProtection) {
		return err
	}
	all := &snapshotv1.VolumeSnapshotList{}
	if err := reader.List(ctx, all, client.InNamespace(key.Namespace)); err != nil {
		return fmt.Errorf("list VolumeSnapshots of PVC %s: %w", key, err)
	}
	if slices.ContainsFunc(all.Items, func(vs snapshotv1.VolumeSnapshot) bool { return isOf(&vs, key.Name) }) {
		return nil
	}
	before := client.MergeFromWithOptions(claim.DeepCopy(), client.MergeFromWithOptimisticLock{})
	claim.Finalizers = slices.DeleteFunc(claim.Finalizers, func(f string) bool { return f == sourceProtection })
	if err := client.IgnoreNotFound(c.Patch(ctx, claim, before)); err != nil {
		return fmt.Errorf("remove finalizer %s of PVC %s, which no VolumeSnapshot is of: %w", sourceProtection, key, err)
	}
	return nil
}
