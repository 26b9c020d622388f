package groupsnapshot

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// stamp labels the members. All of them are labelled before any snapshot is taken.
func stamp(ctx context.Context, c client.Writer, ref Ref, members []string) error {
	for _, name := range members {
		pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: name}}
		before := pvc.DeepCopy()
		pvc.Labels = map[string]string{identity.GroupStamp(ref.Name): ref.BackupUID, identity.LabelGrouped: "true"}
		if err := c.Patch(ctx, pvc, client.MergeFrom(before)); err != nil {
			return fmt.Errorf("stamp PVC %s/%s as member of VolumeGroupSnapshot %s: %w", ref.Namespace, name, ref.Name, err)
		}
	}
	return nil
}

// unstamp removes the stamps of a group from the PVCs.
func unstamp(ctx context.Context, c client.Writer, reader client.Reader, ref Ref) error {
	stamped := newClaimList()
	if err := reader.List(ctx, stamped, client.InNamespace(ref.Namespace), client.HasLabels{identity.GroupStamp(ref.Name)}); err != nil {
		return fmt.Errorf("list PVCs of VolumeGroupSnapshot %s: %w", ref, err)
	}
	for i := range stamped.Items {
		pvc := &stamped.Items[i]
		before := pvc.DeepCopy()
		removeStamps(pvc.Labels, func(group string) bool { return group == ref.Name })
		// LabelGrouped goes with the last stamp. If two backups unstamp a PVC at once, the
		// lock makes the second one look again.
		err := c.Patch(ctx, pvc, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove stamp of VolumeGroupSnapshot %s from PVC %s: %w", ref, client.ObjectKeyFromObject(pvc), err)
		}
	}
	return nil
}

// RemoveStamps removes the stamps of all groups from the labels of a PVC.
func RemoveStamps(labels map[string]string) {
	removeStamps(labels, func(string) bool { return true })
}

func removeStamps(labels map[string]string, of func(group string) bool) {
	maps.DeleteFunc(labels, func(key, _ string) bool {
		group := identity.StampedGroup(key)
		return group != "" && of(group)
	})
	for key := range labels {
		if identity.StampedGroup(key) != "" {
			return
		}
	}
	delete(labels, identity.LabelGrouped)
}

// stampedRefs returns the groups that PVCs carry stamps of.
func stampedRefs(ctx context.Context, reader client.Reader) ([]Ref, error) {
	stamped := newClaimList()
	if err := reader.List(ctx, stamped, client.HasLabels{identity.LabelGrouped}); err != nil {
		return nil, fmt.Errorf("list stamped PVCs: %w", err)
	}
	var refs []Ref
	for _, pvc := range stamped.Items {
		for key, backupUID := range pvc.Labels {
			if name := identity.StampedGroup(key); name != "" {
				refs = append(refs, Ref{Namespace: pvc.Namespace, Name: name, BackupUID: backupUID})
			}
		}
	}
	return refs, nil
}

// newClaimList lists the metadata of PVCs.
func newClaimList() *metav1.PartialObjectMetadataList {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Version: corev1.SchemeGroupVersion.Version, Kind: "PersistentVolumeClaimList"})
	return list
}
