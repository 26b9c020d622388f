package controller

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// TestSteps: together the steps are the time from the creation of the operation to its outcome, less what
// the mover pod does besides its work.
func TestSteps(t *testing.T) {
	start := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	at := func(seconds int) metav1.Time { return metav1.NewTime(start.Add(time.Duration(seconds) * time.Second)) }
	op := &operation.View{}
	op.Created, op.Status.Accepted = start, at(2).Time
	report := &task.Report{Duration: 7 * time.Second, Steps: task.Steps{Open: 300 * time.Millisecond, Plan: time.Second, Move: 5 * time.Second, Save: 200 * time.Millisecond}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: at(5)},
		Status: corev1.PodStatus{
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: at(99)},
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: at(6)},
			},
			ContainerStatuses: []corev1.ContainerStatus{{Name: exposer.ContainerName, State: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{StartedAt: at(9), FinishedAt: at(16)},
			}}},
		},
	}
	want := map[string]time.Duration{
		stepQueue: 2 * time.Second, stepPrepare: 3 * time.Second, stepSchedule: time.Second, stepStart: 3 * time.Second,
		stepOpen: 300 * time.Millisecond, stepPlan: time.Second, stepMove: 5 * time.Second, stepSave: 200 * time.Millisecond,
		stepReport: 1500 * time.Millisecond,
	}
	require.Equal(t, want, stepsOf(op, pod, report, start.Add(17500*time.Millisecond)))

	t.Run("a clock of a node that is behind", func(t *testing.T) {
		pod := pod.DeepCopy()
		pod.Status.ContainerStatuses[0].State.Terminated.StartedAt = at(4)
		require.Zero(t, stepsOf(op, pod, report, start)[stepStart])
	})
	t.Run("a pod of which nothing is known", func(t *testing.T) {
		steps := stepsOf(op, &corev1.Pod{}, report, start)
		require.NotContains(t, steps, stepStart)
		require.NotContains(t, steps, stepReport)
	})
}

// TestStepsAreCounted: a backup that completes has counted each of its steps once.
func TestStepsAreCounted(t *testing.T) {
	w := uploadWorld(t)
	w.run(w.uploads, "du")
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(w.uploads.metrics.steps))
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Len(t, families, 1)
	seen := map[string]uint64{}
	for _, m := range families[0].GetMetric() {
		for _, label := range m.GetLabel() {
			if label.GetName() == "step" {
				seen[label.GetValue()] = m.GetHistogram().GetSampleCount()
			}
		}
	}
	for _, step := range []string{stepQueue, stepPrepare, stepOpen, stepPlan, stepMove, stepSave, stepRelease} {
		require.EqualValues(t, 1, seen[step], step)
	}
}
