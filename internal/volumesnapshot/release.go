package volumesnapshot

import (
	"context"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// Release deletes a VolumeSnapshot that no operation took over, with the snapshot in
// the storage, and returns what is still there. The class may say Retain, but what we
// took we also delete. It leaves alone a VolumeSnapshot that an operation took over,
// which the operation releases, and a member of a group that is being deleted, which
// goes with its group. reader answers from the API server.
func Release(ctx context.Context, c client.Client, reader client.Reader, key client.ObjectKey) ([]string, error) {
	contents := content.New(c, reader)
	vs, err := contents.FindSnapshot(ctx, key)
	if err != nil || vs == nil {
		return nil, err
	}
	left := []string{"VolumeSnapshot " + key.String()}
	if vs.DeletionTimestamp != nil {
		if slices.Contains(vs.Finalizers, content.FinalizerInGroup) {
			return nil, nil
		}
		return left, nil
	}
	if name := content.BoundTo(vs); name != "" {
		bound, err := contents.Find(ctx, name)
		switch {
		case err != nil:
			return nil, err
		case bound == nil:
		case bound.Labels[identity.LabelOperation] != "":
			return left, nil
		default:
			if err := contents.SetPolicy(ctx, bound, snapshotv1.VolumeSnapshotContentDelete); err != nil {
				return left, err
			}
		}
	}
	return left, kube.Delete(ctx, c, vs)
}
