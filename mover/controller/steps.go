package controller

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// The steps of an operation, in their order. What the API server and the kubelet tell has a resolution of
// one second, so only the mean of many operations has a meaning below that.
const (
	stepQueue    = "queue"    // the snapshot is secured, and there is a slot
	stepPrepare  = "prepare"  // the volume to read or write, and the mover pod, are asked for
	stepSchedule = "schedule" // the pod has a node; with late binding, also its volume
	stepStart    = "start"    // the volume is attached, and the program runs
	stepOpen     = "open"     // the repository is open
	stepPlan     = "plan"     // it is known what is read and written
	stepMove     = "move"     // the data is copied
	stepSave     = "save"     // the image is in the repository
	stepReport   = "report"   // the manager has seen the report
	stepRelease  = "release"  // the result is delivered, and everything else is gone
)

var stepNames = []string{
	stepQueue, stepPrepare, stepSchedule, stepStart, stepOpen, stepPlan, stepMove, stepSave, stepReport, stepRelease,
}

// stepsOf returns how long an operation with a report took for each step but the last. The pod is that of
// the report.
func stepsOf(op *operation.View, pod *corev1.Pod, report *task.Report, now time.Time) map[string]time.Duration {
	steps := map[string]time.Duration{
		stepOpen: report.Steps.Open,
		stepPlan: report.Steps.Plan,
		stepMove: report.Steps.Move,
		stepSave: report.Steps.Save,
	}
	last := op.Created
	reach := func(step string, at time.Time) {
		if !at.IsZero() {
			steps[step] = max(0, at.Sub(last))
			last = at
		}
	}
	scheduled, started := exposer.Times(pod)
	reach(stepQueue, op.Status.Accepted)
	reach(stepPrepare, pod.CreationTimestamp.Time)
	reach(stepSchedule, scheduled)
	reach(stepStart, started)
	if !started.IsZero() {
		last = started.Add(report.Duration)
		reach(stepReport, now)
	}
	return steps
}

// announceSteps counts and logs how long the steps of an operation took that has its outcome. The first
// attempt alone tells: what came before another one is no step.
func (e *engine) announceSteps(ctx context.Context, op *operation.View, report *task.Report) {
	pod, err := e.exposer.FindPod(ctx, op.Operation)
	if err != nil || pod == nil || exposer.AttemptOf(pod) != op.Status.Attempt.Number || op.Status.Attempt.Number > 1 {
		return
	}
	var fields []any
	steps := stepsOf(op, pod, report, e.now())
	for _, name := range stepNames {
		if took, ok := steps[name]; ok {
			e.metrics.steps.WithLabelValues(op.Kind, name).Observe(took.Seconds())
			fields = append(fields, name, took.Round(time.Millisecond).String())
		}
	}
	log.FromContext(ctx).Info("steps", fields...)
}

// announceRelease does that for the last step.
func (e *engine) announceRelease(ctx context.Context, op *operation.View) {
	outcome := op.Status.Outcome
	if outcome == nil || op.Status.Phase != phase.Completed || op.Status.Attempt.Number > 1 {
		return
	}
	took := op.Status.Completed.Sub(outcome.At)
	e.metrics.steps.WithLabelValues(op.Kind, stepRelease).Observe(took.Seconds())
	log.FromContext(ctx).Info("steps", stepRelease, took.Round(time.Millisecond).String())
}
