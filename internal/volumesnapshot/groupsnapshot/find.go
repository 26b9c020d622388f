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
// VolumeSnapshots. records are those of retained members. A group that only they tell of
// has lost its content, and gets it again when such a member is released.
//
// A member that no action has waited for does not say which backup it is of. What else is
// left of its group does. If nothing is, the member is of no backup that still runs, and
// the backup is "".
func (g Groups) Find(ctx context.Context, snapshots []snapshotv1.VolumeSnapshot, records ...string) ([]Group, error) {
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
	refs := slices.Concat(stamped, memberRefs(snapshots), withObjects, recordedRefs(records))
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(strings.Compare(a.String(), b.String()), strings.Compare(a.BackupUID, b.BackupUID))
	})
	refs = slices.Compact(refs)
	for i := len(refs) - 1; i > 0; i-- { // "" comes first
		if refs[i-1].BackupUID == "" && refs[i-1].key() == refs[i].key() {
			refs = slices.Delete(refs, i-1, i)
		}
	}
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

// recordedRefs returns the groups of ours that records tell of. Who releases a member with a
// record that cannot be read gets an error.
func recordedRefs(records []string) []Ref {
	var refs []Ref
	for _, text := range records {
		if r, err := groupapi.ParseRecord(text); err == nil && identity.IsGroupName(r.Name) {
			refs = append(refs, Ref{Namespace: r.Namespace, Name: r.Name, BackupUID: r.BackupUID})
		}
	}
	return refs
}
