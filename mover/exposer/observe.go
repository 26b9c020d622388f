package exposer

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
)

// Observe returns the state of a mover pod, and its report if there is one.
//
// A report decides, whatever the status of the pod says. Every other text is from the kubelet,
// the runtime or the kernel. A pod that ended without a report was lost, and another attempt
// may succeed: it was evicted or killed, ran out of memory or time, or its node is gone.
func Observe(pod *corev1.Pod) (phase.Work, *task.Report) {
	if ended := terminated(pod); ended != nil {
		if report, err := task.DecodeReport(ended.Message); err == nil {
			return judge(ended, &report)
		}
	}
	switch {
	case pod.Status.Phase == corev1.PodFailed && pod.Status.Reason == "DeadlineExceeded":
		return phase.Work{State: phase.Lost, Detail: "the mover pod ran longer than podDeadline allows"}, nil
	case pod.Status.Phase == corev1.PodFailed, pod.Status.Phase == corev1.PodSucceeded:
		return phase.Work{State: phase.Lost, Detail: "the mover pod ended without a report" + whyEnded(pod)}, nil
	case pod.DeletionTimestamp != nil:
		return phase.Work{State: phase.Lost, Detail: "the mover pod is being deleted" + whyEnded(pod)}, nil
	case pod.Status.Phase == corev1.PodRunning:
		return phase.Work{State: phase.Running}, nil
	case pod.Spec.NodeName != "":
		return phase.Work{State: phase.Scheduled, Detail: "the mover pod starts on node " + pod.Spec.NodeName + whyWaiting(pod)}, nil
	}
	return phase.Work{State: phase.Waiting, Detail: "the mover pod is not scheduled yet" + whyUnscheduled(pod)}, nil
}

// judge returns what follows from a report.
func judge(ended *corev1.ContainerStateTerminated, report *task.Report) (phase.Work, *task.Report) {
	switch {
	case report.Error == "" && ended.ExitCode != 0:
		return phase.Work{State: phase.Lost, Detail: fmt.Sprintf("the mover pod reported no error and exited with code %d", ended.ExitCode)}, nil
	case report.Error == "":
		return phase.Work{State: phase.Succeeded}, report
	case report.Class == fault.Outage:
		return phase.Work{State: phase.Suspended, Detail: report.Error}, report
	case report.Class == fault.Passing:
		return phase.Work{State: phase.Lost, Detail: report.Error}, report
	}
	return phase.Work{State: phase.Broken, Detail: report.Error}, report
}

// HasRun reports whether the program of a mover pod runs or has run.
func HasRun(pod *corev1.Pod) bool {
	if ended := terminated(pod); ended != nil {
		return !ended.StartedAt.IsZero()
	}
	return pod.Status.Phase == corev1.PodRunning
}

// Times returns when a mover pod got its node, and when its program started. A time is zero if it has not
// come to that.
func Times(pod *corev1.Pod) (scheduled, started time.Time) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue {
			scheduled = c.LastTransitionTime.Time
		}
	}
	state := stateOf(pod)
	switch {
	case state.Terminated != nil:
		started = state.Terminated.StartedAt.Time
	case state.Running != nil:
		started = state.Running.StartedAt.Time
	}
	return scheduled, started
}

func terminated(pod *corev1.Pod) *corev1.ContainerStateTerminated { return stateOf(pod).Terminated }

func stateOf(pod *corev1.Pod) corev1.ContainerState {
	i := slices.IndexFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == ContainerName })
	if i < 0 {
		return corev1.ContainerState{}
	}
	return pod.Status.ContainerStatuses[i].State
}

func whyEnded(pod *corev1.Pod) string {
	var why string
	if pod.Status.Reason != "" {
		why = ": " + pod.Status.Reason
	}
	if pod.Status.Message != "" {
		why += ": " + pod.Status.Message
	}
	if ended := terminated(pod); ended != nil {
		why += fmt.Sprintf(" (%s, exit code %d)", ended.Reason, ended.ExitCode)
		if ended.Message != "" {
			why += ": " + ended.Message
		}
	}
	return why
}

func whyWaiting(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" {
			return fmt.Sprintf(": %s: %s", w.Reason, w.Message)
		}
	}
	return ""
}

func whyUnscheduled(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf(": %s: %s", c.Reason, c.Message)
		}
	}
	return ""
}
