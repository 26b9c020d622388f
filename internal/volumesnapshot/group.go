package volumesnapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/group"
	"github.com/blockmover/blockmover/internal/identity"
)

// Groups takes and releases group snapshots, in the newest version of their API
// that the cluster serves.
//
// The members are stamped with a label of the group, the VolumeGroupSnapshot
// selects on it, the snapshot controller makes a VolumeSnapshot of each, and
// Release takes all of it away again. Objects are read as unstructured: what is
// needed of them is spelled the same in all versions.
type Groups struct {
	Client client.Client
	// Reader answers from the API server.
	Reader client.Reader
}

// GroupAPI is the API group of VolumeGroupSnapshots.
const GroupAPI = groupsnapshotv1.GroupName

// groupVersions are those that are understood, the best first.
var groupVersions = []string{"v1", "v1beta2", "v1beta1"}

// The kinds of GroupAPI.
const (
	kindGroup        = "VolumeGroupSnapshot"
	kindGroupContent = "VolumeGroupSnapshotContent"
	kindGroupClass   = "VolumeGroupSnapshotClass"
)

// Version returns the version of GroupAPI to use, "" where the cluster has none.
func (g Groups) Version() (string, error) {
	for _, version := range groupVersions {
		_, err := g.Client.RESTMapper().RESTMapping(schema.GroupKind{Group: GroupAPI, Kind: kindGroup}, version)
		if err == nil {
			return version, nil
		}
		if !meta.IsNoMatchError(err) {
			return "", fmt.Errorf("discover %s/%s: %w", GroupAPI, version, err)
		}
	}
	return "", nil
}

// GroupRef names a VolumeGroupSnapshot of ours.
type GroupRef struct {
	Namespace string
	Name      string
	BackupUID string
}

func (r GroupRef) key() client.ObjectKey {
	return client.ObjectKey{Namespace: r.Namespace, Name: r.Name}
}

// String is namespace/name.
func (r GroupRef) String() string { return r.key().String() }

// Group is a VolumeGroupSnapshot.
type Group struct {
	*groupsnapshotv1.VolumeGroupSnapshot
}

// Has says whether a PVC is a member.
func (g Group) Has(pvc string) bool {
	return slices.Contains(strings.Split(g.Annotations[identity.AnnotationMembers], ","), pvc)
}

// Classes returns the VolumeGroupSnapshotClasses.
func (g Groups) Classes(ctx context.Context, version string) ([]group.Class, error) {
	list := newGroupList(version, kindGroupClass)
	if err := g.Reader.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list VolumeGroupSnapshotClasses: %w", err)
	}
	classes := make([]group.Class, len(list.Items))
	for i, item := range list.Items {
		class := &groupsnapshotv1.VolumeGroupSnapshotClass{}
		if err := decode(&item, class); err != nil {
			return nil, err
		}
		classes[i] = group.Class{
			Name:    class.Name,
			Driver:  class.Driver,
			Default: class.Labels[velerov1.VolumeGroupSnapshotClassDefaultLabel] == "true",
		}
	}
	return classes, nil
}

// Get returns nil for a group that is not there.
func (g Groups) Get(ctx context.Context, version string, ref GroupRef) (*Group, error) {
	object, err := g.get(ctx, version, kindGroup, ref.key())
	if err != nil || object == nil {
		return nil, err
	}
	vgs := &groupsnapshotv1.VolumeGroupSnapshot{}
	if err := decode(object, vgs); err != nil {
		return nil, err
	}
	if have := vgs.Labels[identity.LabelBackupUID]; have != ref.BackupUID {
		return nil, fmt.Errorf("adopt VolumeGroupSnapshot %s: label %s is %q, want %q", ref, identity.LabelBackupUID, have, ref.BackupUID)
	}
	return &Group{vgs}, nil
}

// Create stamps the members and makes the VolumeGroupSnapshot, or returns the one
// that somebody else has made in the meantime.
func (g Groups) Create(ctx context.Context, version string, ref GroupRef, class string, members []string) (*Group, error) {
	if err := g.stamp(ctx, ref, members); err != nil {
		return nil, err
	}
	vgs := &groupsnapshotv1.VolumeGroupSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ref.Namespace,
			Name:      ref.Name,
			Labels: map[string]string{
				identity.LabelBackupUID: ref.BackupUID,
				// Velero takes it for the finalize phase of its own backup all the same.
				velerov1.ExcludeFromBackupLabel: "true",
			},
			Annotations: map[string]string{identity.AnnotationMembers: strings.Join(members, ",")},
		},
		Spec: groupsnapshotv1.VolumeGroupSnapshotSpec{
			Source: groupsnapshotv1.VolumeGroupSnapshotSource{
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{identity.GroupStamp(ref.Name): ref.BackupUID}},
			},
			VolumeGroupSnapshotClassName: &class,
		},
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(vgs)
	if err != nil {
		return nil, fmt.Errorf("render VolumeGroupSnapshot %s: %w", ref, err)
	}
	object := &unstructured.Unstructured{Object: content}
	object.SetGroupVersionKind(groupKind(version, kindGroup))
	createErr := g.Client.Create(ctx, object)
	// It may exist for all that: from another action, or because the answer of the
	// API server was lost.
	found, err := g.Get(ctx, version, ref)
	switch {
	case err != nil:
		return nil, errors.Join(createErr, err)
	case found == nil && createErr != nil:
		return nil, fmt.Errorf("create VolumeGroupSnapshot %s: %w", ref, createErr)
	case found == nil:
		return nil, fmt.Errorf("create VolumeGroupSnapshot %s: %w", ref, errGone)
	}
	return found, nil
}

// stamp labels the members, all of them before any snapshot is taken.
func (g Groups) stamp(ctx context.Context, ref GroupRef, members []string) error {
	for _, name := range members {
		pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: name}}
		before := pvc.DeepCopy()
		pvc.Labels = map[string]string{identity.GroupStamp(ref.Name): ref.BackupUID, identity.LabelGrouped: "true"}
		if err := g.Client.Patch(ctx, pvc, client.MergeFrom(before)); err != nil {
			return fmt.Errorf("stamp PVC %s/%s as member of VolumeGroupSnapshot %s: %w", ref.Namespace, name, ref.Name, err)
		}
	}
	return nil
}

// WaitForMember waits until the storage has cut the group, and returns the
// VolumeSnapshot of a member, which may not be ready to use yet. The context bounds
// the wait; as with WaitForHandle, errors of the storage are not final. A group that
// another member has waited for in vain is not waited for again.
func (g Groups) WaitForMember(ctx context.Context, version string, ref GroupRef, pvc string) (*snapshotv1.VolumeSnapshot, error) {
	var vs *snapshotv1.VolumeSnapshot
	err := Until(ctx, handleBackoff.DelayFunc(), func(ctx context.Context) (err error) {
		vs, err = g.member(ctx, version, ref, pvc)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the member of PVC %s in VolumeGroupSnapshot %s: %w", pvc, ref, err)
	}
	return vs, nil
}

// member returns the VolumeSnapshot of a member whose content has its handle, or an
// error that says what is missing.
func (g Groups) member(ctx context.Context, version string, ref GroupRef, pvc string) (*snapshotv1.VolumeSnapshot, error) {
	vgs, err := g.Get(ctx, version, ref)
	switch {
	case err != nil:
		return nil, err
	case vgs == nil || vgs.DeletionTimestamp != nil:
		return nil, errGone
	}
	members, err := g.members(ctx, ref, string(vgs.UID))
	if err != nil {
		return nil, err
	}
	for i := range members {
		vs := &members[i]
		if claim := vs.Spec.Source.PersistentVolumeClaimName; claim == nil || *claim != pvc {
			continue
		}
		if err := g.label(ctx, ref, vs); err != nil {
			return nil, err
		}
		_, err := contentWithHandle(ctx, g.Reader, client.ObjectKeyFromObject(vs))
		return vs, err
	}
	if reason := vgs.Annotations[identity.AnnotationFailed]; reason != "" {
		return nil, fmt.Errorf("%w: %s", errFailedBefore, reason)
	}
	return nil, g.whyUncut(ctx, version, vgs, len(members))
}

// label makes a member known as the backup's, and keeps it out of others.
func (g Groups) label(ctx context.Context, ref GroupRef, vs *snapshotv1.VolumeSnapshot) error {
	if vs.Labels[identity.LabelBackupUID] == ref.BackupUID {
		return nil
	}
	before := vs.DeepCopy()
	metav1.SetMetaDataLabel(&vs.ObjectMeta, identity.LabelBackupUID, ref.BackupUID)
	metav1.SetMetaDataLabel(&vs.ObjectMeta, velerov1.ExcludeFromBackupLabel, "true")
	if err := g.Client.Patch(ctx, vs, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("label VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return nil
}

// whyUncut says what a group without the wanted member waits for.
func (g Groups) whyUncut(ctx context.Context, version string, vgs *Group, members int) error {
	if vgs.Status != nil {
		if text := messageOf(vgs.Status.Error); text != "" {
			return NotYetError(text)
		}
	}
	content, err := g.content(ctx, version, vgs)
	switch {
	case err != nil:
		return err
	case content == nil:
		return NotYetError("it has no VolumeGroupSnapshotContent yet: does the snapshot controller run with feature gate CSIVolumeGroupSnapshot?")
	case content.Status != nil && messageOf(content.Status.Error) != "":
		return NotYetError(fmt.Sprintf("VolumeGroupSnapshotContent %s: %s", content.Name, messageOf(content.Status.Error)))
	case content.Status == nil || content.Status.VolumeGroupSnapshotHandle == nil:
		return NotYetError(fmt.Sprintf("VolumeGroupSnapshotContent %s has no handle yet: does the snapshotter sidecar of driver %s run with feature gate CSIVolumeGroupSnapshot?",
			content.Name, content.Spec.Driver))
	}
	return NotYetError(fmt.Sprintf("the storage has cut the group, and there are %d VolumeSnapshots of its members, but none of this PVC", members))
}

// GiveUp notes on a group that was not cut in time why nobody waits for it any more.
// A group that was cut serves its other members all the same and stays as it is.
func (g Groups) GiveUp(ctx context.Context, version string, ref GroupRef, why string) error {
	vgs, err := g.Get(ctx, version, ref)
	if err != nil || vgs == nil {
		return err
	}
	members, err := g.members(ctx, ref, string(vgs.UID))
	if err != nil || len(members) > 0 {
		return err
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(groupKind(version, kindGroup))
	object.SetNamespace(ref.Namespace)
	object.SetName(ref.Name)
	before := object.DeepCopy()
	object.SetAnnotations(map[string]string{identity.AnnotationFailed: why})
	if err := g.Client.Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("annotate VolumeGroupSnapshot %s: %w", ref, err)
	}
	return nil
}

// members returns the VolumeSnapshots of a group; uid is "" where the group itself
// is gone. The owner reference is compared by UID alone: its version is that of the
// snapshot controller, which need not be the newest.
func (g Groups) members(ctx context.Context, ref GroupRef, uid string) ([]snapshotv1.VolumeSnapshot, error) {
	list := &snapshotv1.VolumeSnapshotList{}
	if err := g.Reader.List(ctx, list, client.InNamespace(ref.Namespace)); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshots of namespace %s: %w", ref.Namespace, err)
	}
	return slices.DeleteFunc(list.Items, func(vs snapshotv1.VolumeSnapshot) bool {
		if groupOf(&vs) == ref.Name {
			return false
		}
		return uid == "" || !slices.ContainsFunc(vs.OwnerReferences, func(o metav1.OwnerReference) bool { return string(o.UID) == uid })
	}), nil
}

// groupOf returns the name of the VolumeGroupSnapshot that a VolumeSnapshot is a
// member of, or was; "" for none.
func groupOf(vs *snapshotv1.VolumeSnapshot) string {
	if vs.Status != nil && vs.Status.VolumeGroupSnapshotName != nil {
		return *vs.Status.VolumeGroupSnapshotName
	}
	for _, owner := range vs.OwnerReferences {
		if owner.Kind == kindGroup && strings.HasPrefix(owner.APIVersion, GroupAPI+"/") {
			return owner.Name
		}
	}
	return ""
}

// IsOurMember says whether a VolumeSnapshot was made by a group of ours.
func IsOurMember(vs *snapshotv1.VolumeSnapshot) bool { return identity.IsGroupName(groupOf(vs)) }

// content returns the content of a group, nil for one that has none.
func (g Groups) content(ctx context.Context, version string, vgs *Group) (*groupContent, error) {
	// The controller's name for it, from before it is in the status.
	name := "groupsnapcontent-" + string(vgs.UID)
	if vgs.Status != nil && vgs.Status.BoundVolumeGroupSnapshotContentName != nil {
		name = *vgs.Status.BoundVolumeGroupSnapshotContentName
	}
	object, err := g.get(ctx, version, kindGroupContent, client.ObjectKey{Name: name})
	if err != nil || object == nil {
		return nil, err
	}
	return readGroupContent(object)
}

// groupContent is a VolumeGroupSnapshotContent.
type groupContent struct {
	*groupsnapshotv1.VolumeGroupSnapshotContent
	object *unstructured.Unstructured
}

func readGroupContent(object *unstructured.Unstructured) (*groupContent, error) {
	content := &groupsnapshotv1.VolumeGroupSnapshotContent{}
	if err := decode(object, content); err != nil {
		return nil, err
	}
	return &groupContent{content, object}, nil
}

// handles are those of the storage snapshots of all members. known is false when the
// group was cut and the content does not tell.
func (c *groupContent) handles() (handles []string, known bool) {
	if c.Status == nil || c.Status.VolumeGroupSnapshotHandle == nil {
		return nil, true
	}
	// v1beta1 has another name for the list.
	for _, field := range []string{"volumeSnapshotInfoList", "volumeSnapshotHandlePairList"} {
		list, _, err := unstructured.NestedSlice(c.object.Object, "status", field)
		if err != nil {
			return nil, false
		}
		for _, item := range list {
			pair, _ := item.(map[string]any)
			handle, _ := pair["snapshotHandle"].(string)
			if handle == "" {
				return nil, false
			}
			handles = append(handles, handle)
		}
	}
	return handles, len(handles) > 0
}

func groupKind(version, kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: GroupAPI, Version: version, Kind: kind}
}

func newGroupList(version, kind string) *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(groupKind(version, kind+"List"))
	return list
}

// get returns nil for what is not there.
func (g Groups) get(ctx context.Context, version, kind string, key client.ObjectKey) (*unstructured.Unstructured, error) {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(groupKind(version, kind))
	if err := g.Reader.Get(ctx, key, object); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", kind, key, err)
	}
	return object, nil
}

func decode(object *unstructured.Unstructured, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, into); err != nil {
		return fmt.Errorf("read %s %s: %w", object.GetKind(), client.ObjectKeyFromObject(object), err)
	}
	return nil
}
