// Package content is the client for VolumeSnapshotContents, and for the
// VolumeSnapshots bound to them, that the packages around it share. It knows what
// the snapshot controller and its sidecar look at before they delete a snapshot in
// the storage.
package content

import (
	"context"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// Client reads from the API server, never from a cache: a cache may hold some
// objects only, and a stale answer would call a VolumeSnapshot gone that was
// re-homed a moment ago.
type Client struct {
	api    client.Client
	reader client.Reader
}

// New returns a Client. reader answers from the API server.
func New(api client.Client, reader client.Reader) Client { return Client{api, reader} }

// Find returns nil if the content does not exist.
func (c Client) Find(ctx context.Context, name string) (*snapshotv1.VolumeSnapshotContent, error) {
	return ifServed(kube.Find(ctx, c.reader, client.ObjectKey{Name: name}, &snapshotv1.VolumeSnapshotContent{}))
}

// ifServed passes a result on. A cluster that does not serve the kind has no object of it.
func ifServed[T any](found *T, err error) (*T, error) {
	if meta.IsNoMatchError(err) {
		return nil, nil
	}
	return found, err
}

// FindSnapshot returns nil if the VolumeSnapshot does not exist.
func (c Client) FindSnapshot(ctx context.Context, key client.ObjectKey) (*snapshotv1.VolumeSnapshot, error) {
	return ifServed(kube.Find(ctx, c.reader, key, &snapshotv1.VolumeSnapshot{}))
}

// List lists contents.
func (c Client) List(ctx context.Context, options ...client.ListOption) ([]snapshotv1.VolumeSnapshotContent, error) {
	list := &snapshotv1.VolumeSnapshotContentList{}
	if err := c.reader.List(ctx, list, options...); err != nil && !meta.IsNoMatchError(err) {
		return nil, fmt.Errorf("list VolumeSnapshotContents: %w", err)
	}
	return list.Items, nil
}

// IsShared reports whether another content has the same storage snapshot.
func (c Client) IsShared(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) (bool, error) {
	handle := HandleOf(content)
	if handle == "" {
		return false, nil
	}
	all, err := c.List(ctx)
	return slices.ContainsFunc(all, func(other snapshotv1.VolumeSnapshotContent) bool {
		return other.Name != content.Name && other.Spec.Driver == content.Spec.Driver && HandleOf(&other) == handle
	}), err
}

// Protect sets the deletion policy to Retain, so that the storage snapshot survives
// the deletion of the content, and marks the content as the operation's.
func (c Client) Protect(ctx context.Context, op identity.Operation, content *snapshotv1.VolumeSnapshotContent) error {
	return c.setPolicy(ctx, content, snapshotv1.VolumeSnapshotContentRetain, func() {
		content.Labels, content.Annotations = op.Mark(content.Labels, content.Annotations)
	})
}

// SetPolicy sets the deletion policy.
func (c Client) SetPolicy(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, policy snapshotv1.DeletionPolicy) error {
	return client.IgnoreNotFound(c.setPolicy(ctx, content, policy, func() {}))
}

// Announce sets the deletion policy and the annotation without which the sidecar
// does not let go of a content that is deleted. The snapshot controller sets the
// annotation when the VolumeSnapshot is deleted, but not for the members of a group
// that exists.
func (c Client) Announce(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, policy snapshotv1.DeletionPolicy) error {
	return client.IgnoreNotFound(c.setPolicy(ctx, content, policy, func() {
		kube.SetAnnotation(content, AnnotationBeingDeleted, "yes")
	}))
}

func (c Client) setPolicy(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, policy snapshotv1.DeletionPolicy, mark func()) error {
	before := content.DeepCopy()
	content.Spec.DeletionPolicy = policy
	mark()
	if equality.Semantic.DeepEqual(before, content) {
		return nil
	}
	if err := c.api.Patch(ctx, content, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("set deletion policy of VolumeSnapshotContent %s to %s: %w", content.Name, policy, err)
	}
	return nil
}

// Condemn makes sure that the sidecar deletes the storage snapshot when the content
// is deleted. The sidecar does so only if
//
//   - the deletion policy is Delete
//   - the content has the annotation that the snapshot controller sets when the
//     VolumeSnapshot is deleted; the VolumeSnapshot may be gone, or may never have
//     existed
//   - its finalizer keeps the content for that long
//   - the status has the handle, which a new content does not have yet
//   - the status has no group: the sidecar leaves members to their group even if
//     the group is gone, and the storage snapshot would stay behind
func (c Client) Condemn(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	before := content.DeepCopy()
	content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentDelete
	kube.SetAnnotation(content, AnnotationBeingDeleted, "yes")
	if !slices.Contains(content.Finalizers, finalizerProtection) {
		content.Finalizers = append(content.Finalizers, finalizerProtection)
	}
	err := c.api.Patch(ctx, content, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("set deletion policy of VolumeSnapshotContent %s to %s: %w", content.Name, content.Spec.DeletionPolicy, err)
	case HandleOf(content) == "":
		return nil // the storage has not taken the snapshot yet
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
	if err := client.IgnoreNotFound(c.api.Status().Patch(ctx, content, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("set snapshot handle in the status of VolumeSnapshotContent %s: %w", content.Name, err)
	}
	return nil
}

// Delete deletes a content. What becomes of the storage snapshot depends on the
// deletion policy.
func (c Client) Delete(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	if content.DeletionTimestamp == nil && content.Annotations[AnnotationGroupHandle] != "" {
		if err := c.Announce(ctx, content, content.Spec.DeletionPolicy); err != nil {
			return err
		}
	}
	return kube.Delete(ctx, c.api, content)
}

// DeleteSnapshot deletes a VolumeSnapshot if it is bound to the content. Another
// VolumeSnapshot may have taken the name in the meantime.
func (c Client) DeleteSnapshot(ctx context.Context, key client.ObjectKey, contentName string) error {
	vs, err := c.FindSnapshot(ctx, key)
	if err != nil || vs == nil || BoundTo(vs) != contentName {
		return err
	}
	return kube.Delete(ctx, c.api, vs)
}

// BoundTo returns the name of the content that a VolumeSnapshot is bound to, or "".
func BoundTo(vs *snapshotv1.VolumeSnapshot) string {
	if vs.Status == nil || vs.Status.BoundVolumeSnapshotContentName == nil {
		return ""
	}
	return *vs.Status.BoundVolumeSnapshotContentName
}

// HandleOf returns the handle of the storage snapshot, or "" if the storage has not
// taken it yet.
func HandleOf(content *snapshotv1.VolumeSnapshotContent) string {
	switch {
	case content.Status != nil && content.Status.SnapshotHandle != nil:
		return *content.Status.SnapshotHandle
	case content.Spec.Source.SnapshotHandle != nil:
		return *content.Spec.Source.SnapshotHandle
	}
	return ""
}

// Message returns the text of an error in a status, or "".
func Message(e *snapshotv1.VolumeSnapshotError) string {
	if e == nil || e.Message == nil {
		return ""
	}
	return *e.Message
}
