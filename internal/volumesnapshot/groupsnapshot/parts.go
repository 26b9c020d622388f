package groupsnapshot

import (
	"context"
	"slices"
	"strings"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
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
	vgs, err := groupapi.Decode(object, &groupsnapshotv1.VolumeGroupSnapshot{})
	return &VolumeGroupSnapshot{vgs, object}, err
}

// refOf is the group that a content belongs to.
func refOf(c *groupapi.Content) Ref {
	key := c.Group()
	return Ref{Namespace: key.Namespace, Name: key.Name, BackupUID: c.Labels[identity.LabelBackupUID]}
}

// contentOf returns the content of a group, or nil if it has none.
func contentOf(ctx context.Context, o groupapi.Objects, vgs *VolumeGroupSnapshot) (*groupapi.Content, error) {
	// The snapshot controller uses this name before it writes it into the status.
	name := "groupsnapcontent-" + string(vgs.UID)
	if vgs.Status != nil && vgs.Status.BoundVolumeGroupSnapshotContentName != nil {
		name = *vgs.Status.BoundVolumeGroupSnapshotContentName
	}
	return o.FindContent(ctx, name)
}

// orphanOf returns the content of a group that is gone, or nil.
func orphanOf(ctx context.Context, o groupapi.Objects, ref Ref) (*groupapi.Content, error) {
	contents, err := o.OurContents(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(contents, func(c *groupapi.Content) bool { return c.Group() == ref.key() })
	if i < 0 {
		return nil, nil
	}
	return contents[i], nil
}
