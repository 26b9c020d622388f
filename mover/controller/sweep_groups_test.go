package controller

import (
	"fmt"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
)

// groupOf returns what a backup that died leaves of a group: one stamped PVC, the group with
// its content, and one member.
func groupOf(t *testing.T, w *world, backupUID string) (name string) {
	t.Helper()
	kind := func(kind string) schema.GroupVersionKind {
		return schema.GroupVersionKind{Group: groupsnapshot.APIGroup, Version: "v1beta1", Kind: kind}
	}
	for _, k := range []string{"VolumeGroupSnapshot", "VolumeGroupSnapshotContent"} {
		w.mapper.Add(kind(k), meta.RESTScopeNamespace)
	}
	name = identity.GroupName(backupUID, appNamespace, "db", driver)
	object := func(k, namespace, name string, fields map[string]any) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: fields}
		u.SetGroupVersionKind(kind(k))
		u.SetNamespace(namespace)
		u.SetName(name)
		return u
	}
	vgs := object("VolumeGroupSnapshot", appNamespace, name, map[string]any{})
	vgs.SetLabels(map[string]string{identity.LabelBackupUID: backupUID})
	vgs.SetUID(types.UID("uid-of-" + name))
	require.NoError(t, w.c.Create(w.ctx, vgs))
	handle, groupHandle := "snapshot-of-"+name, "group-of-"+name
	require.NoError(t, w.c.Create(w.ctx, object("VolumeGroupSnapshotContent", "", "groupsnapcontent-uid-of-"+name, map[string]any{
		"spec": map[string]any{"driver": driver, "volumeGroupSnapshotRef": map[string]any{"namespace": appNamespace, "name": name}},
		"status": map[string]any{
			"volumeGroupSnapshotHandle":    groupHandle,
			"volumeSnapshotHandlePairList": []any{map[string]any{"volumeHandle": "volume-src", "snapshotHandle": handle}},
		},
	})))
	require.NoError(t, w.c.Create(w.ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{
		Namespace: appNamespace, Name: name,
		Labels: map[string]string{"keep": "me", identity.LabelGrouped: "true", identity.GroupStamp(name): backupUID},
	}}))
	w.snapshots[handle] = true
	volume := "volume-src"
	require.NoError(t, w.c.Create(w.ctx, &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{
			Name: "content-of-" + name, Finalizers: []string{finalizerContent},
			Annotations: map[string]string{"groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle": groupHandle},
		},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volume},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: appNamespace, Name: name, UID: types.UID("uid-of-member-" + name)},
		},
		Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, VolumeGroupSnapshotHandle: &groupHandle},
	}))
	content := "content-of-" + name
	require.NoError(t, w.c.Create(w.ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: appNamespace, Name: name, UID: types.UID("uid-of-member-" + name),
			Labels:     map[string]string{identity.LabelBackupUID: backupUID},
			Finalizers: []string{finalizerVS, "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"},
		},
		Status: &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, VolumeGroupSnapshotName: &name},
	}))
	return name
}

// TestSweepGroups: the group of a running backup stays. The group of a backup that has ended
// or is gone is deleted, whichever call fails, even if the CRDs of groups were removed from
// the cluster.
func TestSweepGroups(t *testing.T) {
	for _, phase := range []velerov1.BackupPhase{velerov1.BackupPhaseInProgress, velerov1.BackupPhaseFinalizing} {
		w := newWorld(t, &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "b", UID: "b-uid"}, Status: velerov1.BackupStatus{Phase: phase}})
		name := groupOf(t, w, "b-uid")
		w.sweepUp()
		require.Len(t, list[snapshotv1.VolumeSnapshotList](w).Items, 1)
		require.Contains(t, get[corev1.PersistentVolumeClaim](w, appNamespace, name).Labels, identity.LabelGrouped)
	}
	for _, after := range []bool{false, true} {
		for failAt := 1; ; failAt++ {
			w := newWorld(t, &velerov1.Backup{
				ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "b", UID: "b-uid"},
				Status:     velerov1.BackupStatus{Phase: velerov1.BackupPhaseFailed},
			})
			names := []string{groupOf(t, w, "b-uid"), groupOf(t, w, "deleted-uid")}
			w.faults.failAt, w.faults.after = failAt, after
			w.sweepUp()
			for _, name := range names {
				require.Equal(t, map[string]string{"keep": "me"}, get[corev1.PersistentVolumeClaim](w, appNamespace, name).Labels)
			}
			require.Empty(t, list[snapshotv1.VolumeSnapshotList](w).Items)
			require.Empty(t, list[snapshotv1.VolumeSnapshotContentList](w).Items)
			fired := w.faults.fired
			w.faults.failAt = 0
			left, err := w.sweep.groups.Find(w.ctx, list[snapshotv1.VolumeSnapshotList](w).Items)
			require.NoError(t, err)
			require.Empty(t, left)
			if !fired {
				require.Greater(t, failAt, 20)
				require.GreaterOrEqual(t, testutil.ToFloat64(w.sweep.metrics.swept.WithLabelValues(sweptGroup)), 2.0)
				w.sweepUp()
				require.Zero(t, testutil.ToFloat64(w.sweep.metrics.groups))
				break
			}
		}
	}
}

// TestSweepAbandonedMember: a member is deleted before the snapshot controller has written its
// group into the status, and then the group is gone. Only the owner reference names the group, and
// a tenant can write that: what the tenant has not deleted stays, and so does what the policy
// retains.
func TestSweepAbandonedMember(t *testing.T) {
	for name, tc := range map[string]struct {
		deleted             bool
		policy              snapshotv1.DeletionPolicy
		owner               string
		snapshots, contents int
	}{
		"abandoned":           {true, snapshotv1.VolumeSnapshotContentDelete, "", 0, 0},
		"not deleted":         {false, snapshotv1.VolumeSnapshotContentDelete, "", 1, 1},
		"retained":            {true, snapshotv1.VolumeSnapshotContentRetain, "", 0, 1},
		"of a tenant's group": {true, snapshotv1.VolumeSnapshotContentDelete, "nightly", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			group := groupOf(t, w, "deleted-uid")
			for kind, name := range map[string]string{"VolumeGroupSnapshot": group, "VolumeGroupSnapshotContent": "groupsnapcontent-uid-of-" + group} {
				gone := &unstructured.Unstructured{}
				gone.SetAPIVersion(groupsnapshot.APIGroup + "/v1beta1")
				gone.SetKind(kind)
				gone.SetName(name)
				if kind == "VolumeGroupSnapshot" {
					gone.SetNamespace(appNamespace)
				}
				require.NoError(t, w.c.Delete(w.ctx, gone))
			}
			owner := tc.owner
			if owner == "" {
				owner = group
			}
			member := get[snapshotv1.VolumeSnapshot](w, appNamespace, group)
			member.Finalizers = []string{"snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"}
			member.OwnerReferences = []metav1.OwnerReference{{
				APIVersion: groupsnapshot.APIGroup + "/v1beta2", Kind: "VolumeGroupSnapshot", Name: owner, UID: "uid-of-the-group",
			}}
			member.Status.VolumeGroupSnapshotName = nil
			require.NoError(t, w.c.Update(w.ctx, member))
			content := get[snapshotv1.VolumeSnapshotContent](w, "", "content-of-"+group)
			content.Spec.DeletionPolicy = tc.policy
			require.NoError(t, w.c.Update(w.ctx, content))
			if tc.deleted {
				require.NoError(t, w.c.Delete(w.ctx, member))
			}
			w.sweepUp()
			require.Len(t, list[snapshotv1.VolumeSnapshotList](w).Items, tc.snapshots)
			left := list[snapshotv1.VolumeSnapshotContentList](w).Items
			require.Len(t, left, tc.contents)
			for _, c := range left {
				require.Equal(t, tc.policy, c.Spec.DeletionPolicy)
			}
		})
	}
}

// TestSweepGroupsWithoutTheirKinds: somebody has deleted the CRDs.
func TestSweepGroupsWithoutTheirKinds(t *testing.T) {
	w := newWorld(t)
	name := groupOf(t, w, "deleted-uid")
	w.sweep.groups = groupsnapshot.New(clientWithoutKinds{w.narrow}, w.faulty)
	w.sweepUp()
	require.Empty(t, list[snapshotv1.VolumeSnapshotList](w).Items)
	require.Empty(t, list[snapshotv1.VolumeSnapshotContentList](w).Items)
	require.Empty(t, w.snapshots, fmt.Sprint(w.snapshots))
	require.Positive(t, testutil.ToFloat64(w.sweep.metrics.swept.WithLabelValues(sweptGroup)))
	require.Equal(t, map[string]string{"keep": "me"}, get[corev1.PersistentVolumeClaim](w, appNamespace, name).Labels)
}

// clientWithoutKinds is a client of a cluster without the kinds of groups.
type clientWithoutKinds struct{ client.Client }

// RESTMapper implements client.Client.
func (clientWithoutKinds) RESTMapper() meta.RESTMapper { return meta.NewDefaultRESTMapper(nil) }

// TestSweepLostGroupAtOnce: somebody has deleted the content of a group, and then the storage
// snapshots of its members are needless. The sweep that releases them deletes the group, too: its
// content has been made again for that, and nothing else tells of the group any more.
func TestSweepLostGroupAtOnce(t *testing.T) {
	h := appWorld(t, map[string]string{"group": "db"}, "a", "b")
	h.serveGroups()
	h.wholeBackup("first", "a", "b")
	for _, content := range h.groupObjects("VolumeGroupSnapshotContent") {
		content.SetFinalizers(nil)
		h.put(&content)
		require.NoError(t, h.c.Delete(h.ctx, &content))
	}
	require.Empty(t, h.groupObjects("VolumeGroupSnapshotContent"))
	require.NoError(t, h.c.Delete(h.ctx, get[velerov1.Backup](h.world, veleroNamespace, "first")))
	_, err := h.sweep.sweep(h.ctx) // misses the backup
	require.NoError(t, err)
	require.Len(t, list[snapshotv1.VolumeSnapshotContentList](h.world).Items, 2)

	h.clock = h.clock.Add(goneGrace)
	_, err = h.sweep.sweep(h.ctx)
	require.NoError(t, err)
	contents := h.groupObjects("VolumeGroupSnapshotContent")
	require.Len(t, contents, 1)
	policy, _, err := unstructured.NestedString(contents[0].Object, "spec", "deletionPolicy")
	require.NoError(t, err)
	require.Equal(t, "Delete", policy)
	require.NotNil(t, contents[0].GetDeletionTimestamp())
	h.step()
	require.Empty(t, h.snapshots)
}
