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

// ReleaseLive deletes the VolumeSnapshots that EnsureLive took, with the snapshots in the storage,
// and returns what is still there.
func ReleaseLive(ctx context.Context, c client.Client, reader client.Reader, op identity.Operation) ([]string, error) {
	found := &snapshotv1.VolumeSnapshotList{}
	if err := reader.List(ctx, found, client.InNamespace(op.Namespace), client.MatchingLabels{identity.LabelOperation: op.UID}); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshots of %s: %w", op, err)
	}
	var left []string
	var errs []error
	for i := range found.Items {
		vs := &found.Items[i]
		if claim := vs.Spec.Source.PersistentVolumeClaimName; claim == nil || *claim != op.ObjectName() {
			continue // a pair, which was re-homed
		}
		still, err := Release(ctx, c, reader, client.ObjectKeyFromObject(vs))
		left, errs = append(left, still...), append(errs, err)
	}
	return left, errors.Join(errs...)
}
