package controller

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
)

const dynamicRestore = velerov1.DynamicPVRestoreLabel

// downloadWorld has a DataDownload and its target PVC, as a restore of Velero makes them.
func downloadWorld(t *testing.T, more ...client.Object) *world {
	t.Helper()
	w := newWorld(t, append([]client.Object{
		targetClaim("fast"),
		&velerov2alpha1.DataDownload{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "dd"},
			Spec: velerov2alpha1.DataDownloadSpec{
				TargetVolume:    velerov2alpha1.TargetVolumeSpec{Namespace: appNamespace, PVC: "data"},
				SourceNamespace: "source", SnapshotID: "repo-snapshot-1", DataMover: identity.DataMover,
				BackupStorageLocation: "default", OperationTimeout: metav1.Duration{Duration: 10 * time.Minute},
			},
		},
	}, more...)...)
	w.report = task.Report{Version: task.Version, VolumeSize: gibi, BytesWritten: gibi}
	return w
}

func targetClaim(class string) *corev1.PersistentVolumeClaim {
	filesystem := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: appNamespace, Name: "data", UID: "target-uid",
			Labels:      map[string]string{velerov1.RestoreNameLabel: "restore"},
			Annotations: map[string]string{"driver.example.com/tier": "gold", "velero.io/x": "y"},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: &class,
			VolumeMode:       &filesystem,
			Selector:         &metav1.LabelSelector{MatchLabels: map[string]string{dynamicRestore: "app.data.abc"}},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: quantity(gibi)}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
}

// requireRestored checks that the target has the restored volume, that the volume looks as if
// the target's class had provisioned it, and that nothing else is left.
func requireRestored(t *testing.T, w *world) {
	t.Helper()
	dd := get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")
	require.Equal(t, velerov2alpha1.DataDownloadPhaseCompleted, dd.Status.Phase, dd.Status.Message)
	require.Equal(t, int64(gibi), dd.Status.Progress.BytesDone)
	target := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	require.Equal(t, corev1.ClaimBound, target.Status.Phase)

	volumes := list[corev1.PersistentVolumeList](w).Items
	require.Len(t, volumes, 1)
	pv := volumes[0]
	require.Equal(t, target.Spec.VolumeName, pv.Name)
	require.Equal(t, target.UID, pv.Spec.ClaimRef.UID)
	require.Equal(t, corev1.PersistentVolumeReclaimDelete, pv.Spec.PersistentVolumeReclaimPolicy)
	require.Equal(t, corev1.PersistentVolumeFilesystem, *pv.Spec.VolumeMode)
	require.Equal(t, "volume-1", pv.Spec.CSI.VolumeHandle)
	require.Equal(t, map[string]string{dynamicRestore: "app.data.abc"}, pv.Labels)
	require.Equal(t, map[string]string{
		"pv.kubernetes.io/provisioned-by":                       driver,
		"volume.kubernetes.io/provisioner-deletion-secret-name": "secret",
	}, pv.Annotations)
	w.requireNothingLeft([]string{"volume-1"}, nil)
	require.Equal(t, 1, w.pods)
}

func TestDownload(t *testing.T) {
	w := downloadWorld(t)
	w.podEnds = func(pod *corev1.Pod) bool {
		request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(t, err)
		require.Equal(t, "source/data", request.Volume.String())
		require.Equal(t, "source-default-kopia", request.BackupRepository)
		require.EqualValues(t, "repo-snapshot-1", request.Restore.SnapshotID)
		claim := get[corev1.PersistentVolumeClaim](w, veleroNamespace, pod.Name)
		require.Equal(t, corev1.PersistentVolumeBlock, *claim.Spec.VolumeMode)
		require.Equal(t, "gold", claim.Annotations["driver.example.com/tier"])
		require.NotContains(t, claim.Annotations, "velero.io/x")
		require.Nil(t, claim.Spec.Selector)
		return true
	}
	w.run(w.downs, "dd")
	requireRestored(t, w)
	require.Equal(t, "xfs", list[corev1.PersistentVolumeList](w).Items[0].Spec.CSI.FSType)
}

// TestDownloadSurvivesAnyFault lets each call to the API server fail in turn. The user must
// get the volume, once, and nothing may be left.
// TestDownloadOfADisk: the disk of a VM becomes a file in a Filesystem volume, which KubeVirt's user
// owns, and the device itself in a Block volume.
func TestDownloadOfADisk(t *testing.T) {
	for _, mode := range []corev1.PersistentVolumeMode{corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock} {
		w := downloadWorld(t)
		dd := get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")
		dd.Spec.DataMoverConfig = map[string]string{identity.ConfigVM: "vm"}
		w.update(dd)
		target := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
		target.Spec.VolumeMode = &mode
		w.update(target)
		w.podEnds = func(pod *corev1.Pod) bool {
			request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
			require.NoError(t, err)
			claim := get[corev1.PersistentVolumeClaim](w, veleroNamespace, pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
			require.Equal(t, mode, *claim.Spec.VolumeMode)
			if mode == corev1.PersistentVolumeBlock {
				require.False(t, request.Restore.DiskImage)
				require.Len(t, pod.Spec.Containers[0].VolumeDevices, 1)
				return true
			}
			require.True(t, request.Restore.DiskImage)
			require.Equal(t, "/volume", request.Device)
			require.Empty(t, pod.Spec.Containers[0].VolumeDevices)
			require.EqualValues(t, 107, *pod.Spec.SecurityContext.FSGroup)
			require.EqualValues(t, 107, *pod.Spec.SecurityContext.RunAsUser)
			return true
		}
		w.run(w.downs, "dd")
		dd = get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")
		require.Equal(t, velerov2alpha1.DataDownloadPhaseCompleted, dd.Status.Phase, dd.Status.Message)
	}
}

func TestDownloadSurvivesAnyFault(t *testing.T) {
	eachFault(t, downloadWorld, func(w *world) {
		w.run(w.downs, "dd")
		requireRestored(w.t, w)
	})
}

// requireAllOrNothing checks that the target has the volume, or that there is none.
func requireAllOrNothing(t *testing.T, w *world) {
	t.Helper()
	target := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	if target == nil || target.Spec.VolumeName == "" {
		require.Empty(t, list[corev1.PersistentVolumeList](w).Items)
		w.requireNothingLeft(nil, nil)
		return
	}
	pv := get[corev1.PersistentVolume](w, "", target.Spec.VolumeName)
	require.NotNil(t, pv)
	require.Equal(t, corev1.PersistentVolumeReclaimDelete, pv.Spec.PersistentVolumeReclaimPolicy)
	w.requireNothingLeft([]string{"volume-1"}, nil)
}

// TestDownloadInterruptedAtAnyTime interrupts after each number of reconciliations, and so at
// each step of the rebinding.
func TestDownloadInterruptedAtAnyTime(t *testing.T) {
	interruptDownloads(t, downloadWorld, requireAllOrNothing, map[string]func(w *world){
		"target deleted": func(w *world) {
			require.NoError(w.t, w.c.Delete(w.ctx, get[corev1.PersistentVolumeClaim](w, appNamespace, "data")))
			w.downs.now = func() time.Time { return w.clock.Add(time.Hour) }
			w.run(w.downs, "dd")
			w.sweepUp()
		},
	})
}

// interruptDownloads interrupts a download after each number of reconciliations: in the ways that every
// download must survive, and in more.
func interruptDownloads(t *testing.T, makeWorld func(*testing.T, ...client.Object) *world, check func(*testing.T, *world), more map[string]func(w *world)) {
	t.Helper()
	const steps = 20
	interrupts := map[string]func(w *world){
		"canceled": func(w *world) {
			w.cancel(get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd"))
			began := w.clock
			op := w.run(w.downs, "dd")
			require.Contains(w.t, []phase.Phase{phase.Canceled, phase.Completed}, op.Status.Phase, op.Status.Message)
			require.Less(w.t, w.clock.Sub(began), 20*time.Second)
		},
		"deleted": func(w *world) {
			require.NoError(w.t, w.c.Delete(w.ctx, get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")))
			w.sweepUp()
		},
		"deleted, and another Velero sweeps first": func(w *world) {
			require.NoError(w.t, w.c.Delete(w.ctx, get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")))
			neighbour := w.neighbour()
			for range 5 {
				_, err := neighbour.sweep(w.ctx)
				require.NoError(w.t, err)
				w.step()
			}
			w.sweepUp()
		},
		"mover pod fails": func(w *world) {
			w.report = task.Report{Version: task.Version, Error: "write device: no space left", BytesWritten: 1}
			w.run(w.downs, "dd")
		},
	}
	maps.Copy(interrupts, more)
	for name, interrupt := range interrupts {
		ended := false
		for n := 0; n < steps && !ended; n++ {
			t.Run(fmt.Sprintf("%s after %d", name, n), func(t *testing.T) {
				w := makeWorld(t)
				w.reconcileTimes(w.downs, "dd", n)
				ended = w.operation(w.downs, "dd").Status.Phase.Terminal()
				interrupt(w)
				check(t, w)
			})
		}
		require.True(t, ended, "%s: the last interruption must come after the end", name)
	}
}

func TestDownloadWaitsForConsumer(t *testing.T) {
	w := downloadWorld(t)
	require.NoError(t, w.c.Delete(w.ctx, get[corev1.PersistentVolumeClaim](w, appNamespace, "data")))
	w.reconcileTimes(w.downs, "dd", 2)
	require.Contains(t, w.operation(w.downs, "dd").Status.Message, "does not exist yet")

	require.NoError(t, w.c.Create(w.ctx, targetClaim("late")))
	w.reconcileTimes(w.downs, "dd", 2)
	op := w.operation(w.downs, "dd")
	require.Equal(t, phase.New, op.Status.Phase)
	require.Contains(t, op.Status.Message, "waits for its first consumer")

	target := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	metav1.SetMetaDataAnnotation(&target.ObjectMeta, "volume.kubernetes.io/selected-node", "node-1")
	w.update(target)
	w.podEnds = func(pod *corev1.Pod) bool {
		claim := get[corev1.PersistentVolumeClaim](w, veleroNamespace, pod.Name)
		require.Equal(t, "node-1", claim.Annotations["volume.kubernetes.io/selected-node"])
		term := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0]
		require.Equal(t, []string{"node-1"}, term.MatchFields[0].Values)
		return true
	}
	require.Equal(t, "node-1", w.run(w.downs, "dd").Status.Place)
	requireRestored(t, w)
	require.Equal(t, "ext4", list[corev1.PersistentVolumeList](w).Items[0].Spec.CSI.FSType)
}

func TestDownloadFails(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(dd *velerov2alpha1.DataDownload, target *corev1.PersistentVolumeClaim)
		want   string
	}{
		"no snapshot ID": {
			change: func(dd *velerov2alpha1.DataDownload, _ *corev1.PersistentVolumeClaim) { dd.Spec.SnapshotID = "" },
			want:   "there is no snapshot ID to restore",
		},
		"target bound": {
			change: func(_ *velerov2alpha1.DataDownload, target *corev1.PersistentVolumeClaim) {
				target.Spec.VolumeName = "pv-other"
			},
			want: "bound to PV pv-other already",
		},
		"target without dynamic provisioning": {
			change: func(_ *velerov2alpha1.DataDownload, target *corev1.PersistentVolumeClaim) {
				none := ""
				target.Spec.StorageClassName = &none
			},
			want: "provides no volumes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := downloadWorld(t)
			dd := get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")
			target := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
			tc.change(dd, target)
			w.update(dd)
			w.update(target)
			op := w.run(w.downs, "dd")
			require.Equal(t, phase.Failed, op.Status.Phase)
			require.Contains(t, op.Status.Message, tc.want)
			w.requireNothingLeft(nil, nil)
		})
	}
}

// TestDownloadOfARefusedTarget: Velero has created all that it will create, and the target is not
// among it.
func TestDownloadOfARefusedTarget(t *testing.T) {
	for p, want := range map[velerov1.RestorePhase]phase.Phase{
		velerov1.RestorePhaseInProgress:                                phase.New,
		velerov1.RestorePhaseWaitingForPluginOperationsPartiallyFailed: phase.Failed,
	} {
		w := downloadWorld(t, &velerov1.Restore{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "restore"}, Status: velerov1.RestoreStatus{Phase: p},
		})
		dd := get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")
		dd.OwnerReferences = []metav1.OwnerReference{{Kind: "Restore", Name: "restore"}}
		w.update(dd)
		require.NoError(t, w.c.Delete(w.ctx, get[corev1.PersistentVolumeClaim](w, appNamespace, "data")))
		op := w.drive(w.downs, "dd", time.Minute)
		require.Equal(t, want, op.Status.Phase, op.Status.Message)
		if want == phase.Failed {
			require.Contains(t, op.Status.Message, "Velero has not created target PVC app/data: the errors of Restore restore say why")
		}
	}
}

// TestDownloadWaitsForAnotherNode: the node that the scheduler chose for the target has vanished.
func TestDownloadWaitsForAnotherNode(t *testing.T) {
	w := downloadWorld(t)
	target := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	late := "late"
	target.Spec.StorageClassName = &late
	target.Annotations["volume.kubernetes.io/selected-node"] = "gone"
	w.update(target)
	op := w.drive(w.downs, "dd", time.Minute)
	require.Equal(t, phase.New, op.Status.Phase)
	require.Contains(t, op.Status.Message, "node gone, which the scheduler chose for target PVC app/data, does not exist any more")
	target = get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	target.Annotations["volume.kubernetes.io/selected-node"] = "node-1"
	w.update(target)
	require.Equal(t, phase.Completed, w.run(w.downs, "dd").Status.Phase)
}

// TestQueuedDownloadLosesItsNode: what a download waits for after hours in the queue has the whole
// time to come.
func TestQueuedDownloadLosesItsNode(t *testing.T) {
	w := downloadWorld(t)
	dd := w.operation(w.downs, "dd")
	dd.Status.Secured = true
	require.NoError(t, dd.Save(w.ctx, w.c))
	target := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	late := "late"
	target.Spec.StorageClassName = &late
	w.update(target)
	w.clock = w.clock.Add(5 * time.Hour)
	op := w.drive(w.downs, "dd", time.Minute)
	require.Equal(t, phase.New, op.Status.Phase, op.Status.Message)
	require.Contains(t, op.Status.Message, "waits for its first consumer")
	require.False(t, op.Status.Secured)
}
