package groupsnapshot

import (
	"context"
	"errors"
	"slices"
	"strings"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// VolumeGroupSnapshot is the object of a group.
type VolumeGroupSnapshot struct {
	*groupsnapshotv1.VolumeGroupSnapshot
	object *unstructured.Unstructured
}

// Has reports whether a PVC is a member.
func (v *VolumeGroupSnapshot) Has(pvc string) bool {
	return slices.Contains(strings.Split(v.Annotations[identity.AnnotationMembers], ","), pvc)
}

func readGroup(object *unstructured.Unstructured) (*VolumeGroupSnapshot, error) {
	vgs, err := decode(object, &groupsnapshotv1.VolumeGroupSnapshot{})
	return &VolumeGroupSnapshot{vgs, object}, err
}

// groupContent is the VolumeGroupSnapshotContent of a group.
type groupContent struct {
	*groupsnapshotv1.VolumeGroupSnapshotContent
	object *unstructured.Unstructured
}

func readContent(object *unstructured.Unstructured) (*groupContent, error) {
	content, err := decode(object, &groupsnapshotv1.VolumeGroupSnapshotContent{})
	return &groupContent{content, object}, err
}

// ref is the group that the content belongs to.
func (c *groupContent) ref() Ref {
	of := c.Spec.VolumeGroupSnapshotRef
	return Ref{Namespace: of.Namespace, Name: of.Name, BackupUID: c.Labels[identity.LabelBackupUID]}
}

// handles are those of the storage snapshots of all members. known is false if the
// storage has cut the group and the content does not tell the handles.
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

// contentOf returns the content of a group, or nil if it has none.
func (o objects) contentOf(ctx context.Context, vgs *VolumeGroupSnapshot) (*groupContent, error) {
	// The snapshot controller uses this name before it writes it into the status.
	name := "groupsnapcontent-" + string(vgs.UID)
	if vgs.Status != nil && vgs.Status.BoundVolumeGroupSnapshotContentName != nil {
		name = *vgs.Status.BoundVolumeGroupSnapshotContentName
	}
	object, err := o.find(ctx, kindContent, client.ObjectKey{Name: name})
	if err != nil || object == nil {
		return nil, err
	}
	return readContent(object)
}

// ourContents returns the contents of groups of ours.
func (o objects) ourContents(ctx context.Context) ([]*groupContent, error) {
	found, err := o.listOurs(ctx, kindContent)
	if err != nil {
		return nil, err
	}
	contents := make([]*groupContent, len(found))
	errs := make([]error, len(found))
	for i := range found {
		contents[i], errs[i] = readContent(&found[i])
	}
	return contents, errors.Join(errs...)
}

// orphanOf returns the content of a group that is gone, or nil.
func (o objects) orphanOf(ctx context.Context, ref Ref) (*groupContent, error) {
	contents, err := o.ourContents(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(contents, func(c *groupContent) bool { return c.ref().key() == ref.key() })
	if i < 0 {
		return nil, nil
	}
	return contents[i], nil
}
