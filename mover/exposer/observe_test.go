package exposer_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

func TestObserve(t *testing.T) {
	report := func(r task.Report) string {
		text, err := r.Encode()
		require.NoError(t, err)
		return text
	}
	ended := func(p corev1.PodPhase, code int32, message string) corev1.PodStatus {
		return corev1.PodStatus{Phase: p, ContainerStatuses: []corev1.ContainerStatus{{
			Name: exposer.ContainerName, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message, Reason: "Error"}},
		}}}
	}
	now := metav1.Now()
	for name, tc := range map[string]struct {
		pod    corev1.Pod
		want   phase.State
		detail string
	}{
		"unscheduled": {
			pod: corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/1 nodes are available",
			}}}},
			want: phase.Waiting, detail: "0/1 nodes are available",
		},
		"scheduled": {pod: corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}}, want: phase.Scheduled, detail: "node n1"},
		"no image": {
			pod: corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "not found"}},
			}}}},
			want: phase.Scheduled, detail: "ImagePullBackOff: not found",
		},
		"running":           {pod: corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}, want: phase.Running},
		"succeeded":         {pod: corev1.Pod{Status: ended(corev1.PodSucceeded, 0, report(task.Report{SnapshotID: "k1"}))}, want: phase.Succeeded},
		"reported an error": {pod: corev1.Pod{Status: ended(corev1.PodFailed, 1, report(task.Report{Error: "EIO"}))}, want: phase.Broken, detail: "EIO"},
		"report before deletion": {
			pod:  corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, Status: ended(corev1.PodSucceeded, 0, report(task.Report{SnapshotID: "k1"}))},
			want: phase.Succeeded,
		},
		"success with an exit code": {pod: corev1.Pod{Status: ended(corev1.PodFailed, 2, report(task.Report{}))}, want: phase.Lost, detail: "code 2"},
		"unreadable report":         {pod: corev1.Pod{Status: ended(corev1.PodSucceeded, 0, `{"version":1,"surprise":1}`)}, want: phase.Lost, detail: "surprise"},
		"report of another version": {pod: corev1.Pod{Status: ended(corev1.PodSucceeded, 0, `{"version":99}`)}, want: phase.Lost, detail: "99"},
		"succeeded without report":  {pod: corev1.Pod{Status: ended(corev1.PodSucceeded, 0, "")}, want: phase.Lost, detail: "without a report"},
		"reported an outage":        {pod: corev1.Pod{Status: ended(corev1.PodFailed, 1, report(task.Report{Error: "EIO", Class: fault.Outage}))}, want: phase.Suspended, detail: "EIO"},
		"reported that it may pass": {pod: corev1.Pod{Status: ended(corev1.PodFailed, 1, report(task.Report{Error: "EIO", Class: fault.Passing}))}, want: phase.Lost, detail: "EIO"},
		"did not start": {
			pod:  corev1.Pod{Status: ended(corev1.PodFailed, 128, "failed to create task: cgroup: device or resource busy")},
			want: phase.Lost, detail: "cgroup: device or resource busy",
		},
		"out of memory": {pod: corev1.Pod{Status: ended(corev1.PodFailed, 137, "false: OOM")}, want: phase.Lost, detail: "false: OOM"},
		"killed":        {pod: corev1.Pod{Status: ended(corev1.PodFailed, 137, "")}, want: phase.Lost, detail: "exit code 137"},
		"evicted": {
			pod:  corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "low on memory"}},
			want: phase.Lost, detail: "Evicted: low on memory",
		},
		"too late": {
			pod:  corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "DeadlineExceeded"}},
			want: phase.Lost, detail: "podDeadline",
		},
		"being deleted": {
			pod:  corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, Status: corev1.PodStatus{Phase: corev1.PodRunning}},
			want: phase.Lost, detail: "being deleted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			work, report := exposer.Observe(&tc.pod)
			require.Equal(t, tc.want, work.State, work.Detail)
			require.Contains(t, work.Detail, tc.detail)
			require.Equal(t, tc.want == phase.Succeeded || tc.detail == "EIO", report != nil)
		})
	}
}

func TestFindMetadataService(t *testing.T) {
	kind := schema.GroupVersionKind{Group: "cbt.storage.k8s.io", Version: "v1beta1", Kind: "SnapshotMetadataService"}
	none := meta.NewDefaultRESTMapper(nil)
	some := meta.NewDefaultRESTMapper([]schema.GroupVersion{kind.GroupVersion()})
	some.Add(kind, meta.RESTScopeRoot)
	service := func(name string, spec map[string]any) *unstructured.Unstructured {
		object := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
		object.SetGroupVersionKind(kind)
		object.SetName(name)
		return object
	}
	c := fake.NewClientBuilder().WithScheme(runtime.NewScheme()).WithRESTMapper(some).WithObjects(
		service("good", map[string]any{"address": "a:1", "audience": "good", "caCert": "Y2E="}),
		service("stateless", map[string]any{"address": "a:1", "audience": "good", "caCert": "Y2E=", "requireBaseSnapshotForDelta": false}),
		service("stateful", map[string]any{"address": "a:1", "audience": "good", "caCert": "Y2E=", "requireBaseSnapshotForDelta": true}),
		service("greedy", map[string]any{"address": "a:1", "audience": "https://kubernetes.default.svc", "caCert": "Y2E="}),
		service("partial", map[string]any{"address": "a:1", "audience": "x"}),
		service("garbled", map[string]any{"address": "a:1", "audience": "x", "caCert": "?"}),
	).Build()

	for driver, want := range map[string]string{
		"absent": "has no SnapshotMetadataService", "greedy": "refused", "partial": "has no spec.caCert", "garbled": "not base64",
	} {
		found, unavailable, err := exposer.FindMetadataService(context.Background(), c, some, driver, []string{"https://kubernetes.default.svc"})
		require.NoError(t, err)
		require.Nil(t, found)
		require.Contains(t, unavailable, want)
	}
	for driver, required := range map[string]bool{"good": true, "stateful": true, "stateless": false} {
		found, unavailable, err := exposer.FindMetadataService(context.Background(), c, some, driver, nil)
		require.NoError(t, err)
		require.Empty(t, unavailable)
		require.Equal(t, &exposer.MetadataService{Address: "a:1", Audience: "good", CACert: []byte("ca"), BaseRequired: required}, found, driver)
	}

	_, unavailable, err := exposer.FindMetadataService(context.Background(), c, none, "good", nil)
	require.NoError(t, err)
	require.Contains(t, unavailable, "does not have the SnapshotMetadataService API")
}
