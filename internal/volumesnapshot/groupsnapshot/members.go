package groupsnapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

// listMembers returns the VolumeSnapshots of a group. owner is the UID of the group, or
// "" if the group is gone. Owner references are compared by UID only: their version is
// that of the snapshot controller, which need not be ours.
func listMembers(ctx context.Context, reader client.Reader, ref Ref, owner types.UID) ([]snapshotv1.VolumeSnapshot, error) {
	list := &snapshotv1.VolumeSnapshotList{}
	if err := reader.List(ctx, list, client.InNamespace(ref.Namespace)); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshots of namespace %s: %w", ref.Namespace, err)
	}
	return slices.DeleteFunc(list.Items, func(vs snapshotv1.VolumeSnapshot) bool {
		if isRehomed(&vs) {
			return true
		}
		if statedGroup(&vs) == ref.Name || owner == "" && isAbandoned(&vs) && groupOf(&vs) == ref.Name {
			return false
		}
		return owner == "" || !slices.ContainsFunc(vs.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == owner })
	}), nil
}

// statedGroup returns the group that the snapshot controller has written into the status of a
// VolumeSnapshot, or "".
func statedGroup(vs *snapshotv1.VolumeSnapshot) string {
	if vs.Status != nil && vs.Status.VolumeGroupSnapshotName != nil {
		return *vs.Status.VolumeGroupSnapshotName
	}
	return ""
}

// groupOf returns the name of the VolumeGroupSnapshot that a VolumeSnapshot is or was
// a member of, or "". An owner reference alone is a hint: a tenant can write it.
func groupOf(vs *snapshotv1.VolumeSnapshot) string {
	if stated := statedGroup(vs); stated != "" {
		return stated
	}
	for _, owner := range vs.OwnerReferences {
		if owner.Kind == groupapi.KindGroup && strings.HasPrefix(owner.APIVersion, APIGroup+"/") {
			return owner.Name
		}
	}
	return ""
}

// IsOurMember reports whether a group of ours created a VolumeSnapshot.
func IsOurMember(vs *snapshotv1.VolumeSnapshot) bool { return identity.IsGroupName(groupOf(vs)) }

// isRehomed reports whether a VolumeSnapshot is the one that an operation has made of a member, or that is
// retained. The snapshot controller finds the group by the handle in the content, and writes it into its
// status, too.
func isRehomed(vs *snapshotv1.VolumeSnapshot) bool {
	return vs.Labels[identity.LabelOperation] != "" || vs.Labels[identity.LabelRetained] != ""
}

// isAbandoned reports whether a VolumeSnapshot was deleted before the snapshot controller wrote
// its group into the status. The controller does not do so afterwards. Then only the owner
// reference names the group, which a tenant can write: such a member may be released, and nothing
// may be done to it that its deletion does not do.
func isAbandoned(vs *snapshotv1.VolumeSnapshot) bool {
	return vs.DeletionTimestamp != nil && statedGroup(vs) == ""
}

// memberRefs returns the groups of ours that VolumeSnapshots are members of.
func memberRefs(snapshots []snapshotv1.VolumeSnapshot) []Ref {
	var refs []Ref
	for i := range snapshots {
		vs := &snapshots[i]
		name := statedGroup(vs)
		if isAbandoned(vs) {
			name = groupOf(vs)
		}
		if identity.IsGroupName(name) && !isRehomed(vs) {
			refs = append(refs, Ref{Namespace: vs.Namespace, Name: name, BackupUID: vs.Labels[identity.LabelBackupUID]})
		}
	}
	return refs
}

// labelMember marks a member as the backup's, and excludes it from other backups.
func labelMember(ctx context.Context, c client.Writer, ref Ref, vs *snapshotv1.VolumeSnapshot) error {
	if vs.Labels[identity.LabelBackupUID] == ref.BackupUID {
		return nil
	}
	before := vs.DeepCopy()
	kube.SetLabel(vs, identity.LabelBackupUID, ref.BackupUID)
	kube.SetLabel(vs, velerov1.ExcludeFromBackupLabel, "true")
	if err := c.Patch(ctx, vs, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("label VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return nil
}
