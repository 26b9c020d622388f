package controller

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	backupplugin "github.com/blockmover/blockmover/plugins/backup"
)

var clientInVelero = client.InNamespace(veleroNamespace)

const (
	finalizerGroup        = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-bound-protection"
	finalizerGroupContent = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection"
	groupBeingDeleted     = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"
)

func groupKind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: groupsnapshot.APIGroup, Version: "v1", Kind: kind}
}

// serveGroups lets the cluster and its storage have group snapshots. The storage deletes a group as
// a whole only.
func (h *hopWorld) serveGroups() {
	h.t.Helper()
	for _, kind := range []string{"VolumeGroupSnapshot", "VolumeGroupSnapshotContent", "VolumeGroupSnapshotClass"} {
		h.mapper.Add(groupKind(kind), meta.RESTScopeNamespace)
	}
	class := &unstructured.Unstructured{Object: map[string]any{"driver": driver, "deletionPolicy": "Delete"}}
	class.SetGroupVersionKind(groupKind("VolumeGroupSnapshotClass"))
	class.SetName("group-class")
	require.NoError(h.t, h.c.Create(h.ctx, class))
	h.also = h.stepGroups
}

func (h *hopWorld) groupObjects(kind string) []unstructured.Unstructured {
	h.t.Helper()
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(groupKind(kind + "List"))
	require.NoError(h.t, h.c.List(h.ctx, list))
	return list.Items
}

func (h *hopWorld) put(object *unstructured.Unstructured) {
	h.t.Helper()
	require.NoError(h.t, client.IgnoreNotFound(h.c.Update(h.ctx, object)))
}

// stepGroups acts as the snapshot controller and the sidecar.
func (h *hopWorld) stepGroups() {
	h.t.Helper()
	for _, vgs := range h.groupObjects("VolumeGroupSnapshot") {
		content := "groupsnapcontent-" + string(vgs.GetUID())
		switch {
		case vgs.GetDeletionTimestamp() != nil:
			h.deleteGroup(&vgs, content)
		case controllerutil.AddFinalizer(&vgs, finalizerGroup):
			h.put(&vgs)
			h.cut(&vgs, content)
		}
	}
	for _, content := range h.groupObjects("VolumeGroupSnapshotContent") {
		annotated := content.GetAnnotations()[groupBeingDeleted] != ""
		if content.GetDeletionTimestamp() == nil || !annotated {
			continue
		}
		policy, _, _ := unstructured.NestedString(content.Object, "spec", "deletionPolicy")
		handle, _, _ := unstructured.NestedString(content.Object, "status", "volumeGroupSnapshotHandle")
		if policy == "Delete" && handle != "" {
			maps.DeleteFunc(h.snapshots, func(snapshot string, _ bool) bool { return h.groups[snapshot] == handle })
		}
		controllerutil.RemoveFinalizer(&content, finalizerGroupContent)
		h.put(&content)
	}
	h.requireWholeGroups()
}

// requireWholeGroups checks that no member was deleted alone.
func (h *hopWorld) requireWholeGroups() {
	h.t.Helper()
	there := map[string]int{}
	for snapshot, group := range h.groups {
		if h.snapshots[snapshot] {
			there[group]++
		}
	}
	for group, n := range there {
		require.Equal(h.t, 2, n, "a member of %s was deleted alone", group)
	}
}

// groupWith finds the VolumeGroupSnapshot by its content, as the snapshot controller does.
func (h *hopWorld) groupWith(handle string) string {
	for _, content := range h.groupObjects("VolumeGroupSnapshotContent") {
		if found, _, _ := unstructured.NestedString(content.Object, "status", "volumeGroupSnapshotHandle"); found == handle {
			name, _, err := unstructured.NestedString(content.Object, "spec", "volumeGroupSnapshotRef", "name")
			require.NoError(h.t, err)
			return name
		}
	}
	return ""
}

// cut takes the group: content, and content and VolumeSnapshot of each member.
func (h *hopWorld) cut(vgs *unstructured.Unstructured, name string) {
	selector, _, err := unstructured.NestedStringMap(vgs.Object, "spec", "source", "selector", "matchLabels")
	require.NoError(h.t, err)
	h.taken++
	group := fmt.Sprintf("group-%d", h.taken)
	var infos []any
	for _, claim := range list[corev1.PersistentVolumeClaimList](h.world, client.InNamespace(vgs.GetNamespace()), client.MatchingLabels(selector)).Items {
		volume, snapshot := h.handleOf(claim.Namespace, claim.Name), group+"-"+claim.Name
		h.snapshots[snapshot], h.groups[snapshot], h.data[snapshot] = true, group, slices.Clone(h.data[volume])
		infos = append(infos, map[string]any{"volumeHandle": volume, "snapshotHandle": snapshot})
		vs := &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: claim.Namespace, Name: "snapshot-" + group + "-" + claim.Name, UID: types.UID("uid-of-" + snapshot), Finalizers: []string{finalizerVS, finalizerInGroup},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: groupKind("").GroupVersion().String(), Kind: "VolumeGroupSnapshot", Name: vgs.GetName(), UID: vgs.GetUID()}},
			},
			Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim.Name}},
		}
		content, ready, name := h.putContent(vs, "snapcontent-"+snapshot, volume, snapshot, group), true, vgs.GetName()
		vs.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, ReadyToUse: &ready, VolumeGroupSnapshotName: &name}
		require.NoError(h.t, h.c.Create(h.ctx, vs))
	}
	require.Len(h.t, infos, 2, "all members are stamped before the group is cut")
	content := &unstructured.Unstructured{Object: map[string]any{
		"spec": map[string]any{
			"driver": driver, "deletionPolicy": "Delete", "volumeGroupSnapshotClassName": "group-class", "source": map[string]any{},
			"volumeGroupSnapshotRef": map[string]any{"namespace": vgs.GetNamespace(), "name": vgs.GetName(), "uid": string(vgs.GetUID())},
		},
		"status": map[string]any{"volumeGroupSnapshotHandle": group, "volumeSnapshotInfoList": infos},
	}}
	content.SetGroupVersionKind(groupKind("VolumeGroupSnapshotContent"))
	content.SetName(name)
	content.SetFinalizers([]string{finalizerGroupContent})
	require.NoError(h.t, h.c.Create(h.ctx, content))
}

// deleteGroup lets go of a group, and deletes its members as the garbage collector does. They wait
// for their finalizer.
func (h *hopWorld) deleteGroup(vgs *unstructured.Unstructured, name string) {
	for _, content := range h.groupObjects("VolumeGroupSnapshotContent") {
		if content.GetName() != name {
			continue
		}
		annotations := content.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[groupBeingDeleted] = "yes"
		content.SetAnnotations(annotations)
		h.put(&content)
		if policy, _, _ := unstructured.NestedString(content.Object, "spec", "deletionPolicy"); policy == "Delete" && content.GetDeletionTimestamp() == nil {
			require.NoError(h.t, h.c.Delete(h.ctx, &content))
		}
	}
	for _, vs := range list[snapshotv1.VolumeSnapshotList](h.world, client.InNamespace(vgs.GetNamespace())).Items {
		if len(vs.OwnerReferences) > 0 && vs.OwnerReferences[0].UID == vgs.GetUID() && vs.DeletionTimestamp == nil {
			require.NoError(h.t, h.c.Delete(h.ctx, &vs))
		}
	}
	controllerutil.RemoveFinalizer(vgs, finalizerGroup)
	h.put(vgs)
}

// finalize passes the groups of a Backup to the plugin, as Velero does when all operations have
// ended.
func (h *hopWorld) finalize(b *velerov1.Backup) {
	h.t.Helper()
	h.setPhase(b, velerov1.BackupPhaseFinalizing)
	name := identity.GroupName(string(b.UID), appNamespace, "db", driver)
	if h.inGroup(b) {
		item := &unstructured.Unstructured{}
		item.SetGroupVersionKind(groupKind("VolumeGroupSnapshot"))
		item.SetNamespace(appNamespace)
		item.SetName(name)
		item.SetLabels(map[string]string{identity.LabelBackupUID: string(b.UID)})
		h.again(finalizer, func() {
			_, _, _, _, err := backupplugin.NewGroupSnapshotAction(quiet(), h.asPlugin).Execute(item, b)
			require.NoError(h.t, err)
		})
	}
	phase := velerov1.BackupPhaseCompleted
	if h.dead {
		phase = velerov1.BackupPhaseFailed // Velero says so when it starts again
	}
	h.setPhase(b, phase)
}

// inGroup reports whether a Backup took a group snapshot.
func (h *hopWorld) inGroup(b *velerov1.Backup) bool {
	for _, claim := range list[corev1.PersistentVolumeClaimList](h.world, client.InNamespace(appNamespace)).Items {
		if claim.Labels[b.Spec.VolumeGroupSnapshotLabelKey] != "" {
			return true
		}
	}
	return false
}

func wayOfAGroup() way {
	labels := map[string]string{"app": "db", "group": "db"}
	return way{
		hopsOf: hopsOfABackup,
		world: func(t *testing.T) *hopWorld {
			h := appWorld(t, labels, "a", "b")
			h.serveGroups()
			h.wholeBackup("first", "a", "b")
			h.write("volume-of-a")
			h.write("volume-of-b")
			return h
		},
		run: func(h *hopWorld) { h.wholeBackup("second", "a", "b") },
		check: func(h *hopWorld) {
			h.requireIncrements(labels, "a", "b")
			for _, du := range []string{"a", "b"} {
				b := get[velerov1.Backup](h.world, veleroNamespace, "second")
				require.NotEmpty(h.t, h.uploadOf(b, du).Spec.DataMoverConfig[identity.ConfigGroup])
			}
			require.Empty(h.t, h.groupObjects("VolumeGroupSnapshot"))
			contents := h.groupObjects("VolumeGroupSnapshotContent")
			require.Len(h.t, contents, 1, "the group of the retained snapshots")
			policy, _, _ := unstructured.NestedString(contents[0].Object, "spec", "deletionPolicy")
			require.Equal(h.t, "Retain", policy)
		},
	}
}
