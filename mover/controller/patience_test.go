package controller

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/task"
)

// drive reconciles and steps for a time, or until the operation ends.
func (w *world) drive(e *engine, name string, d time.Duration) *operation.View {
	w.t.Helper()
	const long = time.Hour
	for end := w.clock.Add(d); w.clock.Before(end); w.step() {
		if d >= long {
			w.clock = w.clock.Add(30 * time.Second)
		}
		_, _ = e.Reconcile(w.ctx, requestFor(name)) // its errors are part of the tests
		if op := w.operation(e, name); op.Status.Phase.Terminal() {
			return op
		}
	}
	return w.operation(e, name)
}

// TestOutageOfTheObjectStore: an object store that is away for longer than three attempts take
// ends nothing. What was read in all attempts is in the result.
func TestOutageOfTheObjectStore(t *testing.T) {
	w := uploadWorld(t)
	success := w.report
	w.report = task.Report{Version: task.Version, Error: "put chunk 7: connection refused", Class: fault.Outage, BytesRead: 100}
	op := w.drive(w.uploads, "du", 10*time.Minute)
	require.Equal(t, phase.InProgress, op.Status.Phase, op.Status.Message)
	attempts := op.Status.Attempt.Number
	require.Greater(t, attempts, 5)
	require.Contains(t, op.Status.Attempt.Reason, "connection refused")

	w.report = success
	op = w.drive(w.uploads, "du", 10*time.Minute)
	require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
	require.NotEqual(t, "7", (*op.Upload.Status.DataMoverResult)["bytesRead"], "the other attempts have read as well")
	w.requireNothingLeft([]string{"volume-src"}, nil)
}

func TestOutageThatLasts(t *testing.T) {
	w := uploadWorld(t)
	w.report = task.Report{Version: task.Version, Error: "put chunk 7: connection refused", Class: fault.Outage}
	op := w.drive(w.uploads, "du", 2*time.Hour)
	require.Equal(t, phase.Failed, op.Status.Phase)
	require.Contains(t, op.Status.Message, "gave up after 1h0m0s without an answer of the object store: put chunk 7: connection refused")
	w.sweepUp()
	w.requireNothingLeft([]string{"volume-src"}, nil)
}

// TestProgressComesFromTheLog: the manager reads how far a mover pod is, and what it waits for.
func TestProgressComesFromTheLog(t *testing.T) {
	w := uploadWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	line, err := task.Progress{Done: 5, Total: 9, Read: 4, Waiting: "waits for the service"}.Line()
	require.NoError(t, err)
	w.log = line + "\n"
	op := w.drive(w.uploads, "du", time.Minute)
	require.Equal(t, phase.InProgress, op.Status.Phase)
	require.EqualValues(t, 5, op.Status.BytesDone)
	require.EqualValues(t, 9, op.Status.BytesTotal)
	require.EqualValues(t, 4, op.Status.Attempt.BytesRead)
	require.Equal(t, "waits for the service", op.Status.Message)
}

// TestReportComesFromTheLog: the manager does not wait until the kubelet knows that a mover pod has ended. Only
// a report of success is taken from the log: what an end without success means, the status of the pod says as well.
func TestReportComesFromTheLog(t *testing.T) {
	for _, kind := range []string{identity.KindDataUpload, identity.KindDataDownload} {
		t.Run(kind, func(t *testing.T) {
			w, name := uploadWorld(t), "du"
			e, left := w.uploads, []string{"volume-src"}
			if kind == identity.KindDataDownload {
				w, name = downloadWorld(t), "dd"
				e, left = w.downs, nil
			}
			w.podEnds = func(*corev1.Pod) bool { return false }
			failed := w.report
			failed.Error = "input/output error"
			text, err := failed.Encode()
			require.NoError(t, err)
			w.log = task.ReportLine(text) + "\n"
			op := w.drive(e, name, time.Minute)
			require.Equal(t, phase.InProgress, op.Status.Phase)
			require.Nil(t, op.Status.Outcome)

			text, err = w.report.Encode()
			require.NoError(t, err)
			w.log = task.ReportLine(text) + "\n"
			op = w.drive(e, name, time.Minute)
			require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
			require.Equal(t, 1, w.pods)
			if kind == identity.KindDataUpload {
				require.Equal(t, "repo-snapshot-1", w.dataUpload().Status.SnapshotID)
				w.requireNothingLeft(left, nil)
			}
		})
	}
}

// TestOneErrorEndsNothing: a queued operation that is hours old meets one failed request.
func TestOneErrorEndsNothing(t *testing.T) {
	for _, kind := range []string{identity.KindDataUpload, identity.KindDataDownload} {
		t.Run(kind, func(t *testing.T) {
			w, name := uploadWorld(t), "du"
			e := w.uploads
			if kind == identity.KindDataDownload {
				w, name = downloadWorld(t), "dd"
				e = w.downs
			}
			w.clock = w.clock.Add(5 * time.Hour)
			failing := true
			w.faults.refuse = func(verb string, object client.Object) error {
				switch object.(type) {
				case *snapshotv1.VolumeSnapshot, *corev1.PersistentVolumeClaim:
					if failing && verb == "get" {
						return errors.New("etcdserver: request timed out")
					}
				}
				return nil
			}
			op := w.drive(e, name, 10*time.Second)
			require.Equal(t, phase.New, op.Status.Phase, op.Status.Message)
			require.Contains(t, op.Status.Message, "etcdserver: request timed out")
			failing = false
			op = w.drive(e, name, 5*time.Minute)
			require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
		})
	}
}

// TestQuotaIsAQueue: a pod that a quota has no room for waits, however long that takes.
func TestQuotaIsAQueue(t *testing.T) {
	w := uploadWorld(t)
	full := true
	w.faults.refuse = func(verb string, object client.Object) error {
		if pod, ok := object.(*corev1.Pod); ok && full && verb == "create" {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, pod.Name, errors.New("exceeded quota: pods, requested: pods=1"))
		}
		return nil
	}
	op := w.drive(w.uploads, "du", 2*time.Hour)
	require.Equal(t, phase.Accepted, op.Status.Phase, op.Status.Message)
	require.Contains(t, op.Status.Message, "exceeded quota")
	full = false
	op = w.drive(w.uploads, "du", 5*time.Minute)
	require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
}

// TestRetainingIsNotGivenUp: a webhook refuses for longer than a release may take. The base of
// the next backup is kept all the same.
func TestRetainingIsNotGivenUp(t *testing.T) {
	w := retainingWorld(policy.RetentionAlways)(t)
	down := true
	w.faults.refuse = func(verb string, object client.Object) error {
		if content, ok := object.(*snapshotv1.VolumeSnapshotContent); ok && down && verb == "patch" && content.Labels[identity.LabelRetained] != "" {
			return errors.New("failed calling webhook")
		}
		return nil
	}
	op := w.drive(w.uploads, "du", 15*time.Minute)
	require.Equal(t, phase.InProgress, op.Status.Phase, op.Status.Message)
	require.Contains(t, op.Status.Message, "failed calling webhook")
	require.Contains(t, op.Status.Message, "the data is complete and is kept")
	down = false
	op = w.drive(w.uploads, "du", time.Minute)
	require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
	require.NotEmpty(t, op.Status.Retained)
}

// TestLateHandOver: a finished restore is not thrown away because its hand-over takes longer
// than the backup allowed for snapshots.
func TestLateHandOver(t *testing.T) {
	w := downloadWorld(t)
	recorder := events.NewFakeRecorder(1000)
	w.downs.recorder = recorder
	held := true
	w.faults.refuse = func(verb string, object client.Object) error {
		if pv, ok := object.(*corev1.PersistentVolume); ok && held && verb == "create" && strings.HasPrefix(pv.Name, "blockmover-restored-") {
			return errors.New("the server is currently unable to handle the request")
		}
		return nil
	}
	op := w.drive(w.downs, "dd", time.Hour)
	require.Equal(t, phase.InProgress, op.Status.Phase, op.Status.Message)
	require.Contains(t, op.Status.Message, "the data is complete and is kept")
	late := 0
	for len(recorder.Events) > 0 {
		if strings.Contains(<-recorder.Events, "HandOverLate") {
			late++
		}
	}
	require.Equal(t, 1, late, "it is said once")
	held = false
	op = w.drive(w.downs, "dd", 5*time.Minute)
	require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
}

// TestWhyAMoverPodDoesNotRun: the message has the words of whoever knows it. A volume that the
// driver refuses ends the operation within a minute.
func TestWhyAMoverPodDoesNotRun(t *testing.T) {
	for name, tc := range map[string]struct {
		reason, message string
		want            phase.Phase
	}{
		"mount": {"FailedMount", `MountVolume.SetUp failed: secret "velero-aws" not found`, phase.Accepted},
		"busy":  {"ProvisioningFailed", "rpc error: code = DeadlineExceeded desc = the array is slow", phase.Accepted},
		"refused": {
			"ProvisioningFailed", `failed to provision volume with StorageClass "fast": rpc error: code = InvalidArgument desc = snapshot has volume mode Filesystem, request Block`,
			phase.Failed,
		},
		"no class": {"ProvisioningFailed", `storageclass.storage.k8s.io "slow" not found`, phase.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			w := uploadWorld(t)
			w.stuck = true
			w.drive(w.uploads, "du", 10*time.Second)
			pods := list[corev1.PodList](w, client.InNamespace(veleroNamespace)).Items
			require.Len(t, pods, 1)
			for i, text := range []string{"an older one", tc.message} {
				require.NoError(t, w.c.Create(w.ctx, &corev1.Event{
					ObjectMeta:     metav1.ObjectMeta{Namespace: veleroNamespace, Name: fmt.Sprint("event-", i)},
					InvolvedObject: corev1.ObjectReference{Name: pods[0].Name}, Type: corev1.EventTypeWarning, Reason: tc.reason, Message: text,
					LastTimestamp: metav1.NewTime(w.clock.Add(time.Duration(i) * time.Second)),
				}))
			}
			op := w.drive(w.uploads, "du", time.Minute)
			require.Equal(t, tc.want, op.Status.Phase, op.Status.Message)
			require.Contains(t, op.Status.Message, tc.reason+": "+tc.message)
			require.NotContains(t, op.Status.Message, "older")
		})
	}
}

func TestShortenedEvents(t *testing.T) {
	require.Equal(t, "short", shorten("short"))
	long := strings.Repeat("wörter ", 300)
	got := shorten(long)
	require.LessOrEqual(t, len(got), maxNote)
	require.True(t, strings.HasSuffix(got, "wörter … (the status has the whole text)"), got)
	require.LessOrEqual(t, len(shorten(strings.Repeat("x", 5000))), maxNote)
}

// TestFailureIsSeenOnTheBackup: an administrator looks at the Backup, and not at its DataUploads.
func TestFailureIsSeenOnTheBackup(t *testing.T) {
	w := uploadWorld(t)
	recorder, _ := w.uploads.recorder.(*events.FakeRecorder)
	du := get[velerov2alpha1.DataUpload](w, veleroNamespace, "du")
	du.OwnerReferences = []metav1.OwnerReference{{APIVersion: "velero.io/v1", Kind: "Backup", Name: "nightly", UID: "backup-uid"}}
	du.Spec.SnapshotType = "other"
	w.update(du)
	require.Equal(t, phase.Failed, w.run(w.uploads, "du").Status.Phase)
	var notes []string
	for len(recorder.Events) > 0 {
		notes = append(notes, <-recorder.Events)
	}
	require.Contains(t, strings.Join(notes, "\n"), `Warning VolumeFailed PVC app/data: `)
	require.Equal(t, &corev1.ObjectReference{APIVersion: "velero.io/v1", Kind: "Backup", Namespace: veleroNamespace, Name: "nightly", UID: "backup-uid"},
		velerosObject(get[velerov2alpha1.DataUpload](w, veleroNamespace, "du")))
}
