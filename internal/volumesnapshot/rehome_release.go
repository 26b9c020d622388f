package volumesnapshot

import (
	"context"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// Release deletes what an operation holds, with the snapshot in the storage,
// and returns what is still there. It finds everything by the label of the
// operation and the name of the pair, so that it also serves when the operation
// itself is gone. A pair that is retained is not the operation's any more.
//
// Origins go before the pair: as long as the pair exists, it is known that the
// storage snapshot is the pair's to delete.
func (r Rehomer) Release(ctx context.Context, op identity.Operation) ([]string, error) {
	contents := &snapshotv1.VolumeSnapshotContentList{}
	if err := r.Reader.List(ctx, contents, client.MatchingLabels{identity.LabelOperation: op.UID}); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshotContents of operation %s: %w", op.UID, err)
	}
	name := op.ObjectName()
	var left []string
	for i := range contents.Items {
		origin := &contents.Items[i]
		if origin.Name == name {
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
	content, err := r.getContent(ctx, name)
	if err != nil {
		return nil, err
	}
	if isRetained(content) {
		return left, r.followContent(ctx, content)
	}
	pair, err := r.releasePair(ctx, name, content)
	return append(left, pair...), err
}

// ReleaseOrigin deletes a VolumeSnapshot that was never taken over, with the
// snapshot in the storage. One that was is the business of Release, and a member of
// a group that is being deleted goes with its group.
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
		if slices.Contains(vs.Finalizers, finalizerInGroup) {
			return nil, nil
		}
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
		if err := r.condemn(ctx, origin); err != nil {
			return err
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

// releasePair deletes a pair, of which there may be half, and returns what is
// still there.
//
// The snapshot controller deletes content and storage snapshot when the
// VolumeSnapshot is deleted, and not before a volume that somebody makes from it
// is ready. But it knows nothing of a content that it has not bound yet, and that
// is deleted by itself.
func (r Rehomer) releasePair(ctx context.Context, name string, content *snapshotv1.VolumeSnapshotContent) ([]string, error) {
	vs, err := r.getSnapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	var left []string
	alive := content != nil && content.DeletionTimestamp == nil
	if content != nil {
		left = append(left, "VolumeSnapshotContent "+name)
	}
	if alive {
		if err := r.condemn(ctx, content); err != nil {
			return nil, err
		}
	}
	if vs != nil {
		left = append(left, "VolumeSnapshot "+vs.Namespace+"/"+name)
		if vs.DeletionTimestamp == nil {
			err := r.Client.Delete(ctx, vs, client.Preconditions{UID: &vs.UID})
			if client.IgnoreNotFound(err) != nil {
				return nil, fmt.Errorf("delete VolumeSnapshot %s/%s: %w", vs.Namespace, name, err)
			}
		}
	}
	if alive && !isBound(vs, content) {
		return left, r.deleteContent(ctx, content)
	}
	return left, nil
}

func isBound(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) bool {
	return vs != nil && vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil &&
		*vs.Status.BoundVolumeSnapshotContentName == content.Name && content.Spec.VolumeSnapshotRef.UID == vs.UID
}

// condemn makes sure that the sidecar deletes the storage snapshot when the
// content is deleted. It does so only if
//
//   - the deletion policy is Delete
//   - there is the annotation that the snapshot controller sets when the
//     VolumeSnapshot is deleted: that one may be gone, or never have been there
//   - its finalizer holds the content for so long
//   - the status has the handle, which it has not yet when the content is new
//   - the status has no group: the sidecar leaves members to their group, also where
//     the group is gone, and the snapshot would stay behind
func (r Rehomer) condemn(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	before := content.DeepCopy()
	content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
	metav1.SetMetaDataAnnotation(&content.ObjectMeta, annotationBeingDeleted, "yes")
	if !slices.Contains(content.Finalizers, finalizerContentProtection) {
		content.Finalizers = append(content.Finalizers, finalizerContentProtection)
	}
	err := r.Client.Patch(ctx, content, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("set deletion policy of VolumeSnapshotContent %s: %w", content.Name, err)
	case handleOf(content) == "":
		return nil // no snapshot was taken yet
	}
	before = content.DeepCopy()
	if content.Status == nil {
		content.Status = &snapshotv1.VolumeSnapshotContentStatus{}
	}
	if content.Status.SnapshotHandle == nil {
		content.Status.SnapshotHandle = content.Spec.Source.SnapshotHandle
	}
	content.Status.VolumeGroupSnapshotHandle = nil
	if equality.Semantic.DeepEqual(before.Status, content.Status) {
		return nil
	}
	if err := client.IgnoreNotFound(r.Client.Status().Patch(ctx, content, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("set snapshot handle in the status of VolumeSnapshotContent %s: %w", content.Name, err)
	}
	return nil
}
