package controller

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kubevirt"
	restoreplugin "github.com/blockmover/blockmover/plugins/restore"
)

// hopsOfARestore names the hops of a call of a restore, into a new volume or in place.
func hopsOfARestore(inPlace bool) func(c call) []string {
	return func(c call) []string { return hopsOfADownload(c, inPlace) }
}

func hopsOfADownload(c call, inPlace bool) (hops []string) {
	add := func(is bool, hop string) {
		if is {
			hops = append(hops, hop)
		}
	}
	isVolume, isClaim, isPod := c.kind == "PersistentVolume", c.kind == "PersistentVolumeClaim", c.kind == "Pod"
	alias := isVolume && identity.IsAliasVolumeName(c.name)
	rebind := isVolume && strings.HasPrefix(c.name, "blockmover-restored-")
	switch c.by {
	case finalizer, sweeping: // there is no finalize phase, and the sweep has nothing to do
	case worker:
		add(true, map[string]string{"hold": "worker: hold", "write": "worker: write", "report": "worker: report"}[c.verb])
	case plugin:
		add(c.is("DataDownload", "create"), "plugin: DataDownload")
	case manager:
		add(c.is("BackupRepository", "create"), "manager: repository")
		if c.is("DataDownload", "patch") {
			add(c.sets(identity.AnnotationCopies), "manager: copies, if configured")
			add(c.sets(identity.AnnotationOutcome), "manager: outcome")
			add(c.touches("phase", "message", "progress", identity.AnnotationAttempt, identity.AnnotationSecured), "manager: phase")
		}
		add(c.is("Secret", "create", "patch"), "manager: copies, if configured")
		add(c.is("VolumeSnapshot", "create"), "manager: VolumeSnapshot")
		add((isClaim || isPod || alias) && c.verb == "create", "manager: expose")
		add(isClaim && c.verb == "patch" && c.sets(identity.LabelRestored), "manager: mark")
		add(isVolume && c.verb == "patch" && c.sets("persistentVolumeReclaimPolicy") && !rebind, "manager: protect")
		add(isVolume && !rebind && c.verb == "patch" && c.sets(identity.LabelOperation), "manager: expose")
		add(rebind && c.verb == "create", "manager: park")
		add(rebind && c.verb == "patch" && c.sets("claimRef"), "manager: commit")
		add(rebind && c.verb == "patch" && c.sets("persistentVolumeReclaimPolicy"), "manager: settle")
		gone := "manager: retire"
		if inPlace {
			gone = "manager: release"
		}
		add((isClaim || isPod || isVolume) && c.verb == "delete", gone)
		add(c.is("VolumeSnapshot", "delete") || c.is("VolumeSnapshotContent", "patch") || c.is("Secret", "delete"), "manager: release")
	}
	return hops
}

// restoredWorld is appWorld with a Backup of the volume data, and a Restore of it.
func restoredWorld(t *testing.T) *hopWorld {
	t.Helper()
	h := appWorld(t, nil, "data")
	h.wholeBackup("first", "data")
	require.NoError(t, h.c.DeleteAllOf(h.ctx, &velerov1.BackupRepository{}, clientInVelero))
	h.also = h.requireSafe
	return h
}

// restoreOf is a Restore as Velero has begun it, and the PVC in the backup.
func (h *hopWorld) restoreOf(annotations map[string]string) (*velerov1.Restore, *corev1.PersistentVolumeClaim) {
	h.t.Helper()
	b := get[velerov1.Backup](h.world, veleroNamespace, "first")
	du := h.uploadOf(b, "data")
	r := &velerov1.Restore{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "restore", UID: "uid-of-restore", Annotations: annotations},
		Spec:       velerov1.RestoreSpec{BackupName: "first", ItemOperationTimeout: metav1.Duration{Duration: 4 * time.Hour}},
	}
	if get[velerov1.Restore](h.world, veleroNamespace, "restore") == nil {
		require.NoError(h.t, h.c.Create(h.ctx, r))
		result, err := json.Marshal(velerov2alpha1.DataUploadResult{
			BackupStorageLocation: "default", DataMover: identity.DataMover, SnapshotID: du.Status.SnapshotID, SnapshotSize: hopSize, SourceNamespace: appNamespace,
			DataMoverResult: du.Status.DataMoverResult,
		})
		require.NoError(h.t, err)
		require.NoError(h.t, h.c.Create(h.ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: du.Name + "-x7r2p", Labels: map[string]string{
				velerov1.RestoreUIDLabel: string(r.UID), velerov1.PVCNamespaceNameLabel: "app.data", velerov1.ResourceUsageLabel: "DataUpload",
			}},
			Data: map[string]string{string(r.UID): string(result)},
		}))
	}
	pvc, _ := appVolume("data", nil)
	pvc.Annotations = map[string]string{identity.AnnotationDataUpload: veleroNamespace + "/" + du.Name}
	return r, pvc
}

// restore calls the plugin as Velero does, and creates what the plugin does not leave out.
func (h *hopWorld) restore(annotations map[string]string) {
	h.t.Helper()
	h.again(plugin, func() {
		r, pvc := h.restoreOf(annotations)
		output, err := restoreplugin.NewPVCAction(quiet(), h.asPlugin).Execute(&velero.RestoreItemActionExecuteInput{
			Item: h.itemOf("PersistentVolumeClaim", pvc), ItemFromBackup: h.itemOf("PersistentVolumeClaim", pvc), Restore: r,
		})
		require.NoError(h.t, err)
		require.NotEmpty(h.t, output.OperationID)
		if output.SkipRestore {
			return
		}
		target := &corev1.PersistentVolumeClaim{}
		require.NoError(h.t, runtime.DefaultUnstructuredConverter.FromUnstructured(output.UpdatedItem.UnstructuredContent(), target))
		target.UID, target.ResourceVersion, target.Status = "uid-of-target", "", corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
		target.Labels = map[string]string{velerov1.RestoreNameLabel: r.Name}
		require.NoError(h.t, h.c.Create(h.ctx, target))
	})
	h.settle()
}

// requireSafe checks that at no moment a provisioner may delete a volume that is being handed over.
func (h *hopWorld) requireSafe() {
	for _, pv := range list[corev1.PersistentVolumeList](h.world).Items {
		require.False(h.t, (pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID == "") && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete,
			"a provisioner may delete PV %s, which is nobody's", pv.Name)
	}
}

// TestHopsOfARestore kills the processes that restore a volume. The PVC gets one volume, with the
// data of the backup.
func TestHopsOfARestore(t *testing.T) {
	seen := map[string]int{}
	way{
		hopsOf: hopsOfARestore(false),
		world: func(t *testing.T) *hopWorld {
			h := restoredWorld(t)
			require.NoError(t, h.c.Delete(h.ctx, get[corev1.PersistentVolumeClaim](h.world, appNamespace, "data")))
			require.NoError(t, h.c.Delete(h.ctx, get[corev1.PersistentVolume](h.world, "", "pv-data")))
			delete(h.volumes, "volume-of-data")
			h.settle() // nobody needs the base any more
			require.NoError(t, h.c.Create(h.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: "token"}}))
			h.configured(func(c *config.Config) { c.RestorePVC.SecretNames = []string{"token"} })
			return h
		},
		run: func(h *hopWorld) { h.restore(nil) },
		check: func(h *hopWorld) {
			downloads := list[velerov2alpha1.DataDownloadList](h.world).Items
			require.Len(h.t, downloads, 1)
			require.Equal(h.t, velerov2alpha1.DataDownloadPhaseCompleted, downloads[0].Status.Phase, downloads[0].Status.Message)
			target := get[corev1.PersistentVolumeClaim](h.world, appNamespace, "data")
			require.Equal(h.t, corev1.ClaimBound, target.Status.Phase)
			volumes := list[corev1.PersistentVolumeList](h.world).Items
			require.Len(h.t, volumes, 1)
			pv := volumes[0]
			require.Equal(h.t, target.Spec.VolumeName, pv.Name)
			require.Equal(h.t, target.UID, pv.Spec.ClaimRef.UID)
			require.Equal(h.t, corev1.PersistentVolumeReclaimDelete, pv.Spec.PersistentVolumeReclaimPolicy)
			require.Equal(h.t, *target.Spec.VolumeMode, *pv.Spec.VolumeMode)
			require.Equal(h.t, map[string]bool{pv.Spec.CSI.VolumeHandle: true}, h.volumes)
			require.True(h.t, slices.Equal(h.data["volume-of-data"], h.data[pv.Spec.CSI.VolumeHandle]))
			require.Empty(h.t, h.retained())
			h.requireNoOperation()
		},
	}.killEach(t, seen)
	requireTable(t, wayOfARestore, 0, seen)
}

// isDisk makes a PVC the disk of a VM that KubeVirt tracks.
func (h *hopWorld) isDisk(claim string) {
	h.mapper.Add(kubevirt.Tracker, meta.RESTScopeNamespace)
	h.mapper.Add(kubevirt.VirtualMachine, meta.RESTScopeNamespace)
	vm, tracker := kubevirt.New(kubevirt.VirtualMachine), kubevirt.NewTracker("vm")
	vm.Object["spec"] = map[string]any{"template": map[string]any{"spec": map[string]any{"volumes": []any{
		map[string]any{"name": "disk", "persistentVolumeClaim": map[string]any{"claimName": claim}},
	}}}}
	for _, object := range []*unstructured.Unstructured{vm, tracker} {
		object.SetNamespace(appNamespace)
		object.SetName("vm")
		require.NoError(h.t, h.c.Create(h.ctx, object))
	}
}

// TestHopsInPlace kills the processes that restore a volume in place. The user keeps the PVC and the
// volume, which has the data of the backup in the end.
func TestHopsInPlace(t *testing.T) {
	seen := map[string]int{}
	way{
		hopsOf: hopsOfARestore(true),
		world: func(t *testing.T) *hopWorld {
			h := restoredWorld(t)
			h.isDisk("data")
			h.data["as backed up"] = append([]byte(nil), h.data["volume-of-data"]...)
			h.write("volume-of-data")
			return h
		},
		run: func(h *hopWorld) { h.restore(map[string]string{identity.AnnotationInPlace: "true"}) },
		check: func(h *hopWorld) {
			downloads := list[velerov2alpha1.DataDownloadList](h.world).Items
			require.Len(h.t, downloads, 1)
			require.Equal(h.t, velerov2alpha1.DataDownloadPhaseCompleted, downloads[0].Status.Phase, downloads[0].Status.Message)
			require.True(h.t, slices.Equal(h.data["as backed up"], h.data["volume-of-data"]))
			require.Equal(h.t, map[string]string{"data": "first"}, h.retained())
			h.requireNoOperation()
			h.requireAppAsItWas(map[string]string{identity.LabelRestored: string(downloads[0].UID)}, "data")
		},
	}.killEach(t, seen)
	requireTable(t, wayInPlace, 0, seen)
}
