package groupsnapshot

import (
	"cmp"
	"context"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

// Find returns the groups of ours of which anything is left, in order of their names:
// stamps, VolumeGroupSnapshot, content, or members, which are among the given
// VolumeSnapshots of backups.
func (g Groups) Find(ctx context.Context, snapshots []snapshotv1.VolumeSnapshot) ([]Group, error) {
	served, err := groupapi.Discover(g.client.RESTMapper(), g.reader)
	if err != nil {
		return nil, err
	}
	stamped, err := stampedRefs(ctx, g.reader)
	if err != nil {
		return nil, err
	}
	withObjects, err := refs(ctx, served)
	if err != nil {
		return nil, err
	}
	refs := slices.Concat(stamped, memberRefs(snapshots), withObjects)
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(strings.Compare(a.String(), b.String()), strings.Compare(a.BackupUID, b.BackupUID))
	})
	refs = slices.Compact(refs)
	groups := make([]Group, len(refs))
	for i, ref := range refs {
		groups[i] = g.handle(served, ref)
	}
	return groups, nil
}

// refs returns the groups that have a VolumeGroupSnapshot or a content.
func refs(ctx context.Context, o groupapi.Objects) ([]Ref, error) {
	found, err := o.ListOurs(ctx, groupapi.KindGroup)
	if err != nil {
		return nil, err
	}
	var refs []Ref
	for _, vgs := range found {
		if !identity.IsGroupName(vgs.GetName()) {
			continue // a tenant can give our label to any VolumeGroupSnapshot
		}
		refs = append(refs, Ref{Namespace: vgs.GetNamespace(), Name: vgs.GetName(), BackupUID: vgs.GetLabels()[identity.LabelBackupUID]})
	}
	contents, err := o.OurContents(ctx)
	for _, c := range contents {
		refs = append(refs, refOf(c))
	}
	return refs, err
}
