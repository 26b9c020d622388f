package controller

import (
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

// hopsOfABackup names the hops of a call of a backup.
func hopsOfABackup(c call) (hops []string) {
	add := func(is bool, hop string) {
		if is {
			hops = append(hops, hop)
		}
	}
	ours := strings.HasPrefix(c.name, "blockmover-")
	switch c.by {
	case worker:
		add(true, "worker: "+c.verb)
	case plugin:
		add(c.is("VolumeSnapshot", "create"), "plugin: VolumeSnapshot")
		add(c.is("VolumeGroupSnapshot", "create"), "or plugin: group")
		add(c.is("PersistentVolumeClaim", "patch") && c.sets(identity.LabelGrouped), "or plugin: group")
		add(c.is("VolumeSnapshot", "patch") && c.sets(identity.LabelBackupUID), "or plugin: group")
		add(c.is("DataUpload", "create"), "plugin: DataUpload")
	case finalizer:
		add(c.is("PersistentVolumeClaim", "patch") && !c.sets(identity.LabelGrouped), "plugin: finalize")
		add(c.is("VolumeGroupSnapshot", "delete") || c.is("VolumeGroupSnapshotContent", "patch", "delete"), "plugin: finalize")
		add(c.is("VolumeSnapshot", "patch", "delete") || c.is("VolumeSnapshotContent", "patch", "delete"), "plugin: finalize")
	case sweeping:
		add(true, "manager: sweep")
	case manager:
		add(c.is("BackupRepository", "create"), "manager: repository")
		if c.is("DataUpload", "patch") {
			add(c.sets(identity.AnnotationCopies), "manager: copies, if configured")
			add(c.sets(identity.AnnotationOutcome), "manager: outcome")
			add(c.sets(identity.AnnotationRetained), "manager: retain")
			add(c.touches("phase", "message", identity.AnnotationAttempt, identity.AnnotationSecured), "manager: phase")
		}
		add(c.is("PodVolumeBackup", "create") || c.is("ConfigMap", "create"), "manager: name the image, if the backup has failed")
		add(c.is("Secret", "create", "patch"), "manager: copies, if configured")
		add(c.is("Secret", "delete"), "manager: release")
		isSnapshot, isContent := c.kind == "VolumeSnapshot", c.kind == "VolumeSnapshotContent"
		kept := c.sets(identity.LabelRetained)
		add((isSnapshot && (c.verb == "create" || c.namespace != veleroNamespace)) || (isContent && (c.verb == "create" || !ours)), "manager: re-home")
		add(c.is("VolumeGroupSnapshotContent", "patch"), "manager: re-home")
		add((isSnapshot || isContent) && ours && c.verb == "patch" && kept, "manager: retain")
		add((isSnapshot || isContent) && ours && c.verb != "create" && !kept && (isContent || c.namespace == veleroNamespace), "manager: release")
		add(c.is("PersistentVolumeClaim", "create") || c.is("Pod", "create"), "manager: expose")
		add(c.is("PersistentVolume", "patch") && c.sets(identity.LabelOperation), "manager: expose")
		add(c.is("PersistentVolumeClaim", "delete") || c.is("Pod", "delete"), "manager: release")
	}
	return hops
}

// appVolume is a volume of the application: the PVC and its PersistentVolume.
func appVolume(name string, labels map[string]string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	fast, filesystem := "fast", corev1.PersistentVolumeFilesystem
	pvc := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: name, UID: types.UID("uid-of-" + name), Labels: labels},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &fast, VolumeName: "pv-" + name, VolumeMode: &filesystem, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: quantity(hopSize)}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: corev1.ResourceList{corev1.ResourceStorage: quantity(hopSize)}},
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: quantity(hopSize)}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName: fast, VolumeMode: &filesystem,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "volume-of-" + name}},
			ClaimRef:               &corev1.ObjectReference{Namespace: appNamespace, Name: name, UID: pvc.UID},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
	return pvc, pv
}

// appWorld is a hop world with volumes of an application, whose storage tells what has changed since
// a snapshot that exists.
func appWorld(t *testing.T, labels map[string]string, claims ...string) *hopWorld {
	t.Helper()
	w := newWorld(t,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "policies"}, Data: map[string]string{"policies.yaml": hopPolicy}},
		&snapshotv1.VolumeSnapshotClass{
			ObjectMeta: metav1.ObjectMeta{Name: "snap", Labels: map[string]string{velerov1.VolumeSnapshotClassSelectorLabel: "true"}},
			Driver:     driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
		},
	)
	required := true
	w.addMetadataService(&required)
	h := newHopWorld(t, w)
	for i, name := range claims {
		pvc, pv := appVolume(name, labels)
		require.NoError(t, w.c.Create(w.ctx, pvc))
		require.NoError(t, w.c.Create(w.ctx, pv))
		w.volumes["volume-of-"+name] = true
		h.fill("volume-of-"+name, byte(i))
	}
	return h
}

// wholeBackup makes a Backup with all that belongs to it.
func (h *hopWorld) wholeBackup(name string, claims ...string) {
	h.t.Helper()
	b := h.addBackup(name)
	h.backUp(b, claims...)
	if !h.dead {
		h.manage(200)
	}
	h.finalize(b)
	h.settle()
}

// write changes a part of a volume.
func (h *hopWorld) write(handle string) {
	copy(h.data[handle][hopChunk:], make([]byte, hopChunk))
	copy(h.data[handle][5*hopChunk:], make([]byte, 2*hopChunk))
}

// requireAppAsItWas checks that nobody has touched the volumes of the application.
func (h *hopWorld) requireAppAsItWas(labels map[string]string, claims ...string) {
	h.t.Helper()
	volumes := []string{}
	for _, name := range claims {
		pvc, pv := appVolume(name, labels)
		is, volume := get[corev1.PersistentVolumeClaim](h.world, appNamespace, name), get[corev1.PersistentVolume](h.world, "", "pv-"+name)
		require.Equal(h.t, pvc.Labels, is.Labels)
		require.Equal(h.t, pvc.Annotations, is.Annotations)
		require.True(h.t, equality.Semantic.DeepEqual(pvc.Spec, is.Spec))
		require.Equal(h.t, pv.Labels, volume.Labels)
		require.Equal(h.t, pv.Annotations, volume.Annotations)
		require.True(h.t, equality.Semantic.DeepEqual(pv.Spec, volume.Spec))
		volumes = append(volumes, "volume-of-"+name)
	}
	require.Len(h.t, list[corev1.PersistentVolumeList](h.world).Items, len(claims))
	require.Len(h.t, h.volumes, len(claims))
	for _, v := range volumes {
		require.True(h.t, h.volumes[v])
	}
}

// TestHopsOfABackup kills the processes that make the second backup of a volume, alone and in a
// group. It is an increment on the first, once, and its storage snapshot replaces the base.
func TestHopsOfABackup(t *testing.T) {
	seen := map[string]int{}
	for name, w := range map[string]way{"one volume": wayOfOneVolume(), "a group": wayOfAGroup()} {
		t.Run(name, func(t *testing.T) { w.killEach(t, seen) })
		w.only = plugin
		faster := w.with(func(h *hopWorld) { h.idle = 200 })
		t.Run(name+", and the manager does what it can before the plugin is called again", func(t *testing.T) { faster.killEach(t, seen) })
		lost := w.with(func(h *hopWorld) { h.mortal = true })
		lost.check = func(h *hopWorld) { h.requireLost() }
		t.Run(name+", and Velero dies with the plugin", func(t *testing.T) { lost.killEach(t, seen) })
		lost.only = finalizer
		if name == "a group" {
			t.Run(name+", and Velero dies in the finalize phase", func(t *testing.T) { lost.killEach(t, seen) })
		}
	}
	requireTable(t, wayOfABackup, 0, seen)
}

// with changes the world of a way.
func (f way) with(change func(h *hopWorld)) way {
	world := f.world
	f.world = func(t *testing.T) *hopWorld {
		h := world(t)
		change(h)
		return h
	}
	return f
}

// requireLost checks what is left of a second Backup that Velero may have lost: what has a DataUpload
// is backed up, and of the rest nothing is left.
func (h *hopWorld) requireLost() {
	h.t.Helper()
	b, want, labels := get[velerov1.Backup](h.world, veleroNamespace, "second"), map[string]string{}, map[string]string(nil)
	var claims []string
	for _, pvc := range list[corev1.PersistentVolumeClaimList](h.world, client.InNamespace(appNamespace)).Items {
		claims = append(claims, pvc.Name)
		want[pvc.Name] = "first"
		if labels = map[string]string{"app": "db"}; pvc.Labels["group"] != "" {
			labels["group"] = "db"
		}
		if get[velerov2alpha1.DataUpload](h.world, veleroNamespace, identity.DataUploadName(string(b.UID), "uid-of-"+pvc.Name)) != nil {
			h.requireImage(h.uploadOf(b, pvc.Name), h.data["volume-of-"+pvc.Name])
			want[pvc.Name] = "second"
		}
	}
	kept := map[string]string{}
	for _, content := range list[snapshotv1.VolumeSnapshotContentList](h.world).Items {
		kept[content.Labels[identity.LabelVolume]] = content.Labels[identity.LabelBackup]
	}
	require.Equal(h.t, want, kept)
	require.Len(h.t, list[snapshotv1.VolumeSnapshotContentList](h.world).Items, len(want))
	require.Len(h.t, list[snapshotv1.VolumeSnapshotList](h.world).Items, len(want))
	h.requireNoOperation()
	h.requireAppAsItWas(labels, claims...)
	if len(claims) == 1 {
		require.Len(h.t, h.snapshots, 1)
		return
	}
	require.Empty(h.t, h.groupObjects("VolumeGroupSnapshot"))
	groups := map[string]bool{} // the storage keeps a group as long as it keeps a member
	for snapshot := range h.snapshots {
		groups[h.groups[snapshot]] = true
	}
	require.Len(h.t, h.groupObjects("VolumeGroupSnapshotContent"), len(groups))
}

func wayOfOneVolume() way {
	labels := map[string]string{"app": "db"}
	return way{
		hopsOf: hopsOfABackup,
		world: func(t *testing.T) *hopWorld {
			h := appWorld(t, labels, "data")
			require.NoError(t, h.c.Create(h.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: "token"}}))
			h.wholeBackup("first", "data")
			require.Equal(t, map[string]string{"data": "first"}, h.retained())
			h.write("volume-of-data")
			h.configured(func(c *config.Config) {
				c.BackupPVC = map[string]config.BackupPVC{"fast": {SecretNames: []string{"token"}}}
			})
			require.NoError(t, h.c.DeleteAllOf(h.ctx, &velerov1.BackupRepository{}, clientInVelero))
			return h
		},
		run: func(h *hopWorld) { h.wholeBackup("second", "data") },
		check: func(h *hopWorld) {
			h.requireIncrements(labels, "data")
		},
	}
}

// requireIncrements checks what two Backups of volumes have come to.
func (h *hopWorld) requireIncrements(labels map[string]string, claims ...string) {
	h.t.Helper()
	want := map[string]string{}
	for _, claim := range claims {
		first := h.uploadOf(get[velerov1.Backup](h.world, veleroNamespace, "first"), claim)
		du := h.uploadOf(get[velerov1.Backup](h.world, veleroNamespace, "second"), claim)
		image := h.requireImage(du, h.data["volume-of-"+claim])
		require.Equal(h.t, repository.Incremental, image.Meta.Kind, du.Status.DataMoverResult)
		require.Equal(h.t, first.Status.SnapshotID, string(image.Meta.Parent))
		all, err := h.store.List(h.ctx, repository.VolumeKey{Namespace: appNamespace, PVC: claim})
		require.NoError(h.t, err)
		require.Len(h.t, all, 2)
		require.NotContains(h.t, first.Annotations, identity.AnnotationRetained)
		require.Contains(h.t, du.Annotations, identity.AnnotationRetained)
		require.Empty(h.t, du.Annotations[identity.AnnotationCopies])
		want[claim] = "second"
	}
	require.Equal(h.t, want, h.retained())
	h.requireNoOperation()
	h.requireAppAsItWas(labels, slices.Clone(claims)...)
}
