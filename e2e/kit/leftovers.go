package kit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// labelRetained and labelBackup are labels of VolumeSnapshots that Blockmover retains for a
// backup, and of their contents.
const (
	labelRetained = "blockmover.io/retained"
	labelBackup   = "blockmover.io/backup"
)

// Leftovers lists objects of operations that no backup and no application needs: mover pods,
// PVCs and volumes of Velero's namespace, unbound volumes, and VolumeSnapshots and groups with
// their contents, except those that are retained for a backup that exists.
func (k *Kit) Leftovers(ctx context.Context) ([]string, error) {
	var found []string
	note := func(items []Object, keep func(Object) bool) {
		for _, o := range items {
			if !keep(o) {
				found = append(found, o.String())
			}
		}
	}
	nothing := func(Object) bool { return false }
	backups, err := k.List(ctx, "-n", k.VeleroNamespace, "backups.velero.io")
	if err != nil {
		return nil, err
	}
	retained := func(o Object) bool {
		return o.Metadata.Labels[labelRetained] != "" && o.Metadata.DeletionTimestamp == nil &&
			slices.ContainsFunc(backups, func(b Object) bool { return b.Metadata.Name == o.Metadata.Labels[labelBackup] })
	}
	// What names an image of a failed backup goes with it.
	ofFailed := func(o Object) bool {
		return slices.ContainsFunc(backups, func(b Object) bool {
			return b.Metadata.Name == o.Metadata.Labels[LabelBackup] && b.Status.Phase == "Failed"
		})
	}
	pairs, err := k.List(ctx, "volumesnapshotcontents")
	if err != nil {
		return nil, err
	}
	// The content of a group stays while one of its members is retained.
	withMember := func(group Object) bool {
		return group.Metadata.DeletionTimestamp == nil && slices.ContainsFunc(pairs, func(pair Object) bool {
			return retained(pair) && strings.Contains(pair.Metadata.Annotations["blockmover.io/group-snapshot"], `"content":"`+group.Metadata.Name+`"`)
		})
	}
	for _, query := range []struct {
		args []string
		keep func(Object) bool
	}{
		{[]string{"volumesnapshots", "-A"}, retained},
		{[]string{"volumesnapshotcontents"}, retained},
		{[]string{"volumegroupsnapshots", "-A"}, nothing},
		{[]string{"virtualmachinebackups.backup.kubevirt.io", "-A"}, nothing},
		{[]string{"persistentvolumeclaims", "-A", "-l", "blockmover.io/vm-backup"}, nothing},
		{[]string{"volumegroupsnapshotcontents"}, withMember},
		{[]string{"persistentvolumeclaims", "-n", k.VeleroNamespace}, nothing},
		{[]string{"pods", "-n", k.VeleroNamespace, "-l", "blockmover.io/operation"}, nothing},
		{[]string{"configmaps", "-n", k.VeleroNamespace, "-l", "velero.io/dataupload-snapshot-info=true"}, ofFailed},
		{[]string{"podvolumebackups.velero.io", "-n", k.VeleroNamespace}, ofFailed},
		{[]string{"secrets,configmaps", "-n", k.VeleroNamespace, "-l", "blockmover.io/copy"}, nothing},
		{[]string{"persistentvolumes"}, func(o Object) bool {
			return o.Status.Phase == "Bound" && o.Spec.ClaimRef.Namespace != k.VeleroNamespace
		}},
	} {
		items, err := k.List(ctx, query.args...)
		if err != nil {
			return nil, err
		}
		note(items, query.keep)
	}
	return found, nil
}

// WaitNoLeftovers waits until Leftovers finds nothing.
func (k *Kit) WaitNoLeftovers(ctx context.Context) error {
	return k.Wait(ctx, "nothing left behind", 90*time.Second, func(ctx context.Context) (bool, string, error) {
		found, err := k.Leftovers(ctx)
		return len(found) == 0, strings.Join(found, ", "), err
	})
}

// restoredInPlace is the label of the disk of a VM that was restored in place. It stays.
const restoredInPlace = "blockmover.io/restored-in-place"

// CheckStamps returns an error if a PVC of a namespace still has a label or annotation of
// Blockmover. disks are those of VMs that were restored in place.
func (k *Kit) CheckStamps(ctx context.Context, namespace string, disks ...string) error {
	items, err := k.List(ctx, "-n", namespace, "persistentvolumeclaims")
	if err != nil {
		return err
	}
	for _, o := range items {
		for _, m := range []map[string]string{o.Metadata.Labels, o.Metadata.Annotations} {
			for key := range m {
				if key == restoredInPlace && slices.Contains(disks, o.Metadata.Name) {
					continue
				}
				if strings.HasPrefix(key, "blockmover.io/") {
					return fmt.Errorf("%s still carries %s", o, key)
				}
			}
		}
	}
	return nil
}
