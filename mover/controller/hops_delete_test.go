package controller

import (
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
	deleteplugin "github.com/blockmover/blockmover/plugins/delete"
)

// hopsOfADeletion names the hops of a call of a deletion.
func hopsOfADeletion(c call) (hops []string) {
	add := func(is bool, hop string) {
		if is {
			hops = append(hops, hop)
		}
	}
	isPair := (c.kind == "VolumeSnapshot" && c.namespace == veleroNamespace) || (c.kind == "VolumeSnapshotContent" && strings.HasPrefix(c.name, "blockmover-"))
	switch {
	case c.by == sweeping:
		add(true, "manager: sweep")
	case c.by == plugin && isPair:
		marks := c.verb == "patch" && c.sets(identity.AnnotationBackupGone)
		add(marks, "or plugin: mark the pair")
		add(c.verb == "create", "plugin: make the pair again")
		add(c.verb != "create" && !marks, "plugin: release the pair")
	case c.by == plugin:
		add(c.is("DataUpload", "patch") && c.touches(identity.AnnotationRetained), "plugin: release the pair")
		add(c.is("DataUpload", "patch") && c.sets("cancel"), "plugin: cancel the upload")
		add(c.is("PodVolumeBackup", "create", "update") || c.is("ConfigMap", "create", "update"), "plugin: name the repo snapshot")
		add(c.is("VolumeSnapshot", "delete") || c.is("VolumeSnapshotContent", "patch"), "plugin: VolumeSnapshot")
	}
	return hops
}

// deleteBackup deletes the first Backup as Velero does.
func (h *hopWorld) deleteBackup() {
	h.t.Helper()
	b := get[velerov1.Backup](h.world, veleroNamespace, "first")
	uploads := list[velerov2alpha1.DataUploadList](h.world, client.MatchingLabels{velerov1.BackupUIDLabel: string(b.UID)}).Items
	for _, du := range uploads {
		h.again(plugin, func() {
			require.NoError(h.t, deleteplugin.NewDataUploadAction(quiet(), h.asPlugin).Execute(&velero.DeleteItemActionExecuteInput{
				Item: h.itemOf("DataUpload", &du), Backup: b,
			}))
		})
	}
	for _, note := range list[velerov1.PodVolumeBackupList](h.world).Items {
		require.NoError(h.t, h.store.Delete(h.ctx, repository.SnapshotID(note.Status.SnapshotID)))
		require.NoError(h.t, h.c.Delete(h.ctx, &note))
	}
	for _, du := range uploads {
		require.NoError(h.t, h.c.Delete(h.ctx, &du))
	}
	require.NoError(h.t, h.c.Delete(h.ctx, b))
	if len(list[velerov2alpha1.DataUploadList](h.world).Items) == 0 {
		h.settle()
	}
}

// deletePair deletes the retained pairs as somebody may who does not know what it is for. The storage
// snapshot stays.
func (h *hopWorld) deletePair() {
	h.t.Helper()
	for _, content := range list[snapshotv1.VolumeSnapshotContentList](h.world).Items {
		content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
		h.update(&content)
		require.NoError(h.t, h.c.Delete(h.ctx, get[snapshotv1.VolumeSnapshot](h.world, veleroNamespace, content.Name)))
		require.NoError(h.t, h.c.Delete(h.ctx, &content))
	}
	for range 4 {
		h.step()
	}
	require.Empty(h.t, list[snapshotv1.VolumeSnapshotContentList](h.world).Items)
}

// TestHopsOfADeletion kills the processes that delete a backup. Its image and its storage snapshot
// are gone, and those of others are not.
func TestHopsOfADeletion(t *testing.T) {
	seen := map[string]int{}
	gone := func(h *hopWorld) { h.requireDeleted("data") }
	for name, w := range map[string]way{
		"a retained pair": {world: func(t *testing.T) *hopWorld {
			h := appWorld(t, nil, "data")
			h.wholeBackup("first", "data")
			return h
		}, check: gone},
		"a pair that somebody has deleted": {world: func(t *testing.T) *hopWorld {
			h := appWorld(t, nil, "data")
			h.wholeBackup("first", "data")
			h.deletePair()
			return h
		}, check: gone},
		"no manager has seen the upload": {world: func(t *testing.T) *hopWorld {
			h := appWorld(t, nil, "data")
			h.backUp(h.addBackup("first"), "data")
			return h
		}, check: gone},
		"the next upload runs": {world: func(t *testing.T) *hopWorld {
			h := appWorld(t, nil, "data")
			h.wholeBackup("first", "data")
			h.write("volume-of-data")
			h.backUp(h.addBackup("second"), "data")
			h.manage(2)
			return h
		}, check: func(h *hopWorld) {
			require.Len(h.t, h.snapshots, 2, "the upload may build on the first")
			h.settle()
			du := h.uploadOf(get[velerov1.Backup](h.world, veleroNamespace, "second"), "data")
			h.requireImage(du, h.data["volume-of-data"])
			require.Equal(h.t, map[string]string{"data": "second"}, h.retained())
			h.requireImages(1, "data")
		}},
		"a group": {world: func(t *testing.T) *hopWorld {
			h := appWorld(t, map[string]string{"group": "db"}, "a", "b")
			h.serveGroups()
			h.wholeBackup("first", "a", "b")
			return h
		}, check: func(h *hopWorld) {
			h.requireDeleted("a", "b")
			require.Empty(h.t, h.groupObjects("VolumeGroupSnapshotContent"))
		}},
		"a group of which somebody has deleted the pairs": {world: func(t *testing.T) *hopWorld {
			h := appWorld(t, map[string]string{"group": "db"}, "a", "b")
			h.serveGroups()
			h.wholeBackup("first", "a", "b")
			h.deletePair()
			return h
		}, check: func(h *hopWorld) {
			h.requireDeleted("a", "b")
			require.Empty(h.t, h.groupObjects("VolumeGroupSnapshotContent"))
		}},
	} {
		w.hopsOf, w.run = hopsOfADeletion, (*hopWorld).deleteBackup
		t.Run(name, func(t *testing.T) { w.killEach(t, seen) })
	}
	requireTable(t, wayOfADeletion, 0, seen)
}

// requireDeleted checks that nothing is left of any backup of volumes.
func (h *hopWorld) requireDeleted(claims ...string) {
	h.t.Helper()
	require.Empty(h.t, h.snapshots)
	require.Empty(h.t, h.retained())
	h.requireImages(0, claims...)
}

func (h *hopWorld) requireImages(n int, claims ...string) {
	h.t.Helper()
	for _, claim := range claims {
		all, err := h.store.List(h.ctx, repository.VolumeKey{Namespace: appNamespace, PVC: claim})
		require.NoError(h.t, err)
		require.Len(h.t, all, n)
	}
}
