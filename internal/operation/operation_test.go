package operation

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware-tanzu/velero/pkg/apis/velero/shared"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/policy"
)

var (
	noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	both = []string{identity.KindDataUpload, identity.KindDataDownload}
)

func at(minutes int) *metav1.Time {
	return &metav1.Time{Time: noon.Add(time.Duration(minutes) * time.Minute)}
}

// objects are a DataUpload and a DataDownload with the same content.
func objects(annotations map[string]string) map[string]client.Object {
	meta := metav1.ObjectMeta{
		Namespace: "velero", Name: "a", UID: "uid-a", CreationTimestamp: *at(0), Annotations: annotations,
	}
	progress := shared.DataMoveOperationProgress{BytesDone: 3, TotalBytes: 7}
	timeout := metav1.Duration{Duration: time.Hour}
	return map[string]client.Object{
		identity.KindDataUpload: &velerov2alpha1.DataUpload{
			ObjectMeta: meta,
			Spec:       velerov2alpha1.DataUploadSpec{DataMover: identity.DataMover, OperationTimeout: timeout},
			Status: velerov2alpha1.DataUploadStatus{
				Phase: "InProgress", Message: "m", Node: "n", Progress: progress,
				AcceptedTimestamp: at(1), StartTimestamp: at(2), CompletionTimestamp: at(3),
			},
		},
		identity.KindDataDownload: &velerov2alpha1.DataDownload{
			ObjectMeta: meta,
			Spec:       velerov2alpha1.DataDownloadSpec{DataMover: identity.DataMover, OperationTimeout: timeout},
			Status: velerov2alpha1.DataDownloadStatus{
				Phase: "InProgress", Message: "m", Node: "n", Progress: progress,
				AcceptedTimestamp: at(1), StartTimestamp: at(2), CompletionTimestamp: at(3),
			},
		},
	}
}

// empty returns an object of a kind that has nothing but its name and data mover.
func empty(kind, name string) client.Object {
	meta := metav1.ObjectMeta{Namespace: "velero", Name: name}
	if kind == identity.KindDataUpload {
		return &velerov2alpha1.DataUpload{ObjectMeta: meta, Spec: velerov2alpha1.DataUploadSpec{DataMover: identity.DataMover}}
	}
	return &velerov2alpha1.DataDownload{ObjectMeta: meta, Spec: velerov2alpha1.DataDownloadSpec{DataMover: identity.DataMover}}
}

func newClient(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, velerov2alpha1.AddToScheme(scheme))
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
}

// find requires that there is an operation named a.
func find(t *testing.T, c client.Client, kind string) *View {
	t.Helper()
	v, err := Find(t.Context(), c, kind, client.ObjectKey{Namespace: "velero", Name: "a"})
	require.NoError(t, err)
	require.NotNil(t, v)
	return v
}

func TestOf(t *testing.T) {
	for kind, object := range objects(map[string]string{
		identity.AnnotationAttempt:    `{"number":2,"started":true}`,
		identity.AnnotationOutcome:    `{"phase":"Completed","at":"2026-03-01T12:00:00Z"}`,
		identity.AnnotationSecured:    "true",
		identity.AnnotationFilesystem: "xfs",
		identity.AnnotationRetention:  "always",
		identity.AnnotationRetained:   `{"name":"pair"}`,
		identity.AnnotationVMBackup:   `{"attempt":1}`,
	}) {
		t.Run(kind, func(t *testing.T) {
			v := Of(object)
			require.NoError(t, v.Damage)
			require.Equal(t, identity.Operation{Kind: kind, Namespace: "velero", Name: "a", UID: "uid-a"}, v.Operation)
			require.Same(t, object, v.Object())
			require.Equal(t, client.ObjectKeyFromObject(object), v.Key())
			require.Equal(t, identity.DataMover, v.DataMover)
			require.Equal(t, noon, v.Created)
			require.Equal(t, time.Hour, v.Timeout)
			require.False(t, v.Cancel)
			require.Equal(t, Status{
				Phase: phase.InProgress, Message: "m", Node: "n",
				Accepted: at(1).Time, Started: at(2).Time, Completed: at(3).Time,
				BytesDone: 3, BytesTotal: 7,
				Attempt: phase.Attempt{Number: 2, Started: true},
				Outcome: &phase.Outcome{Phase: phase.Completed, At: noon},
				Secured: true, Filesystem: "xfs", Retention: policy.RetentionAlways, Retained: `{"name":"pair"}`, VMBackup: `{"attempt":1}`,
			}, v.Status)
		})
	}
	require.Nil(t, Of(&corev1.Pod{}))
}

func TestOfDefaults(t *testing.T) {
	for _, kind := range both {
		v := Of(empty(kind, "a"))
		require.NoError(t, v.Damage)
		require.Equal(t, Status{Phase: phase.New, Attempt: phase.Attempt{Number: 1}}, v.Status)
		require.Equal(t, 10*time.Minute, v.Timeout)

		deleted := empty(kind, "a")
		deleted.SetDeletionTimestamp(at(1))
		require.True(t, Of(deleted).Cancel)
	}
}

func TestDamage(t *testing.T) {
	const attempt, outcome = identity.AnnotationAttempt, identity.AnnotationOutcome
	for name, tc := range map[string]struct{ key, value, want string }{
		"attempt is no JSON":       {attempt, "garbage", "invalid character"},
		"attempt is empty":         {attempt, "", "unexpected end"},
		"attempt is null":          {attempt, "null", "attempt number is 0, want 1 or more"},
		"attempt has no number":    {attempt, `{"started":true}`, "attempt number is 0, want 1 or more"},
		"outcome is no JSON":       {outcome, "garbage", "invalid character"},
		"outcome is null":          {outcome, "null", `phase is "", want one that ends an operation`},
		"outcome has an odd phase": {outcome, `{"phase":"Sideways"}`, `phase is "Sideways", want one that ends an operation`},
		"outcome is not an end":    {outcome, `{"phase":"InProgress"}`, `phase is "InProgress", want one that ends an operation`},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{attempt: `{"number":2}`, outcome: `{"phase":"Failed","at":"2026-03-01T12:00:00Z"}`}
			annotations[tc.key] = tc.value
			for kind, object := range objects(annotations) {
				c := newClient(t, object, empty(kind, "b"))
				all, err := List(t.Context(), c, kind)
				require.NoError(t, err)
				require.Len(t, all, 2, "the list includes the damaged one")

				v := find(t, c, kind)
				require.ErrorContains(t, v.Damage, "read annotation "+tc.key+": ")
				require.ErrorContains(t, v.Damage, tc.want)
				if tc.key == attempt {
					require.Equal(t, phase.Attempt{Number: 1}, v.Status.Attempt)
					require.Equal(t, phase.Failed, v.Status.Outcome.Phase, "the other annotation is read")
				} else {
					require.Equal(t, phase.Attempt{Number: 2}, v.Status.Attempt, "the other annotation is read")
					require.Nil(t, v.Status.Outcome)
				}
				v.Status.Message = "changed"
				require.NoError(t, v.Save(t.Context(), c))
				require.Equal(t, annotations, find(t, c, kind).Object().GetAnnotations(), "what was not read is not overwritten")

				v.Status.Attempt, v.Status.Outcome = phase.Attempt{Number: 3}, &phase.Outcome{Phase: phase.Failed}
				require.NoError(t, v.Save(t.Context(), c))
				require.NoError(t, find(t, c, kind).Damage)
			}
		})
	}
}

func TestFindAndList(t *testing.T) {
	for _, kind := range both {
		c := newClient(t, empty(kind, "a"))
		none, err := Find(t.Context(), c, kind, client.ObjectKey{Namespace: "velero", Name: "b"})
		require.NoError(t, err)
		require.Nil(t, none)
		all, err := List(t.Context(), c, kind, client.InNamespace("velero"))
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.Equal(t, "a", all[0].Name)

		foreign := empty(kind, "a")
		switch o := foreign.(type) {
		case *velerov2alpha1.DataUpload:
			o.Spec.DataMover = "velero"
		case *velerov2alpha1.DataDownload:
			o.Spec.DataMover = "velero"
		}
		c = newClient(t, foreign)
		none, err = Find(t.Context(), c, kind, client.ObjectKeyFromObject(foreign))
		require.NoError(t, err)
		require.Nil(t, none, "it belongs to another data mover")
		all, err = List(t.Context(), c, kind)
		require.NoError(t, err)
		require.Empty(t, all)
	}
	_, err := List(t.Context(), newClient(t), "Pod")
	require.ErrorContains(t, err, `kind of operation is "Pod"`)
	_, err = Find(t.Context(), newClient(t), "Pod", client.ObjectKey{})
	require.ErrorContains(t, err, `kind of operation is "Pod"`)
}

// TestSave changes every field and reads it back.
func TestSave(t *testing.T) {
	for _, kind := range both {
		t.Run(kind, func(t *testing.T) {
			c := newClient(t, empty(kind, "a"))
			v := find(t, c, kind)
			want := Status{
				Phase: phase.Completed, Message: "m", Node: "n",
				Accepted: at(1).Time, Started: at(2).Time, Completed: at(3).Time,
				BytesDone: 3, BytesTotal: 7,
				Attempt: phase.Attempt{Number: 2, Since: noon, Started: true, Reason: "evicted"},
				Outcome: &phase.Outcome{Phase: phase.Completed, Message: "done", At: noon},
				Secured: true, Filesystem: "xfs", Retention: policy.RetentionNever, Retained: `{"name":"pair"}`, VMBackup: `{"attempt":1}`,
			}
			v.Status = want
			v.SetCancel()
			if v.Upload != nil {
				v.Upload.Status.SnapshotID = "k1"
			}
			require.NoError(t, v.Save(t.Context(), c))
			is := find(t, c, kind)
			require.True(t, is.Cancel)
			requireEqualTimes(t, want, &is.Status)
			require.Equal(t, want, is.Status)
			if is.Upload != nil {
				require.Equal(t, "k1", is.Upload.Status.SnapshotID)
			}

			// One view can be saved again, and what became empty goes.
			v.Status.Retained = ""
			require.NoError(t, v.Save(t.Context(), c))
			require.NotContains(t, find(t, c, kind).Object().GetAnnotations(), identity.AnnotationRetained)
		})
	}
}

// requireEqualTimes checks the times of a status and takes the location, which the
// API server does not keep, out of the comparison.
func requireEqualTimes(t *testing.T, want Status, is *Status) {
	t.Helper()
	for _, pair := range [][2]*time.Time{{&want.Accepted, &is.Accepted}, {&want.Started, &is.Started}, {&want.Completed, &is.Completed}} {
		require.True(t, pair[0].Equal(*pair[1]), "want %s, is %s", pair[0], pair[1])
		*pair[1] = *pair[0]
	}
}

func TestSaveNothing(t *testing.T) {
	for _, kind := range both {
		c := newClient(t, empty(kind, "a"))
		v := find(t, c, kind)
		version := v.Object().GetResourceVersion()
		require.NoError(t, v.Save(t.Context(), c))
		is := find(t, c, kind)
		require.Equal(t, version, is.Object().GetResourceVersion(), "nothing was written")
		require.Empty(t, is.Object().GetAnnotations())
		if is.Upload != nil {
			require.Empty(t, is.Upload.Status.Phase, "a missing phase stays missing")
		} else {
			require.Empty(t, is.Download.Status.Phase, "a missing phase stays missing")
		}
	}
}

func TestSaveConflict(t *testing.T) {
	for _, kind := range both {
		c := newClient(t, empty(kind, "a"))
		late, first := find(t, c, kind), find(t, c, kind)
		first.Status.Phase = phase.Accepted
		require.NoError(t, first.Save(t.Context(), c))
		late.Status.Phase = phase.Failed
		require.True(t, apierrors.IsConflict(late.Save(t.Context(), c)))
		require.Equal(t, phase.Accepted, find(t, c, kind).Status.Phase)
	}
}

// TestCancelWithoutLock: a cancellation reaches an object that has changed, and changes
// nothing else.
func TestCancelWithoutLock(t *testing.T) {
	for _, kind := range both {
		c := newClient(t, empty(kind, "a"))
		v := find(t, c, kind)
		v.Status.Phase, v.Status.Message = phase.InProgress, "kept"
		require.NoError(t, v.Save(t.Context(), c))
		require.NoError(t, RequestCancel(t.Context(), c, v.Operation))
		is := find(t, c, kind)
		require.True(t, is.Cancel)
		require.Equal(t, phase.InProgress, is.Status.Phase)
		require.Equal(t, "kept", is.Status.Message)

		v.Name = "gone"
		require.True(t, apierrors.IsNotFound(RequestCancel(t.Context(), c, v.Operation)))
	}
}

func TestApply(t *testing.T) {
	s := Status{Phase: phase.New, Attempt: phase.Attempt{Number: 1}}
	s.Apply(phase.Transition{Next: phase.New, Message: "queued"}, noon)
	require.Equal(t, Status{Phase: phase.New, Message: "queued", Attempt: phase.Attempt{Number: 1}}, s)

	s.Apply(phase.Transition{Next: phase.Accepted}, at(1).Time)
	s.Apply(phase.Transition{Next: phase.InProgress, Attempt: &phase.Attempt{Number: 1, Started: true}}, at(2).Time)
	s.Apply(phase.Transition{Next: phase.InProgress}, at(3).Time)
	require.Equal(t, Status{
		Phase: phase.InProgress, Accepted: at(1).Time, Started: at(2).Time, Attempt: phase.Attempt{Number: 1, Started: true},
	}, s)

	require.False(t, s.HasFailed())
	s.Apply(phase.Transition{Next: phase.InProgress, Outcome: &phase.Outcome{Phase: phase.Canceled}}, at(4).Time)
	require.True(t, s.HasFailed(), "it is about to fail")
	s.Apply(phase.Transition{Next: phase.Canceled}, at(5).Time)
	require.Equal(t, at(5).Time, s.Completed)
	require.Equal(t, at(2).Time, s.Started)

	never := Status{Phase: phase.New}
	never.Apply(phase.Transition{Next: phase.Failed}, noon)
	require.Equal(t, Status{Phase: phase.Failed, Started: noon, Completed: noon}, never, "Velero expects a start time of what has ended")
}

func TestAdoptable(t *testing.T) {
	object := func(id string) client.Object {
		o := empty(identity.KindDataUpload, "a")
		o.SetLabels(map[string]string{velerov1.AsyncOperationIDLabel: id})
		return o
	}
	require.NoError(t, Adoptable(object("du-1"), object("du-1")))
	require.ErrorContains(t, Adoptable(object("du-2"), object("du-1")), `it belongs to operation "du-2", want "du-1"`)
	deleted := object("du-1")
	deleted.SetDeletionTimestamp(at(1))
	require.ErrorContains(t, Adoptable(deleted, object("du-1")), "being deleted")
}
