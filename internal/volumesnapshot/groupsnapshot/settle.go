package groupsnapshot

import (
	"context"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

// annotationGroupBeingDeleted is set by the snapshot controller while the group exists.
// The sidecar does not let go of a group's content without it.
const annotationGroupBeingDeleted = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"

// settle decides how the storage deletes the group, and reports whether a member is
// needed. It prepares the contents of the members for the deletion of their
// VolumeSnapshots, which comes with that of the group.
func (g Group) settle(ctx context.Context, ofGroup *groupapi.Content, members []snapshotv1.VolumeSnapshot) (needed bool, err error) {
	if needed, err = isNeeded(ctx, g.contents, ofGroup); err != nil {
		return false, err
	}
	policy := snapshotv1.VolumeSnapshotContentDelete
	if needed {
		policy = snapshotv1.VolumeSnapshotContentRetain
	}
	if err := g.setPolicy(ctx, ofGroup.Object, policy); err != nil {
		return false, err
	}
	for i := range members {
		name := content.BoundTo(&members[i])
		if name == "" {
			continue
		}
		ofMember, err := g.contents.Find(ctx, name)
		if err != nil {
			return false, err
		}
		if ofMember == nil {
			continue
		}
		if err := g.contents.Announce(ctx, ofMember, policy); err != nil {
			return false, err
		}
	}
	return needed, nil
}

// isNeeded reports whether a storage snapshot of the group has been re-homed and is not
// being deleted. If that cannot be known, it counts as needed.
func isNeeded(ctx context.Context, contents content.Client, ofGroup *groupapi.Content) (bool, error) {
	handles, known := ofGroup.Members()
	if !known {
		return true, nil
	}
	all, err := contents.List(ctx)
	return slices.ContainsFunc(all, func(c snapshotv1.VolumeSnapshotContent) bool {
		source := c.Spec.Source.SnapshotHandle
		return source != nil && c.DeletionTimestamp == nil && c.Spec.Driver == ofGroup.Spec.Driver && slices.Contains(handles, *source)
	}), err
}

// setPolicy sets the deletion policy of the group's content.
func (g Group) setPolicy(ctx context.Context, ofGroup *unstructured.Unstructured, policy snapshotv1.DeletionPolicy) error {
	before := ofGroup.DeepCopy()
	if err := unstructured.SetNestedField(ofGroup.Object, string(policy), "spec", "deletionPolicy"); err != nil {
		return fmt.Errorf("set deletion policy of VolumeGroupSnapshotContent %s: %w", ofGroup.GetName(), err)
	}
	kube.SetAnnotation(ofGroup, annotationGroupBeingDeleted, "yes")
	kube.SetLabel(ofGroup, identity.LabelBackupUID, g.BackupUID)
	if equality.Semantic.DeepEqual(before, ofGroup) {
		return nil
	}
	if err := client.IgnoreNotFound(g.client.Patch(ctx, ofGroup, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("set deletion policy of VolumeGroupSnapshotContent %s: %w", ofGroup.GetName(), err)
	}
	return nil
}

// detach prepares a member's content for its deletion. If the group has a content, the
// storage snapshot goes with the group. Else it goes now, unless another content has it
// too.
func detach(ctx context.Context, contents content.Client, ofGroup *groupapi.Content, ofMember *snapshotv1.VolumeSnapshotContent) error {
	shared, err := contents.IsShared(ctx, ofMember)
	switch {
	case err != nil:
		return err
	case shared, ofGroup != nil:
		return contents.Announce(ctx, ofMember, snapshotv1.VolumeSnapshotContentRetain)
	}
	return contents.Condemn(ctx, ofMember)
}

// dismiss deletes the members of a group that is gone, whoever deleted it, and their
// contents.
//
// While the group existed, the snapshot controller tried to delete the members and
// failed; now it looks at a member again only when the object changes. It may even
// have nothing left to do: while a group is not ready, the controller creates the
// content of a deleted member again, removes the group from the member's status, and
// removes its own finalizers. Then the finalizer of the group is the last one, and the
// content would stay.
func (g Group) dismiss(ctx context.Context, found remains) error {
	contents, err := g.contents.List(ctx)
	if err != nil {
		return err
	}
	for i := range found.members {
		if err := g.dismissMember(ctx, found.content, &found.members[i], contents); err != nil {
			return err
		}
	}
	return nil
}

func (g Group) dismissMember(ctx context.Context, ofGroup *groupapi.Content, vs *snapshotv1.VolumeSnapshot, contents []snapshotv1.VolumeSnapshotContent) error {
	for i := range contents {
		ofMember := &contents[i]
		if ref := ofMember.Spec.VolumeSnapshotRef; ref.Namespace != vs.Namespace || ref.Name != vs.Name {
			continue
		}
		if isAbandoned(vs) && (ofMember.Spec.VolumeSnapshotRef.UID != vs.UID || ofMember.Spec.DeletionPolicy != snapshotv1.VolumeSnapshotContentDelete) {
			continue
		}
		if err := detach(ctx, g.contents, ofGroup, ofMember); err != nil {
			return err
		}
		if err := g.contents.Delete(ctx, ofMember); err != nil {
			return err
		}
	}
	if err := kube.Delete(ctx, g.client, vs); err != nil {
		return err
	}
	if !slices.Contains(vs.Finalizers, content.FinalizerInGroup) {
		return nil
	}
	before := vs.DeepCopy()
	vs.Finalizers = slices.DeleteFunc(vs.Finalizers, func(f string) bool { return f == content.FinalizerInGroup })
	err := g.client.Patch(ctx, vs, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("release VolumeSnapshot %s: %w", client.ObjectKeyFromObject(vs), err)
	}
	return nil
}
