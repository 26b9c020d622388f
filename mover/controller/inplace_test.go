package controller

import (
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// inPlaceWorld has a live PVC and its volume, and a DataDownload that writes into it.
func inPlaceWorld(t *testing.T, more ...client.Object) *world {
	t.Helper()
	claim := targetClaim("fast")
	claim.Spec.Selector, claim.Spec.VolumeName, claim.Status.Phase = nil, "pv-live", corev1.ClaimBound
	w := newWorld(t, append([]client.Object{
		claim,
		&corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-live", Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": driver}},
			Spec: corev1.PersistentVolumeSpec{
				Capacity: corev1.ResourceList{corev1.ResourceStorage: quantity(gibi)}, AccessModes: claim.Spec.AccessModes, VolumeMode: claim.Spec.VolumeMode,
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete, StorageClassName: "fast",
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: driver, VolumeHandle: "live", FSType: "xfs", VolumeAttributes: map[string]string{"pool": "a"},
				}},
				ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: appNamespace, Name: "data", UID: claim.UID},
			},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
		},
		&velerov2alpha1.DataDownload{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "dd"},
			Spec: velerov2alpha1.DataDownloadSpec{
				TargetVolume:    velerov2alpha1.TargetVolumeSpec{Namespace: appNamespace, PVC: "data"},
				SourceNamespace: appNamespace, SnapshotID: "repo-snapshot-1", SnapshotSize: gibi, DataMover: identity.DataMover,
				BackupStorageLocation: "default", OperationTimeout: metav1.Duration{Duration: 10 * time.Minute},
				DataMoverConfig: map[string]string{
					identity.ConfigInPlace: string(claim.UID), identity.ConfigInPlaceVolume: string(inplace.SameVolume), identity.ConfigVolumeHandle: "live",
				},
			},
		},
	}, more...)...)
	w.volumes["live"] = true
	w.report = task.Report{Version: task.Version, VolumeSize: gibi, BytesWritten: 4096, ZeroBytes: 8192, BytesRead: gibi, Reason: "CBTUnavailable", Reasons: []string{"CBTUnavailable"}, Detail: "CBTUnavailable: no class"}
	return w
}

func userPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: name},
		Spec: corev1.PodSpec{Volumes: []corev1.Volume{{
			Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

// requireLiveVolume checks what matters most: the user has the PVC, the PersistentVolume as it was,
// and the volume in the storage, and nothing else is left.
func requireLiveVolume(t *testing.T, w *world) {
	t.Helper()
	claim := get[corev1.PersistentVolumeClaim](w, appNamespace, "data")
	require.Equal(t, "pv-live", claim.Spec.VolumeName)
	require.Equal(t, corev1.ClaimBound, claim.Status.Phase)
	volumes := list[corev1.PersistentVolumeList](w).Items
	require.Len(t, volumes, 1)
	pv := volumes[0]
	require.Equal(t, "pv-live", pv.Name)
	require.Equal(t, claim.UID, pv.Spec.ClaimRef.UID)
	require.Equal(t, corev1.VolumeBound, pv.Status.Phase)
	require.Equal(t, corev1.PersistentVolumeReclaimDelete, pv.Spec.PersistentVolumeReclaimPolicy)
	require.Equal(t, map[string]string{"pv.kubernetes.io/provisioned-by": driver}, pv.Annotations)
	require.Empty(t, pv.Labels)
	w.requireNothingLeft([]string{"live"}, nil)
}

func TestInPlace(t *testing.T) {
	w := inPlaceWorld(t)
	w.podEnds = func(pod *corev1.Pod) bool {
		request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(t, err)
		require.Equal(t, &task.InPlace{
			Claim: "app/data", ClaimUID: string(get[corev1.PersistentVolumeClaim](w, appNamespace, "data").UID), Mode: inplace.SameVolume, Driver: driver, VolumeHandle: "live", Audit: "1%",
			MetadataUnavailable: "driver " + driver + " has no VolumeSnapshotClass",
		}, request.Restore.InPlace)
		claim := get[corev1.PersistentVolumeClaim](w, veleroNamespace, pod.Name)
		require.Equal(t, corev1.PersistentVolumeBlock, *claim.Spec.VolumeMode)
		alias := get[corev1.PersistentVolume](w, "", claim.Spec.VolumeName)
		require.True(t, identity.IsAliasVolumeName(alias.Name))
		require.Equal(t, corev1.PersistentVolumeReclaimRetain, alias.Spec.PersistentVolumeReclaimPolicy)
		require.Equal(t, corev1.PersistentVolumeBlock, *alias.Spec.VolumeMode)
		require.Equal(t, &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "live", VolumeAttributes: map[string]string{"pool": "a"}}, alias.Spec.CSI)
		require.NotContains(t, alias.Annotations, "pv.kubernetes.io/provisioned-by", "no provisioner may take it for its own")
		require.NotContains(t, alias.Labels, identity.LabelOperation, "nothing may take it for a volume of the operation")
		return true
	}
	op := w.run(w.downs, "dd")
	require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
	require.Equal(t, "restored in place: 4096 bytes were written and 8192 zeroed, 1073741824 of 1073741824 were read, and the rest was equal; "+
		"the whole volume was compared: CBTUnavailable: no class", op.Status.Message)
	require.Equal(t, 1, w.pods)
	requireLiveVolume(t, w)
}

// cbtWorld has a driver that can tell what has changed, and a worker that has the device to itself.
func cbtWorld(t *testing.T) *world {
	t.Helper()
	w := inPlaceWorld(t, &snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: "snap"}, Driver: driver})
	w.addMetadataService(nil)
	w.log = `{"msg":"Progress","bytesDone":0,"bytesTotal":0,"bytesRead":0,"held":true}`
	w.report = task.Report{Version: task.Version, VolumeSize: gibi, BytesWritten: 4096, BytesRead: 8192, Parent: "repo-snapshot-1"}
	return w
}

// TestInPlaceAsksTheStorage: each attempt gets a VolumeSnapshot of the volume, taken when its worker
// says that it has the device to itself.
func TestInPlaceAsksTheStorage(t *testing.T) {
	w := cbtWorld(t)
	held := w.log
	w.log = ""
	w.podEnds = func(*corev1.Pod) bool { return false }
	op := w.drive(w.downs, "dd", 20*time.Second)
	require.Equal(t, phase.InProgress, op.Status.Phase)
	require.Empty(t, list[snapshotv1.VolumeSnapshotList](w).Items, "others may still write")
	w.log = held
	op = w.drive(w.downs, "dd", 20*time.Second)
	snapshots := list[snapshotv1.VolumeSnapshotList](w).Items
	require.Len(t, snapshots, 1)
	require.Equal(t, op.LiveSnapshotName(1), snapshots[0].Name)
	require.Equal(t, veleroNamespace, snapshots[0].Namespace)
	require.Equal(t, op.ObjectName(), *snapshots[0].Spec.Source.PersistentVolumeClaimName)
	require.Equal(t, "snap", *snapshots[0].Spec.VolumeSnapshotClassName)
	pod := get[corev1.Pod](w, veleroNamespace, op.ObjectName())
	request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
	require.NoError(t, err)
	require.Equal(t, op.LiveSnapshotName(1), request.Restore.InPlace.VolumeSnapshot)
	require.Equal(t, "a:1", request.Restore.InPlace.Metadata.Address)

	require.NoError(t, w.c.Delete(w.ctx, pod))
	w.drive(w.downs, "dd", time.Minute)
	require.NotNil(t, get[snapshotv1.VolumeSnapshot](w, veleroNamespace, op.LiveSnapshotName(2)), "what was written since the first one must be in it")
	w.podEnds = func(*corev1.Pod) bool { return true }
	op = w.run(w.downs, "dd")
	require.Contains(t, op.Status.Message, "8192 of 1073741824 were read, and the rest was equal; the storage told what has changed since repo snapshot repo-snapshot-1")
	requireLiveVolume(t, w)
}

// TestInPlaceByCBTSurvivesAnyFault lets each call to the API server fail in turn.
func TestInPlaceByCBTSurvivesAnyFault(t *testing.T) {
	eachFault(t, func(t *testing.T, _ ...client.Object) *world { t.Helper(); return cbtWorld(t) }, func(w *world) {
		op := w.run(w.downs, "dd")
		require.Equal(w.t, phase.Completed, op.Status.Phase, op.Status.Message)
		requireLiveVolume(w.t, w)
	})
}

// TestSweepOfALiveSnapshot: a restore that is gone leaves no VolumeSnapshot.
func TestSweepOfALiveSnapshot(t *testing.T) {
	w := cbtWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	w.drive(w.downs, "dd", 20*time.Second)
	require.Len(t, list[snapshotv1.VolumeSnapshotList](w).Items, 1)
	require.NoError(t, w.c.Delete(w.ctx, get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")))
	w.sweepUp()
	requireLiveVolume(t, w)
}

// TestSweepOfAForgottenFinalizer: the snapshot controller protects the PVC of a VolumeSnapshot that it makes.
// If the API server is away when it lets go, and the VolumeSnapshot is deleted then, nothing reminds it.
func TestSweepOfAForgottenFinalizer(t *testing.T) {
	const protection = "snapshot.storage.kubernetes.io/pvc-as-source-protection"
	w := cbtWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	w.drive(w.downs, "dd", 20*time.Second)
	claims := list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items
	require.Len(t, claims, 1)
	claims[0].Finalizers = append(claims[0].Finalizers, protection)
	w.update(&claims[0])
	theirs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "of-somebody"},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claims[0].Name}},
	}
	require.NoError(t, w.c.Create(w.ctx, theirs))
	require.NoError(t, w.c.Delete(w.ctx, get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")))
	w.sweepUp()
	left := list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items
	require.Len(t, left, 1, "a VolumeSnapshot of it is being made")
	require.Contains(t, left[0].Finalizers, protection)
	require.NoError(t, w.c.Delete(w.ctx, theirs))
	w.sweepUp()
	require.Empty(t, list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items)
	requireLiveVolume(t, w)
}

// TestInPlaceSurvivesAnyFault lets each call to the API server fail in turn.
func TestInPlaceSurvivesAnyFault(t *testing.T) {
	eachFault(t, inPlaceWorld, func(w *world) {
		op := w.run(w.downs, "dd")
		require.Equal(w.t, phase.Completed, op.Status.Phase, op.Status.Message)
		requireLiveVolume(w.t, w)
	})
}

// TestInPlaceInterruptedAtAnyTime: whatever ends the restore, and when, the user keeps the volume.
func TestInPlaceInterruptedAtAnyTime(t *testing.T) {
	interruptDownloads(t, inPlaceWorld, requireLiveVolume, map[string]func(w *world){
		"PVC of the mover pod deleted": func(w *world) {
			for _, claim := range list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items {
				require.NoError(w.t, w.c.Delete(w.ctx, &claim))
			}
			for _, pod := range list[corev1.PodList](w, client.InNamespace(veleroNamespace)).Items {
				require.NoError(w.t, w.c.Delete(w.ctx, &pod))
			}
			w.run(w.downs, "dd")
			w.sweepUp()
		},
	})
}

func TestInPlaceRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(w *world)
		want   string
	}{
		"a pod uses it":  {func(w *world) { require.NoError(w.t, w.c.Create(w.ctx, userPod("app-0"))) }, "pod app-0 uses PVC app/data"},
		"another volume": {asked(identity.ConfigVolumeHandle, "other"), `the image is of volume "other"`},
		"another PVC":    {asked(identity.ConfigInPlace, "other"), "deleted and created again since the restore began"},
		"unknown mode":   {asked(identity.ConfigInPlaceVolume, "yes"), `inPlaceVolume of the dataMoverConfig is "yes"`},
		"too small": {func(w *world) {
			dd := get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")
			dd.Spec.SnapshotSize++
			w.update(dd)
		}, "expand the PVC first"},
		"in charge of another operation": {func(w *world) {
			pv := get[corev1.PersistentVolume](w, "", "pv-live")
			other := identity.Operation{Kind: identity.KindDataDownload, Namespace: veleroNamespace, Name: "other", UID: "1"}
			pv.Labels, pv.Annotations = other.Mark(pv.Labels, pv.Annotations)
			w.update(pv)
		}, "still belongs to DataDownload/velero/other"},
	} {
		t.Run(name, func(t *testing.T) {
			w := inPlaceWorld(t)
			tc.change(w)
			op := w.run(w.downs, "dd")
			require.Equal(t, phase.Failed, op.Status.Phase)
			require.Contains(t, op.Status.Message, tc.want)
			require.Contains(t, op.Status.Message, "; nothing was written to the volume")
			require.Zero(t, w.pods)
			require.Empty(t, list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items)
			require.Len(t, list[corev1.PersistentVolumeList](w).Items, 1)
			require.True(t, w.volumes["live"])
		})
	}
}

// asked changes the DataDownload.
func asked(key, value string) func(w *world) {
	return func(w *world) {
		dd := get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd")
		dd.Spec.DataMoverConfig[key] = value
		w.update(dd)
	}
}

// TestInPlaceWaitsForDetach: after its last pod is gone, a volume stays attached for a while.
func TestInPlaceWaitsForDetach(t *testing.T) {
	volume := "pv-live"
	attachment := &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: "csi-1"},
		Spec:       storagev1.VolumeAttachmentSpec{NodeName: "node-1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume}},
	}
	w := inPlaceWorld(t, attachment)
	op := w.drive(w.downs, "dd", time.Minute)
	require.Equal(t, phase.New, op.Status.Phase)
	require.Contains(t, op.Status.Message, "still attached to node node-1")
	require.NoError(t, w.c.Delete(w.ctx, attachment))
	require.Equal(t, phase.Completed, w.run(w.downs, "dd").Status.Phase)
	requireLiveVolume(t, w)
}

// TestInPlaceOneAfterTheOther: two restores do not write one volume at once. The later one waits, and
// has the last word.
func TestInPlaceOneAfterTheOther(t *testing.T) {
	w := inPlaceWorld(t)
	second := get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd").DeepCopy()
	second.ObjectMeta = metav1.ObjectMeta{Namespace: veleroNamespace, Name: "dd2"}
	require.NoError(t, w.c.Create(w.ctx, second))
	for range 3 { // both are secured; both create their alias if nothing keeps them from it
		for _, name := range []string{"dd", "dd2"} {
			_, err := w.downs.Reconcile(w.ctx, requestFor(name))
			require.NoError(t, err)
		}
		w.step()
	}
	ends := false
	w.podEnds = func(*corev1.Pod) bool { return ends }
	w.drive(w.downs, "dd", 20*time.Second)
	op := w.drive(w.downs, "dd2", 20*time.Second)
	require.Equal(t, 1, w.pods)
	require.Contains(t, op.Status.Message, "DataDownload/velero/dd restores PVC app/data in place, too: it goes first")
	ends = true
	require.Equal(t, phase.Completed, w.run(w.downs, "dd").Status.Phase)
	require.Equal(t, phase.Completed, w.run(w.downs, "dd2").Status.Phase)
	require.Equal(t, 2, w.pods)
	requireLiveVolume(t, w)
}

// TestInPlaceMeetsAPod: a pod that comes before the mover pod runs ends the restore. One that comes
// later is reported, and the restore goes on to its end.
func TestInPlaceMeetsAPod(t *testing.T) {
	w := inPlaceWorld(t)
	w.stuck = true
	w.drive(w.downs, "dd", 10*time.Second)
	require.NoError(t, w.c.Create(w.ctx, userPod("app-0")))
	op := w.run(w.downs, "dd")
	require.Equal(t, phase.Failed, op.Status.Phase)
	require.Contains(t, op.Status.Message, "pod app-0 began to use PVC app/data before the restore did")
	require.Contains(t, op.Status.Message, unchanged)
	requireLiveVolume(t, w)

	w = inPlaceWorld(t)
	ends := false
	w.podEnds = func(*corev1.Pod) bool { return ends }
	w.drive(w.downs, "dd", 10*time.Second)
	require.Equal(t, 1, w.pods)
	require.NoError(t, w.c.Create(w.ctx, userPod("app-0")))
	op = w.drive(w.downs, "dd", 10*time.Second)
	require.Equal(t, phase.InProgress, op.Status.Phase)
	require.Contains(t, op.Status.Message, "pod app-0 wants PVC app/data while it is being restored")
	ends = true
	require.Equal(t, phase.Completed, w.run(w.downs, "dd").Status.Phase)
	requireLiveVolume(t, w)
}

// TestInPlaceWaitsBetweenAttempts: after a mover pod that has written, the next one waits until the
// pods are gone, for as long as that takes.
func TestInPlaceWaitsBetweenAttempts(t *testing.T) {
	w := inPlaceWorld(t)
	w.report = task.Report{Version: task.Version, Error: "input/output error", Class: fault.Passing, BytesWritten: 1}
	user := userPod("app-0")
	w.podEnds = func(*corev1.Pod) bool {
		require.NoError(t, client.IgnoreAlreadyExists(w.c.Create(w.ctx, user)))
		return true
	}
	op := w.drive(w.downs, "dd", 3*time.Hour)
	require.Equal(t, 1, w.pods)
	require.False(t, op.Status.Phase.Terminal(), op.Status.Message)
	require.Contains(t, op.Status.Message, "the restore is half done and goes on when nothing uses the volume any more")
	require.NoError(t, w.c.Delete(w.ctx, user))
	w.podEnds = func(*corev1.Pod) bool { return true }
	w.report = task.Report{Version: task.Version, VolumeSize: gibi}
	require.Equal(t, phase.Completed, w.run(w.downs, "dd").Status.Phase)
	require.Equal(t, 2, w.pods)
	requireLiveVolume(t, w)
}

// TestInPlaceSaysWhatItLeaves: an end without success says whether the volume can be used.
func TestInPlaceSaysWhatItLeaves(t *testing.T) {
	for name, tc := range map[string]struct {
		report task.Report
		cancel bool
		want   string
	}{
		"failed before the first write": {report: task.Report{Error: "refused", Untouched: true}, want: unchanged},
		"failed after it":               {report: task.Report{Error: "image is damaged", BytesWritten: 1}, want: halfRestored},
		"canceled":                      {cancel: true, want: halfRestored},
	} {
		t.Run(name, func(t *testing.T) {
			w := inPlaceWorld(t)
			tc.report.Version = task.Version
			w.report = tc.report
			w.podEnds = func(*corev1.Pod) bool { return !tc.cancel }
			if tc.cancel {
				w.drive(w.downs, "dd", 10*time.Second)
				w.cancel(get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd"))
			}
			op := w.run(w.downs, "dd")
			require.NotEqual(t, phase.Completed, op.Status.Phase)
			require.Contains(t, op.Status.Message, "; "+tc.want)
			requireLiveVolume(t, w)
		})
	}
}

// TestInPlaceSaysWhatItLeavesUnseen: what a mover pod does counts also if nobody has seen it do it.
func TestInPlaceSaysWhatItLeavesUnseen(t *testing.T) {
	w := inPlaceWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	for w.pods == 0 {
		w.reconcileTimes(w.downs, "dd", 1)
	}
	require.False(t, w.operation(w.downs, "dd").Status.Attempt.Started)
	w.cancel(get[velerov2alpha1.DataDownload](w, veleroNamespace, "dd"))
	require.Contains(t, w.run(w.downs, "dd").Status.Message, "canceled on request; "+halfRestored)
	requireLiveVolume(t, w)

	w = cbtWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	w.faults.refuse = func(verb string, object client.Object) error {
		if _, ok := object.(*snapshotv1.VolumeSnapshot); ok && verb == "create" {
			return errInjected
		}
		return nil
	}
	require.Contains(t, w.drive(w.downs, "dd", 2*time.Hour).Status.Message, "injected fault; "+halfRestored)
	w.sweepUp()
	requireLiveVolume(t, w)
}

// TestInPlaceRunsAfterItsEnd: the end was decided before the mover pod ran, and the manager was killed before it deleted
// the pod.
func TestInPlaceRunsAfterItsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		status corev1.PodStatus
		want   string
	}{
		"runs": {corev1.PodStatus{Phase: corev1.PodRunning}, halfRestored},
		"has run": {corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{{
			Name: exposer.ContainerName, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: metav1.Now(), ExitCode: 137}},
		}}}, halfRestored},
		"was deleted before it ran": {corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{{
			Name: exposer.ContainerName, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "ContainerStatusUnknown", ExitCode: 137}},
		}}}, unchanged},
		"waits": {corev1.PodStatus{}, unchanged},
	} {
		t.Run(name, func(t *testing.T) {
			w := inPlaceWorld(t)
			w.stuck = true
			op := w.drive(w.downs, "dd", 30*time.Second)
			pods := list[corev1.PodList](w, client.InNamespace(veleroNamespace)).Items
			require.Len(t, pods, 1)
			w.cancel(op.Download)
			w.faults.refuse = func(verb string, object client.Object) error {
				if _, ok := object.(*corev1.Pod); ok && verb == "delete" {
					return errInjected
				}
				return nil
			}
			op = w.drive(w.downs, "dd", 2*time.Second)
			require.Contains(t, op.Status.Outcome.Message, unchanged)
			pods[0].Status = c.status
			w.update(&pods[0])
			w.faults.refuse = nil
			op = w.run(w.downs, "dd")
			require.Equal(t, phase.Canceled, op.Status.Phase)
			require.Equal(t, "canceled on request; "+c.want, op.Status.Message)
			requireLiveVolume(t, w)
		})
	}
}

// TestAliasIsNeverDeletable: somebody has set the alias to Delete. Nothing is deleted until it is set
// back.
func TestAliasIsNeverDeletable(t *testing.T) {
	w := inPlaceWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	w.drive(w.downs, "dd", 10*time.Second)
	op := w.operation(w.downs, "dd")
	alias := get[corev1.PersistentVolume](w, "", op.AliasVolumeName())
	alias.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	w.update(alias)
	w.cancel(op.Download)
	op = w.drive(w.downs, "dd", 5*time.Minute)
	require.Contains(t, op.Status.Message, "the reclaim policy of alias PV "+alias.Name+" is Delete, want Retain")
	w.sweepUpWithErrors()
	require.True(t, w.volumes["live"])
	require.NotNil(t, get[corev1.PersistentVolumeClaim](w, veleroNamespace, op.ObjectName()))

	alias = get[corev1.PersistentVolume](w, "", op.AliasVolumeName())
	alias.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	w.update(alias)
	w.sweepUp()
	requireLiveVolume(t, w)
}

// sweepUpWithErrors runs a sweep that cannot do its work.
func (w *world) sweepUpWithErrors() {
	w.t.Helper()
	for range 3 {
		_, err := w.sweep.sweep(w.ctx)
		require.Error(w.t, err)
		w.step()
	}
}

// TestBaseStaysDuringARestoreInPlace: a restore may ask for what has changed since it.
func TestBaseStaysDuringARestoreInPlace(t *testing.T) {
	w := inPlaceWorld(t)
	dd := w.operation(w.downs, "dd")
	dd.Download.Spec.TargetVolume.Namespace = "copy" // of a mapping: the bases are those of the source
	n, err := w.sweep.needsOf(w.ctx, owners{downloads: []*operation.View{dd}})
	require.NoError(t, err)
	require.True(t, n.uploading[client.ObjectKey{Namespace: appNamespace, Name: "data"}])
	dd.Status.Phase = phase.Completed
	n, err = w.sweep.needsOf(w.ctx, owners{downloads: []*operation.View{dd}})
	require.NoError(t, err)
	require.Empty(t, n.uploading)
}
