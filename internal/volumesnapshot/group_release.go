package volumesnapshot

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// What the snapshot controller puts on groups and their members.
const (
	annotationGroupBeingDeleted = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"
	finalizerInGroup            = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"
)

// Upload is a DataUpload of a group's backup that has not ended.
type Upload struct {
	Name string
	UID  string
	// VolumeSnapshot is the member that it is to move.
	VolumeSnapshot string
}

// Release takes a group away: stamps, VolumeGroupSnapshot, content and members, with
// what the storage has of them and nobody needs. It never waits, and returns what is
// still there; the caller calls again. Any number of calls, also at once, come to
// the same end.
//
// A member snapshot is needed when a mover has re-homed it, for an upload that
// runs or as a retained base, or is yet to re-home it: while uploads has one of
// those, the group stays. The storage deletes a group as a whole, members that were
// re-homed too. So
//
//   - when somebody needs a member, the group's content is set to Retain, and the
//     members that nobody needs are deleted one by one
//   - else the group's content is set to Delete, and the storage deletes the group
//
// It serves also when parts are gone already: it goes by the names and labels of
// what is left.
func (g Groups) Release(ctx context.Context, ref GroupRef, uploads []Upload) ([]string, error) {
	if err := g.unstamp(ctx, ref); err != nil {
		return nil, err
	}
	version, err := g.Version()
	if err != nil {
		return nil, err
	}
	vgs, content, err := g.find(ctx, version, ref)
	if err != nil {
		return nil, err
	}
	uid := ""
	if vgs != nil {
		uid = string(vgs.UID)
	}
	members, err := g.members(ctx, ref, uid)
	if err != nil {
		return nil, err
	}
	for _, upload := range uploads {
		if taken, err := g.hasTaken(ctx, upload, members); err != nil {
			return nil, err
		} else if !taken {
			return []string{"DataUpload " + upload.Name + " has not taken its member of " + kindGroup + " " + ref.String() + " over"}, nil
		}
	}
	left, err := g.releaseGroup(ctx, version, ref, vgs, content, members)
	if err != nil {
		return nil, err
	}
	for i := range members {
		left = append(left, "VolumeSnapshot "+client.ObjectKeyFromObject(&members[i]).String())
	}
	if vgs == nil && len(members) > 0 { // else the snapshot controller does not let go of them
		err = g.dismiss(ctx, members)
	}
	return left, err
}

// releaseGroup deletes what there is of the group itself, and returns it.
func (g Groups) releaseGroup(ctx context.Context, version string, ref GroupRef,
	vgs *Group, content *groupContent, members []snapshotv1.VolumeSnapshot,
) (left []string, err error) {
	keep := true
	if content != nil {
		if keep, err = g.settle(ctx, ref, content, members); err != nil {
			return nil, err
		}
		left = append(left, kindGroupContent+" "+content.Name)
	}
	if vgs != nil {
		left = append(left, kindGroup+" "+ref.String())
		if err := g.delete(ctx, version, kindGroup, vgs); err != nil {
			return nil, err
		}
	}
	// The snapshot controller deletes the content together with the group where its
	// policy is Delete.
	if content != nil && (keep || vgs == nil) {
		err = g.delete(ctx, version, kindGroupContent, content)
	}
	return left, err
}

// find returns the group and its content, as far as they are there.
func (g Groups) find(ctx context.Context, version string, ref GroupRef) (*Group, *groupContent, error) {
	if version == "" {
		return nil, nil, nil
	}
	vgs, err := g.Get(ctx, version, ref)
	if err != nil {
		return nil, nil, err
	}
	if vgs != nil {
		content, err := g.content(ctx, version, vgs)
		return vgs, content, err
	}
	contents, err := g.listOurs(ctx, version, kindGroupContent)
	if err != nil {
		return nil, nil, err
	}
	for i := range contents {
		content, err := readGroupContent(&contents[i])
		if err != nil {
			return nil, nil, err
		}
		if of := content.Spec.VolumeGroupSnapshotRef; of.Namespace == ref.Namespace && of.Name == ref.Name {
			return nil, content, nil
		}
	}
	return nil, nil, nil
}

// hasTaken says whether an upload does not need its member any more.
func (g Groups) hasTaken(ctx context.Context, upload Upload, members []snapshotv1.VolumeSnapshot) (bool, error) {
	if !slices.ContainsFunc(members, func(vs snapshotv1.VolumeSnapshot) bool { return vs.Name == upload.VolumeSnapshot }) {
		return true, nil
	}
	content, err := Rehomer{Reader: g.Reader}.getContent(ctx, identity.OperationName(upload.UID))
	return content != nil, err
}

// settle decides how the storage's part of a group is deleted, and reports whether
// members of it are kept.
func (g Groups) settle(ctx context.Context, ref GroupRef, content *groupContent, members []snapshotv1.VolumeSnapshot) (keep bool, err error) {
	if keep, err = g.isNeeded(ctx, content); err != nil {
		return false, err
	}
	policy := snapshotv1.VolumeSnapshotContentDelete
	if keep {
		policy = snapshotv1.VolumeSnapshotContentRetain
	}
	before := content.object.DeepCopy()
	after := content.object
	if err := unstructured.SetNestedField(after.Object, string(policy), "spec", "deletionPolicy"); err != nil {
		return false, fmt.Errorf("set deletion policy of VolumeGroupSnapshotContent %s: %w", content.Name, err)
	}
	// The sidecar lets go of a content only with this, which the snapshot controller
	// sets while the group is there.
	after.SetAnnotations(with(after.GetAnnotations(), annotationGroupBeingDeleted, "yes"))
	after.SetLabels(with(after.GetLabels(), identity.LabelBackupUID, ref.BackupUID))
	if err := client.IgnoreNotFound(g.Client.Patch(ctx, after, client.MergeFrom(before))); err != nil {
		return false, fmt.Errorf("set deletion policy of VolumeGroupSnapshotContent %s: %w", content.Name, err)
	}
	r := Rehomer{Client: g.Client, Reader: g.Reader}
	for i := range members {
		if err := r.settleMember(ctx, &members[i], keep); err != nil {
			return false, err
		}
	}
	return keep, nil
}

func with(m map[string]string, key, value string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// isNeeded says whether a storage snapshot of the group has been re-homed and is not
// being deleted. What cannot be known is needed.
func (g Groups) isNeeded(ctx context.Context, content *groupContent) (bool, error) {
	handles, known := content.handles()
	if !known {
		return true, nil
	}
	all := &snapshotv1.VolumeSnapshotContentList{}
	if err := g.Reader.List(ctx, all); err != nil {
		return false, fmt.Errorf("list VolumeSnapshotContents: %w", err)
	}
	return slices.ContainsFunc(all.Items, func(c snapshotv1.VolumeSnapshotContent) bool {
		source := c.Spec.Source.SnapshotHandle
		return source != nil && c.DeletionTimestamp == nil && c.Spec.Driver == content.Spec.Driver && slices.Contains(handles, *source)
	}), nil
}

// settleMember prepares the content of a member for the deletion of its
// VolumeSnapshot, which comes with that of the group.
func (r Rehomer) settleMember(ctx context.Context, vs *snapshotv1.VolumeSnapshot, groupIsKept bool) error {
	if vs.Status == nil || vs.Status.BoundVolumeSnapshotContentName == nil {
		return nil
	}
	content, err := r.getContent(ctx, *vs.Status.BoundVolumeSnapshotContentName)
	if err != nil || content == nil {
		return err
	}
	return r.settleContent(ctx, content, groupIsKept)
}

func (r Rehomer) settleContent(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, groupIsKept bool) error {
	policy := snapshotv1.VolumeSnapshotContentDelete
	if groupIsKept {
		shared, err := r.handleIsShared(ctx, content)
		if err != nil {
			return err
		}
		if !shared {
			return r.condemn(ctx, content)
		}
		policy = snapshotv1.VolumeSnapshotContentRetain
	}
	before := content.DeepCopy()
	content.Spec.DeletionPolicy = policy
	metav1.SetMetaDataAnnotation(&content.ObjectMeta, annotationBeingDeleted, "yes")
	if err := client.IgnoreNotFound(r.Client.Patch(ctx, content, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("set deletion policy of VolumeSnapshotContent %s: %w", content.Name, err)
	}
	return nil
}

// delete deletes a group or its content.
func (g Groups) delete(ctx context.Context, version, kind string, object client.Object) error {
	if object.GetDeletionTimestamp() != nil {
		return nil
	}
	target := &unstructured.Unstructured{}
	target.SetGroupVersionKind(groupKind(version, kind))
	target.SetNamespace(object.GetNamespace())
	target.SetName(object.GetName())
	uid := object.GetUID()
	if err := client.IgnoreNotFound(g.Client.Delete(ctx, target, client.Preconditions{UID: &uid})); err != nil {
		return fmt.Errorf("delete %s %s: %w", kind, client.ObjectKeyFromObject(object), err)
	}
	return nil
}

// dismiss deletes the members of a group that is gone, whoever deleted that, and
// their contents.
//
// The snapshot controller has tried in vain for as long as the group was there, and
// looks at a member again now only when the object changes. It may not even have
// to: while a group is not ready, the controller makes the content of a member again
// that was deleted, takes the group out of the member's status, and its own
// finalizers off. The last finalizer is then that of the group, and the content
// would stay.
func (g Groups) dismiss(ctx context.Context, members []snapshotv1.VolumeSnapshot) error {
	contents := &snapshotv1.VolumeSnapshotContentList{}
	if err := g.Reader.List(ctx, contents); err != nil {
		return fmt.Errorf("list VolumeSnapshotContents: %w", err)
	}
	for i := range members {
		if err := g.dismissMember(ctx, &members[i], contents.Items); err != nil {
			return err
		}
	}
	return nil
}

func (g Groups) dismissMember(ctx context.Context, vs *snapshotv1.VolumeSnapshot, contents []snapshotv1.VolumeSnapshotContent) error {
	r := Rehomer{Client: g.Client, Reader: g.Reader}
	for i := range contents {
		content := &contents[i]
		if ref := content.Spec.VolumeSnapshotRef; ref.Namespace != vs.Namespace || ref.Name != vs.Name {
			continue
		}
		if err := r.settleContent(ctx, content, true); err != nil {
			return err
		}
		if err := r.deleteContent(ctx, content); err != nil {
			return err
		}
	}
	if vs.DeletionTimestamp == nil {
		if err := client.IgnoreNotFound(g.Client.Delete(ctx, vs, client.Preconditions{UID: &vs.UID})); err != nil {
			return fmt.Errorf("delete VolumeSnapshot %s: %w", client.ObjectKeyFromObject(vs), err)
		}
	}
	if !slices.Contains(vs.Finalizers, finalizerInGroup) {
		return nil
	}
	before := vs.DeepCopy()
	vs.Finalizers = slices.DeleteFunc(vs.Finalizers, func(f string) bool { return f == finalizerInGroup })
	err := g.Client.Patch(ctx, vs, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("release VolumeSnapshot %s: %w", client.ObjectKeyFromObject(vs), err)
	}
	return nil
}

// unstamp takes the stamps of a group from the PVCs.
func (g Groups) unstamp(ctx context.Context, ref GroupRef) error {
	stamped := newClaimList()
	if err := g.Reader.List(ctx, stamped, client.InNamespace(ref.Namespace), client.HasLabels{identity.GroupStamp(ref.Name)}); err != nil {
		return fmt.Errorf("list PVCs of VolumeGroupSnapshot %s: %w", ref, err)
	}
	for i := range stamped.Items {
		pvc := &stamped.Items[i]
		before := pvc.DeepCopy()
		Unstamp(pvc.Labels, ref.Name)
		// The mark that is common to all groups goes with the last stamp: of two
		// backups that do this at once, the second one has to look again.
		err := g.Client.Patch(ctx, pvc, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove stamp of VolumeGroupSnapshot %s from PVC %s: %w", ref, client.ObjectKeyFromObject(pvc), err)
		}
	}
	return nil
}

// Unstamp removes the stamps of a group from labels, or of all groups where the name
// is "".
func Unstamp(labels map[string]string, groupName string) {
	maps.DeleteFunc(labels, func(key, _ string) bool {
		stamp := identity.StampedGroup(key)
		return stamp != "" && (groupName == "" || stamp == groupName)
	})
	for key := range labels {
		if identity.StampedGroup(key) != "" {
			return
		}
	}
	delete(labels, identity.LabelGrouped)
}

// Find returns the groups of which anything is left: stamps, group, content, and
// members, which are among the given VolumeSnapshots of backups.
func (g Groups) Find(ctx context.Context, snapshots []snapshotv1.VolumeSnapshot) ([]GroupRef, error) {
	found := map[GroupRef]bool{}
	stamped := newClaimList()
	if err := g.Reader.List(ctx, stamped, client.HasLabels{identity.LabelGrouped}); err != nil {
		return nil, fmt.Errorf("list stamped PVCs: %w", err)
	}
	for _, pvc := range stamped.Items {
		for key, backupUID := range pvc.Labels {
			if name := identity.StampedGroup(key); name != "" {
				found[GroupRef{Namespace: pvc.Namespace, Name: name, BackupUID: backupUID}] = true
			}
		}
	}
	for i := range snapshots {
		if vs := &snapshots[i]; IsOurMember(vs) {
			found[GroupRef{Namespace: vs.Namespace, Name: groupOf(vs), BackupUID: vs.Labels[identity.LabelBackupUID]}] = true
		}
	}
	if err := g.findGroups(ctx, found); err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b GroupRef) int { return strings.Compare(a.String(), b.String()) }), nil
}

func (g Groups) findGroups(ctx context.Context, found map[GroupRef]bool) error {
	version, err := g.Version()
	if err != nil || version == "" {
		return err
	}
	groups, err := g.listOurs(ctx, version, kindGroup)
	if err != nil {
		return err
	}
	for _, vgs := range groups {
		found[GroupRef{Namespace: vgs.GetNamespace(), Name: vgs.GetName(), BackupUID: vgs.GetLabels()[identity.LabelBackupUID]}] = true
	}
	contents, err := g.listOurs(ctx, version, kindGroupContent)
	if err != nil {
		return err
	}
	for i := range contents {
		content, err := readGroupContent(&contents[i])
		if err != nil {
			return err
		}
		of := content.Spec.VolumeGroupSnapshotRef
		found[GroupRef{Namespace: of.Namespace, Name: of.Name, BackupUID: content.Labels[identity.LabelBackupUID]}] = true
	}
	return nil
}

// listOurs lists what carries the label of a backup; nothing where the kind has
// gone from the cluster.
func (g Groups) listOurs(ctx context.Context, version, kind string) ([]unstructured.Unstructured, error) {
	list := newGroupList(version, kind)
	err := g.Reader.List(ctx, list, client.HasLabels{identity.LabelBackupUID})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", kind, err)
	}
	return list.Items, nil
}

// newClaimList lists the metadata of PVCs.
func newClaimList() *metav1.PartialObjectMetadataList {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Version: corev1.SchemeGroupVersion.Version, Kind: "PersistentVolumeClaimList"})
	return list
}
