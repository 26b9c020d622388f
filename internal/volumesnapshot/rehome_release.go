package volumesnapshot

import (
	"context"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// Release deletes what an operation holds, with the snapshot in the storage,
// and returns what is still there. It finds everything by the label of the
// operation, so that it also serves when the operation itself is gone.
//
// Origins go before the pair: as long as the pair exists, it is known that the
// storage snapshot is the pair's to delete.
func (r Rehomer) Release(ctx context.Context, op Operation) ([]string, error) {
	contents := &snapshotv1.VolumeSnapshotContentList{}
	if err := r.Reader.List(ctx, contents, client.MatchingLabels{identity.LabelOperation: op.UID}); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshotContents of operation %s: %w", op.UID, err)
	}
	name := identity.OperationName(op.UID)
	isPair := func(c snapshotv1.VolumeSnapshotContent) bool { return c.Name == name }
	pair := slices.IndexFunc(contents.Items, isPair)

	var left []string
	for i := range contents.Items {
		origin := &contents.Items[i]
		if i == pair {
			continue
		}
		left = append(left, "VolumeSnapshotContent "+origin.Name)
		if origin.DeletionTimestamp != nil {
			continue
		}
		if err := r.releaseOriginContent(ctx, origin); err != nil {
			return nil, err
		}
	}
	var content *snapshotv1.VolumeSnapshotContent
	if pair >= 0 {
		content = &contents.Items[pair]
		left = append(left, "VolumeSnapshotContent "+name)
	}
	still, err := r.releasePair(ctx, op, content)
	if err != nil {
		return nil, err
	}
	if still {
		left = append(left, "VolumeSnapshot "+r.Namespace+"/"+name)
	}
	return left, nil
}

// ReleaseOrigin deletes a VolumeSnapshot that was never taken over, with the
// snapshot in the storage. One that was is the business of Release.
func (r Rehomer) ReleaseOrigin(ctx context.Context, from Origin) ([]string, error) {
	key := client.ObjectKey{Namespace: from.Namespace, Name: from.VolumeSnapshot}
	vs := &snapshotv1.VolumeSnapshot{}
	if err := r.Reader.Get(ctx, key, vs); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshot %s: %w", key, err)
	}
	left := []string{"VolumeSnapshot " + key.String()}
	if vs.DeletionTimestamp != nil {
		return left, nil
	}
	if vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil {
		content, err := r.getContent(ctx, *vs.Status.BoundVolumeSnapshotContentName)
		if err != nil {
			return nil, err
		}
		if content != nil && content.Labels[identity.LabelOperation] != "" {
			return left, nil
		}
	}
	return left, Delete(ctx, r.Reader, r.Client, key)
}

// releaseOriginContent deletes an origin that was set to Retain. The storage
// snapshot goes with it unless it has another name: the pair's.
func (r Rehomer) releaseOriginContent(ctx context.Context, origin *snapshotv1.VolumeSnapshotContent) error {
	shared, err := r.handleIsShared(ctx, origin)
	if err != nil {
		return err
	}
	if !shared {
		before := origin.DeepCopy()
		origin.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
		// The sidecar deletes the storage snapshot only when it sees this annotation,
		// which the snapshot controller sets when the VolumeSnapshot is deleted; that
		// one may be gone.
		metav1.SetMetaDataAnnotation(&origin.ObjectMeta, annotationBeingDeleted, "yes")
		err := r.Client.Patch(ctx, origin, client.MergeFrom(before))
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("set deletion policy of VolumeSnapshotContent %s: %w", origin.Name, err)
		}
	}
	ref := origin.Spec.VolumeSnapshotRef
	if err := r.deleteSnapshot(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, origin.Name); err != nil {
		return err
	}
	return r.deleteContent(ctx, origin)
}

// handleIsShared reports whether another content has the same storage snapshot.
func (r Rehomer) handleIsShared(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) (bool, error) {
	handle := handleOf(content)
	if handle == "" {
		return false, nil
	}
	all := &snapshotv1.VolumeSnapshotContentList{}
	if err := r.Reader.List(ctx, all); err != nil {
		return false, fmt.Errorf("list VolumeSnapshotContents: %w", err)
	}
	return slices.ContainsFunc(all.Items, func(c snapshotv1.VolumeSnapshotContent) bool {
		return c.Name != content.Name && c.Spec.Driver == content.Spec.Driver && handleOf(&c) == handle
	}), nil
}

func handleOf(content *snapshotv1.VolumeSnapshotContent) string {
	switch {
	case content.Status != nil && content.Status.SnapshotHandle != nil:
		return *content.Status.SnapshotHandle
	case content.Spec.Source.SnapshotHandle != nil:
		return *content.Spec.Source.SnapshotHandle
	}
	return ""
}

// releasePair deletes the pair, and reports whether the VolumeSnapshot is still
// there. The snapshot controller deletes content and storage snapshot when the
// VolumeSnapshot is deleted, but only if the two are bound and the sidecar has
// taken note of the content: an unbound content would be deleted without its
// storage snapshot. So the pair is completed first where a crash left half of it.
func (r Rehomer) releasePair(ctx context.Context, op Operation, content *snapshotv1.VolumeSnapshotContent) (bool, error) {
	key := client.ObjectKey{Namespace: r.Namespace, Name: identity.OperationName(op.UID)}
	if content != nil && content.DeletionTimestamp == nil {
		vs, err := r.ensureSnapshot(ctx, op, content)
		if err != nil {
			return false, err
		}
		bound := vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil &&
			content.Status != nil && slices.Contains(content.Finalizers, finalizerContentProtection)
		if !bound && vs.DeletionTimestamp == nil {
			return true, nil
		}
	}
	vs := &snapshotv1.VolumeSnapshot{}
	if err := r.Reader.Get(ctx, key, vs); apierrors.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("get VolumeSnapshot %s: %w", key, err)
	}
	if vs.DeletionTimestamp != nil {
		return true, nil
	}
	if content != nil {
		if err := setDeletionPolicyDelete(ctx, r.Reader, r.Client, content.Name); err != nil {
			return false, err
		}
	}
	err := r.Client.Delete(ctx, vs, client.Preconditions{UID: &vs.UID})
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("delete VolumeSnapshot %s: %w", key, err)
	}
	return true, nil
}
