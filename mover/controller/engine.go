package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// flow is what differs between uploads and downloads. Its methods create what is
// missing and say how far it is. None of them waits, and each can be repeated.
type flow interface {
	// secure takes the steps of a new operation that must not wait for a slot.
	secure(ctx context.Context, op *operation.View) (phase.Work, error)
	// expose takes the steps up to the mover pod.
	expose(ctx context.Context, op *operation.View) (phase.Work, error)
	// complete writes the report of a successful mover pod into the status.
	complete(ctx context.Context, op *operation.View, report task.Report) error
	// finish delivers the result, if there is one, and releases the rest.
	finish(ctx context.Context, op *operation.View) (ending, error)
}

// ending is how far delivery and release have come.
type ending struct {
	committed, delivered bool
	// left names what still exists or is waited for.
	left []string
}

// engine moves operations of one kind from phase to phase. It keeps no state in
// memory: everything it needs is in the operation and the objects around it.
type engine struct {
	flow
	kind     string
	client   client.Client
	exposer  *exposer.Exposer
	live     *config.Live
	recorder events.EventRecorder
	metrics  *metrics
	now      func() time.Time
	listener *listener
	grants   grants
}

// Times of the engine. It watches almost everything that it waits for. Polling covers
// the rest, such as a StorageClass that does not exist yet, or a VolumeSnapshot that was
// not taken by our action.
const (
	pollInterval     = 5 * time.Second
	maxPollInterval  = 5 * time.Minute
	conflictInterval = 200 * time.Millisecond
	releaseTimeout   = time.Minute
	retryBackoff     = 5 * time.Second
	minErrorInterval = 50 * time.Millisecond
	// maxErrorInterval is how long a step that fails waits at most until it is repeated.
	maxErrorInterval = 30 * time.Second
)

// Reconcile takes the next steps of one operation, asks package phase what follows
// from their results, and records it with one patch.
func (e *engine) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	op, err := operation.Find(ctx, e.client, e.kind, req.NamespacedName)
	if err != nil || op == nil || op.Status.Phase.Terminal() {
		return ctrl.Result{}, err
	}
	was, wasMessage := op.Status.Phase, op.Status.Message
	seen, report, stepErr := e.step(ctx, op)
	t := phase.Next(was, seen, e.limits(op))
	if live, ok := e.inPlace(op); ok && t.Outcome != nil {
		t.Outcome.Message = live.conclude(*t.Outcome, seen.Wrote, report)
		t.Message = t.Outcome.Message
	}
	if err := e.record(ctx, op, t, seen, report); err != nil {
		return ctrl.Result{}, err
	}
	switch err := op.Save(ctx, e.client); {
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: conflictInterval}, nil
	case err != nil:
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	e.announce(ctx, op, was, wasMessage, t, report)
	switch {
	case op.Status.Phase.Terminal():
		return ctrl.Result{}, nil
	case stepErr != nil && t.Outcome == nil:
		return ctrl.Result{}, stepErr
	}
	return ctrl.Result{RequeueAfter: e.pollAfter(op, t)}, nil
}

// pollAfter returns when to reconcile an operation that has not ended, if nothing that
// is watched changes. 0 means never: a queued operation is reconciled when a slot is
// free. Thousands of new operations may wait, so they are polled less often the longer
// they do.
func (e *engine) pollAfter(op *operation.View, t phase.Transition) time.Duration {
	after := pollInterval
	if op.Status.Phase == phase.New && t.Outcome == nil {
		if op.Status.Secured {
			return 0
		}
		const share = 8
		after = min(max(after, e.now().Sub(op.Created)/share), maxPollInterval)
	}
	if t.After > 0 {
		after = min(after, t.After)
	}
	if e.looksOften(op) {
		after = min(after, vmPollInterval)
	}
	return after
}

// list returns the operations of the engine's kind from the cache.
func (e *engine) list(ctx context.Context, options ...client.ListOption) ([]*operation.View, error) {
	return operation.List(ctx, e.client, e.kind, append(options, client.InNamespace(e.exposer.Namespace))...)
}

func (e *engine) limits(op *operation.View) phase.Limits {
	settings := e.live.Get()
	return phase.Limits{
		// Not op.Timeout, which is for taking a snapshot: Velero's data movers give it this
		// long to become ready.
		Secure:   settings.PreparingTimeout.Duration,
		Prepare:  settings.PreparingTimeout.Duration,
		Deliver:  op.Timeout,
		Release:  releaseTimeout,
		Attempts: settings.Attempts,
		Patience: settings.OutageTimeout.Duration,
		Backoff:  retryBackoff,
	}
}

// step takes the steps that the state of the operation asks for and returns their
// result. It returns an error that may pass as well, so that the caller backs off.
func (e *engine) step(ctx context.Context, op *operation.View) (phase.Observation, *task.Report, error) {
	seen := phase.Observation{
		Now:      e.now(),
		Created:  op.Created,
		Accepted: op.Status.Accepted,
		Cancel:   op.Cancel,
		Outcome:  op.Status.Outcome,
	}
	var report *task.Report
	var err error
	switch {
	case seen.Outcome != nil:
		var end ending
		end, err = e.finish(ctx, op)
		seen.Outcome = op.Status.Outcome
		seen.Committed, seen.Delivered = end.committed, end.delivered
		seen.Released = err == nil && len(end.left) == 0
		seen.Left = strings.Join(end.left, ", ")
	case seen.Cancel:
		seen.Work, report, err = e.glance(ctx, op)
		seen.Committed = op.Upload != nil
	case op.Damage != nil:
		err = fmt.Errorf("%w: %w", phase.ErrBroken, op.Damage)
	case op.Status.Phase == phase.New:
		seen.Work, seen.Slot, err = e.admit(ctx, op)
	default:
		seen.Work, report, err = e.advance(ctx, op)
	}
	if live, ok := e.inPlace(op); ok {
		seen.Wrote = live.mayHaveWritten(seen.Work, report)
	}
	switch {
	case err == nil:
	case isFinal(err):
		seen.Work = phase.Work{State: phase.Broken, Detail: err.Error()}
		err = nil
	default:
		seen.Work = phase.Work{State: phase.Unknown, Detail: err.Error()}
		if kube.IsQuota(err) {
			seen.Work.State = phase.Held
		}
		seen.Left = err.Error()
	}
	if report != nil {
		op.Status.Attempt.BytesRead = report.BytesRead
	}
	seen.Attempt, seen.Progress = op.Status.Attempt, op.Status.BytesDone
	return seen, report, err
}

// glance returns how far the mover pod of an operation is that was canceled: whether a backup has
// saved its image, and whether a restore in place has written the volume. Of other restores, nobody
// needs to know.
func (e *engine) glance(ctx context.Context, op *operation.View) (phase.Work, *task.Report, error) {
	if _, ok := e.inPlace(op); !ok && op.Upload == nil {
		return phase.Work{}, nil, nil
	}
	pod, err := e.exposer.FindPod(ctx, op.Operation)
	switch {
	case err != nil:
		return phase.Work{State: phase.Unknown}, nil, err
	case pod == nil || exposer.AttemptOf(pod) != op.Status.Attempt.Number:
		return phase.Work{}, nil, nil
	}
	work, report := exposer.Observe(pod)
	return work, report, nil
}

// admit secures a new operation and asks for a slot. An operation that is secured
// already is secured again only once it has the slot: what it waited for may have changed
// in the meantime.
func (e *engine) admit(ctx context.Context, op *operation.View) (work phase.Work, slot bool, err error) {
	if op.Status.Secured {
		if slot, err = e.take(ctx, op); err != nil || !slot {
			return phase.Work{State: phase.Secured}, false, err
		}
	}
	work, err = e.secure(ctx, op)
	switch {
	case err != nil || work.State != phase.Secured:
		e.grants.giveBack(op)
		if err == nil && op.Status.Secured {
			op.Status.Attempt.Since = e.now() // it waits from now on, and not since it was created
		}
		return work, false, err
	case !slot:
		slot, err = e.take(ctx, op)
	}
	return work, slot, err
}

// isFinal reports whether an error stays however often a step is repeated.
func isFinal(err error) bool {
	return errors.Is(err, phase.ErrBroken) || apierrors.IsInvalid(err)
}

// advance reads the result of the current attempt's mover pod. If the attempt has
// no pod yet, it takes the next steps to create one.
func (e *engine) advance(ctx context.Context, op *operation.View) (phase.Work, *task.Report, error) {
	attempt := op.Status.Attempt
	pod, err := e.exposer.FindPod(ctx, op.Operation)
	switch {
	case err != nil:
		return phase.Work{State: phase.Unknown}, nil, err
	case pod != nil && exposer.AttemptOf(pod) != attempt.Number:
		return phase.Work{Detail: "the mover pod of the attempt before is being deleted"}, nil, e.exposer.DeletePod(ctx, pod)
	case pod != nil:
		work, report := exposer.Observe(pod)
		if pod.Spec.NodeName != "" {
			op.Status.Node = pod.Spec.NodeName
			err = e.exposer.AdoptVolume(ctx, op.Operation)
		}
		if err != nil && report == nil {
			return work, nil, err
		}
		var progress *task.Progress
		work, report, progress = e.follow(ctx, op, pod, work, report)
		if live, ok := e.inPlace(op); ok && report == nil {
			if work, err = e.lookBeside(ctx, live, progress, work); err != nil {
				return work, nil, err
			}
		}
		return e.explain(ctx, op, work), report, nil
	case attempt.Started:
		return phase.Work{State: phase.Lost, Detail: "the mover pod is gone"}, nil, nil
	}
	start := attempt.Since.Add(e.limits(op).Pause(attempt))
	if e.now().Before(start) {
		return phase.Work{Detail: fmt.Sprintf("attempt %d starts at %s: %s", attempt.Number, start.UTC().Format(time.RFC3339), attempt.Reason)}, nil, nil
	}
	work, err := e.expose(ctx, op)
	return work, nil, err
}

// follow writes the progress of a mover pod into the status, as far as the pod tells it, and returns
// it. The log of a pod that runs may have its report already. A log that cannot be read is no reason to do
// anything else.
func (e *engine) follow(ctx context.Context, op *operation.View, pod *corev1.Pod, work phase.Work, report *task.Report) (phase.Work, *task.Report, *task.Progress) {
	if work.State != phase.Running && work.State != phase.Lost && work.State != phase.Suspended {
		return work, report, nil
	}
	said, err := e.exposer.Said(ctx, pod)
	if work.State == phase.Running && said.Report == nil {
		e.listener.listen(ctx, op, pod)
	}
	if err != nil {
		log.FromContext(ctx).V(1).Info("progress is not known", "error", err.Error())
		return work, report, nil
	}
	if p := said.Progress; p != nil {
		op.Status.BytesDone, op.Status.BytesTotal = p.Done, p.Total
		op.Status.Attempt.BytesRead = p.Read
		if work.State == phase.Running {
			work.Detail = p.Waiting
		}
	}
	if work.State == phase.Running && said.Report != nil {
		return phase.Work{State: phase.Succeeded}, said.Report, said.Progress
	}
	return work, report, said.Progress
}

// record writes the decision into the operation.
func (e *engine) record(ctx context.Context, op *operation.View, t phase.Transition, seen phase.Observation, report *task.Report) error {
	if t.Outcome != nil && t.Outcome.Phase == phase.Completed {
		if err := e.complete(ctx, op, *report); err != nil {
			return err
		}
	}
	known := seen.Work.State != phase.Unknown && seen.Work.State != phase.Held
	if op.Status.Phase == phase.New && seen.Outcome == nil && known {
		op.Status.Secured = seen.Work.State == phase.Secured
	}
	op.Status.Apply(t, seen.Now)
	return nil
}
