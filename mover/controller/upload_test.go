package controller

import (
	"fmt"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
)

// uploadWorld has a DataUpload as Velero's built-in action makes it: the VolumeSnapshot is in
// the namespace of the application, with a content of policy Delete.
func uploadWorld(t *testing.T, more ...client.Object) *world {
	t.Helper()
	w := newWorld(t, append(uploadObjects(), more...)...)
	w.volumes["volume-src"] = true
	w.snapshots["snapshot-1"] = true
	return w
}

func uploadObjects() []client.Object {
	class, claim, content, handle, ready := "snapclass", "data", "snapcontent-1", "volume-src", true
	snapshotHandle, creation, restoreSize := "snapshot-1", time.Date(2026, 3, 1, 11, 59, 0, 5, time.UTC).UnixNano(), int64(gibi)
	filesystem := corev1.PersistentVolumeFilesystem
	return []client.Object{
		&velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "backup", UID: "backup-uid"}},
		&corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: claim, UID: "data-uid"},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-data", VolumeMode: &filesystem},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
		&corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-data"},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:                      corev1.ResourceList{corev1.ResourceStorage: quantity(2 * gibi)},
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
				PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle}},
				ClaimRef:                      &corev1.ObjectReference{Namespace: appNamespace, Name: claim, UID: "data-uid"},
				VolumeMode:                    &filesystem,
			},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
		},
		&snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: "snap", UID: "snap-uid", Finalizers: []string{finalizerVS}},
			Spec:       snapshotv1.VolumeSnapshotSpec{VolumeSnapshotClassName: &class, Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}},
			Status:     &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, ReadyToUse: &ready},
		},
		&snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{
				Name: content, Finalizers: []string{finalizerContent},
				Annotations: map[string]string{"snapshot.storage.kubernetes.io/deletion-secret-name": "secret"},
			},
			Spec: snapshotv1.VolumeSnapshotContentSpec{
				Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
				Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: appNamespace, Name: "snap", UID: "snap-uid"},
			},
			Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &snapshotHandle, CreationTime: &creation, RestoreSize: &restoreSize, ReadyToUse: &ready},
		},
		&velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: veleroNamespace, Name: "du",
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "velero.io/v1", Kind: "Backup", Name: "backup", UID: "backup-uid"}},
			},
			Spec: velerov2alpha1.DataUploadSpec{
				SnapshotType: velerov2alpha1.SnapshotTypeCSI,
				CSISnapshot:  &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: "snap", StorageClass: "fast", SnapshotClass: class, Driver: driver},
				SourcePVC:    claim, SourceNamespace: appNamespace, DataMover: identity.DataMover,
				BackupStorageLocation: "default", OperationTimeout: metav1.Duration{Duration: 10 * time.Minute},
			},
		},
	}
}

func (w *world) dataUpload() *velerov2alpha1.DataUpload {
	w.t.Helper()
	return get[velerov2alpha1.DataUpload](w, veleroNamespace, "du")
}

func TestUpload(t *testing.T) {
	w := uploadWorld(t)
	var request task.Request
	w.podEnds = func(pod *corev1.Pod) bool {
		var err error
		request, err = task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(t, err)
		return true
	}
	w.run(w.uploads, "du")

	du := w.dataUpload()
	require.Equal(t, velerov2alpha1.DataUploadPhaseCompleted, du.Status.Phase, du.Status.Message)
	require.Equal(t, "repo-snapshot-1", du.Status.SnapshotID)
	require.Equal(t, int64(gibi), du.Status.Progress.BytesDone)
	require.Equal(t, "node-1", du.Status.Node)
	require.NotNil(t, du.Status.AcceptedTimestamp)
	require.NotNil(t, du.Status.StartTimestamp)
	require.NotNil(t, du.Status.CompletionTimestamp)
	result := *du.Status.DataMoverResult
	require.Equal(t, "Full", result["kind"])
	require.Equal(t, "NoParent", result["reason"])
	require.Equal(t, "1073741824", result["volumeSize"])

	require.Equal(t, "app/data", request.Volume.String())
	require.Equal(t, "app-default-kopia", request.BackupRepository)
	require.Equal(t, "volume-src", request.Backup.VolumeHandle)
	require.Equal(t, "snapshot-1", request.Backup.SnapshotHandle)
	require.Equal(t, time.Date(2026, 3, 1, 11, 59, 0, 5, time.UTC), request.Backup.SnapshotTime)
	require.Equal(t, "auto", request.Backup.ParentSnapshot)
	require.NotEmpty(t, request.Backup.MetadataUnavailable)
	w.requireNothingLeft([]string{"volume-src"}, nil)
	require.Equal(t, 1, w.pods)
}

// TestUploadSurvivesAnyFault lets each call to the API server fail in turn, before and after
// it had its effect. The result must be one correct backup, and nothing may be left.
func TestUploadSurvivesAnyFault(t *testing.T) {
	eachFault(t, uploadWorld, func(w *world) {
		w.run(w.uploads, "du")
		du := w.dataUpload()
		require.Equal(w.t, velerov2alpha1.DataUploadPhaseCompleted, du.Status.Phase, du.Status.Message)
		require.Equal(w.t, "repo-snapshot-1", du.Status.SnapshotID)
		w.requireNothingLeft([]string{"volume-src"}, nil)
		require.Equal(w.t, 1, w.pods)
	})
}

// eachFault runs a scenario once for each call that it makes, and for both ways in which a
// call can fail.
func eachFault(t *testing.T, makeWorld func(*testing.T, ...client.Object) *world, scenario func(*world)) {
	t.Helper()
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for _, after := range []bool{false, true} {
		for n := 1; ; n += stride {
			fired := false
			t.Run(fmt.Sprintf("call %d, after=%t", n, after), func(t *testing.T) {
				w := makeWorld(t)
				w.faults.failAt, w.faults.after = n, after
				scenario(w)
				fired = w.faults.fired
			})
			if t.Failed() {
				return
			}
			if !fired {
				require.Greater(t, n, 20, "the scenario made too few calls to mean anything")
				break
			}
		}
	}
}

// TestUploadCanceledAtAnyTime cancels after each number of reconciliations.
func TestUploadCanceledAtAnyTime(t *testing.T) {
	for n := range 12 {
		t.Run(fmt.Sprintf("after %d", n), func(t *testing.T) {
			w := uploadWorld(t)
			w.podEnds = func(*corev1.Pod) bool { return n > 8 }
			w.reconcileTimes(w.uploads, "du", n)
			du := w.dataUpload()
			w.cancel(du)
			began := w.clock
			op := w.run(w.uploads, "du")
			if du.Status.SnapshotID == "" {
				require.Equal(t, phase.Canceled, op.Status.Phase, op.Status.Message)
			}
			require.Less(t, w.clock.Sub(began), 20*time.Second)
			w.requireNothingLeft([]string{"volume-src"}, nil)
		})
	}
}

// TestUploadCanceledTooLate: the manager is away while the mover pod saves the image, and while the upload is
// canceled, as Velero does when its server starts again. If the upload were Canceled, nobody would know of the
// image when the backup is deleted.
func TestUploadCanceledTooLate(t *testing.T) {
	w := uploadWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	w.reconcileTimes(w.uploads, "du", 8)
	require.Equal(t, velerov2alpha1.DataUploadPhaseInProgress, w.dataUpload().Status.Phase)
	w.podEnds = func(*corev1.Pod) bool { return true }
	w.step()
	w.cancel(w.dataUpload())
	op := w.run(w.uploads, "du")
	require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
	require.Equal(t, "repo-snapshot-1", w.dataUpload().Status.SnapshotID)
	w.requireNothingLeft([]string{"volume-src"}, nil)
}

func (w *world) reconcileTimes(e *engine, name string, n int) {
	w.t.Helper()
	for range n {
		_, err := e.Reconcile(w.ctx, requestFor(name))
		require.NoError(w.t, err)
		w.step()
	}
}

// TestUploadDeletedAtAnyTime deletes the DataUpload. The sweep releases what it had.
func TestUploadDeletedAtAnyTime(t *testing.T) {
	for n := 1; n < 12; n++ {
		t.Run(fmt.Sprintf("after %d", n), func(t *testing.T) {
			w := uploadWorld(t)
			w.podEnds = func(*corev1.Pod) bool { return n > 8 }
			w.reconcileTimes(w.uploads, "du", n)
			require.NoError(t, w.c.Delete(w.ctx, w.dataUpload()))
			_, err := w.uploads.Reconcile(w.ctx, requestFor("du"))
			require.NoError(t, err)
			w.sweepUp()
			w.requireNothingLeft([]string{"volume-src"}, nil)
		})
	}
}

func TestUploadFails(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(w *world)
		want   string
	}{
		"worker error": {
			change: func(w *world) {
				w.report = task.Report{Version: task.Version, Error: "read device: input/output error"}
			},
			want: "read device: input/output error",
		},
		"snapshot vanished": {
			change: func(w *world) {
				content := get[snapshotv1.VolumeSnapshotContent](w, "", "snapcontent-1")
				content.Finalizers = nil
				w.update(content)
				require.NoError(w.t, w.c.Delete(w.ctx, content))
				vs := get[snapshotv1.VolumeSnapshot](w, appNamespace, "snap")
				vs.Finalizers = nil
				w.update(vs)
				require.NoError(w.t, w.c.Delete(w.ctx, vs))
				delete(w.snapshots, "snapshot-1")
			},
			want: "VolumeSnapshot app/snap has vanished",
		},
		"malformed backup type": {
			change: func(w *world) {
				backup := get[velerov1.Backup](w, veleroNamespace, "backup")
				backup.Annotations = map[string]string{identity.AnnotationBackupType: "differential"}
				w.update(backup)
			},
			want: `"differential"`,
		},
		"snapshot never ready": {
			change: func(w *world) {
				content := get[snapshotv1.VolumeSnapshotContent](w, "", "snapcontent-1")
				no := false
				content.Status.ReadyToUse = &no
				w.update(content)
				w.uploads.now = func() time.Time { return w.clock.Add(30 * time.Minute) }
			},
			want: "could not start within 30m0s: VolumeSnapshot app/snap is not ready to use yet",
		},
		"no location": {
			change: func(w *world) {
				require.NoError(w.t, w.c.Delete(w.ctx, get[velerov1.BackupStorageLocation](w, veleroNamespace, "default")))
			},
			want: "BackupStorageLocation default does not exist",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := uploadWorld(t)
			tc.change(w)
			op := w.run(w.uploads, "du")
			require.Equal(t, phase.Failed, op.Status.Phase)
			require.Contains(t, op.Status.Message, tc.want)
			w.requireNothingLeft([]string{"volume-src"}, nil)
		})
	}
}

// TestUploadRetriesLostPods deletes mover pods as an eviction does.
func TestUploadRetriesLostPods(t *testing.T) {
	for _, tc := range []struct {
		lost int
		want phase.Phase
	}{{1, phase.Completed}, {2, phase.Completed}, {3, phase.Failed}} {
		t.Run(fmt.Sprintf("%d lost", tc.lost), func(t *testing.T) {
			w := uploadWorld(t)
			w.podEnds = func(pod *corev1.Pod) bool {
				if w.pods > tc.lost {
					return true
				}
				if w.dataUpload().Annotations[identity.AnnotationAttempt] != "" && w.operation(w.uploads, "du").Status.Attempt.Started {
					require.NoError(t, w.c.Delete(w.ctx, pod))
				}
				return false
			}
			op := w.run(w.uploads, "du")
			require.Equal(t, tc.want, op.Status.Phase, op.Status.Message)
			w.requireNothingLeft([]string{"volume-src"}, nil)
		})
	}
}

func TestUploadChoosesParent(t *testing.T) {
	for name, tc := range map[string]struct {
		config     map[string]string
		annotation string
		want       string
	}{
		"nothing said":          {want: "auto"},
		"annotation":            {annotation: "FULL", want: "none"},
		"our own DataUpload":    {config: map[string]string{"parentSnapshot": "auto"}, annotation: "full", want: "auto"},
		"a repo snapshot by ID": {config: map[string]string{"parentSnapshot": "k123"}, want: "k123"},
	} {
		t.Run(name, func(t *testing.T) {
			w := uploadWorld(t)
			if tc.annotation != "" {
				backup := get[velerov1.Backup](w, veleroNamespace, "backup")
				backup.Annotations = map[string]string{identity.AnnotationBackupType: tc.annotation}
				w.update(backup)
			}
			du := w.dataUpload()
			du.Spec.DataMoverConfig = tc.config
			w.update(du)
			w.podEnds = func(pod *corev1.Pod) bool {
				request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
				require.NoError(t, err)
				require.Equal(t, tc.want, request.Backup.ParentSnapshot)
				return true
			}
			require.Equal(t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
		})
	}
}

// TestOthersAreIgnored: a DataUpload of the built-in mover is not ours.
func TestOthersAreIgnored(t *testing.T) {
	w := uploadWorld(t)
	du := w.dataUpload()
	du.Spec.DataMover = "velero"
	w.update(du)
	w.reconcileTimes(w.uploads, "du", 3)
	require.Empty(t, w.dataUpload().Status.Phase)
	require.NotNil(t, get[snapshotv1.VolumeSnapshot](w, appNamespace, "snap"))
}

// TestReasonsAreSeen looks into the status, an event and the metrics. The scenarios look into
// the log.
func TestReasonsAreSeen(t *testing.T) {
	for reason, severity := range map[string]string{"DeltaFailed": "Normal", "AuditFailed": "Warning"} {
		t.Run(reason, func(t *testing.T) {
			w := uploadWorld(t)
			w.report.Reason, w.report.Reasons, w.report.Detail = reason, []string{reason, "AllocatedFailed"}, "the storage said so"
			w.report.Resumptions, w.report.BytesAudited = 7, 16<<20
			w.run(w.uploads, "du")
			result := *w.dataUpload().Status.DataMoverResult
			require.Equal(t, reason, result["reason"])
			require.Equal(t, reason+",AllocatedFailed", result["reasons"])
			require.Equal(t, "the storage said so", result["detail"])
			require.Equal(t, "7", result["resumptions"])
			require.Equal(t, "16777216", result["bytesAudited"])
			recorder, ok := w.uploads.recorder.(*events.FakeRecorder)
			require.True(t, ok)
			require.Equal(t, severity+" "+reason+" Full image: the storage said so", <-recorder.Events)
			counters := w.uploads.metrics
			require.EqualValues(t, 1, testutil.ToFloat64(counters.images.WithLabelValues("Full", reason)))
			require.EqualValues(t, 1, testutil.ToFloat64(counters.fallbacks.WithLabelValues(reason)))
			require.EqualValues(t, 1, testutil.ToFloat64(counters.fallbacks.WithLabelValues("AllocatedFailed")))
			require.EqualValues(t, 16<<20, testutil.ToFloat64(counters.bytes.WithLabelValues(identity.KindDataUpload, "bytesAudited")))
		})
	}
}

// TestDetoursAreSeen: a volume that KubeVirt or a group should have had has a reason in the result,
// an event and the metric.
func TestDetoursAreSeen(t *testing.T) {
	w := uploadWorld(t)
	w.report.Reason = ""
	du := w.dataUpload()
	du.Spec.DataMoverConfig = map[string]string{identity.ConfigVMReason: "VMNotRunning", identity.ConfigGroupReason: "GroupOfOne"}
	w.update(du)
	w.run(w.uploads, "du")
	result := *w.dataUpload().Status.DataMoverResult
	require.Equal(t, "VMNotRunning GroupOfOne", result["vmReason"]+" "+result["groupReason"])
	recorder, ok := w.uploads.recorder.(*events.FakeRecorder)
	require.True(t, ok)
	for _, reason := range []string{"VMNotRunning", "GroupOfOne"} {
		require.Equal(t, "Normal "+reason+" the storage took a snapshot of the volume by itself", <-recorder.Events)
		require.EqualValues(t, 1, testutil.ToFloat64(w.uploads.metrics.fallbacks.WithLabelValues(reason)))
	}
}

// anotherUpload is a later DataUpload of the same volume.
func anotherUpload() []client.Object {
	var objects []client.Object
	for _, object := range uploadObjects() {
		switch o := object.(type) {
		case *snapshotv1.VolumeSnapshot:
			content := "snapcontent-2"
			o.Name, o.UID, o.Status.BoundVolumeSnapshotContentName = "snap-2", "snap-uid-2", &content
		case *snapshotv1.VolumeSnapshotContent:
			handle, creation := "snapshot-2", *o.Status.CreationTime+time.Minute.Nanoseconds()
			o.Name, o.Spec.VolumeSnapshotRef.Name, o.Spec.VolumeSnapshotRef.UID = "snapcontent-2", "snap-2", "snap-uid-2"
			o.Status.SnapshotHandle, o.Status.CreationTime = &handle, &creation
		case *velerov2alpha1.DataUpload:
			o.Name, o.Spec.CSISnapshot.VolumeSnapshot = "du-2", "snap-2"
		default:
			continue
		}
		objects = append(objects, object)
	}
	return objects
}

// TestUploadsOfOneVolume: two backups of one volume at once do not disturb each other, and
// each mover pod gets its own snapshot.
func TestUploadsOfOneVolume(t *testing.T) {
	w := uploadWorld(t, anotherUpload()...)
	w.snapshots["snapshot-2"] = true
	handles := map[string]string{}
	w.podEnds = func(pod *corev1.Pod) bool {
		request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(t, err)
		handles[request.Name] = request.Backup.SnapshotHandle
		require.Empty(t, request.Backup.Failed)
		return len(handles) == 2 // both run
	}
	for range 30 {
		for _, name := range []string{"du", "du-2"} {
			_, err := w.uploads.Reconcile(w.ctx, requestFor(name))
			require.NoError(t, err)
		}
		w.step()
	}
	require.Equal(t, map[string]string{"du": "snapshot-1", "du-2": "snapshot-2"}, handles)
	for name := range handles {
		require.Equal(t, phase.Completed, w.operation(w.uploads, name).Status.Phase)
	}
	w.requireNothingLeft([]string{"volume-src"}, nil)
}

// TestUploadNamesThoseThatFailed: a mover pod learns which uploads of its volume are no
// backups, whatever they saved.
func TestUploadNamesThoseThatFailed(t *testing.T) {
	w := uploadWorld(t, anotherUpload()...)
	w.snapshots["snapshot-2"] = true
	w.cancel(w.dataUpload())
	w.run(w.uploads, "du")
	canceled := w.dataUpload().UID
	w.podEnds = func(pod *corev1.Pod) bool {
		request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(t, err)
		require.Equal(t, []string{string(canceled)}, request.Backup.Failed)
		return true
	}
	require.Equal(t, phase.Completed, w.run(w.uploads, "du-2").Status.Phase)
	w.requireNothingLeft([]string{"volume-src"}, nil)
}
