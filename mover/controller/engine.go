package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// flow is what differs between uploads and downloads. Its methods make what is
// missing and say how far it is; none of them waits, each can be repeated.
type flow interface {
	// get returns nil when there is no such operation, or it is another mover's.
	get(ctx context.Context, key types.NamespacedName) (*operation, error)
	// list returns the operations of this kind.
	list(ctx context.Context) ([]*operation, error)
	// secure takes the steps of a new operation that may not wait for a slot.
	secure(ctx context.Context, op *operation) (phase.Work, error)
	// expose takes the steps up to the mover pod.
	expose(ctx context.Context, op *operation) (phase.Work, error)
	// complete writes a report of success into the status.
	complete(op *operation, report task.Report) error
	// finish delivers the result, if there is one to deliver, and releases.
	finish(ctx context.Context, op *operation) (ending, error)
}

// ending is how far delivery and release are.
type ending struct {
	committed, delivered bool
	// left is what is still there, or waited for.
	left []string
}

// engine moves operations of one kind from phase to phase. It keeps nothing in
// memory: what it needs to know is in the operation and the objects around it.
type engine struct {
	flow
	kind     string
	client   client.Client
	exposer  *exposer.Exposer
	config   config.Config
	recorder events.EventRecorder
	metrics  *metrics
	now      func() time.Time
}

// Times of the engine. Almost everything that is waited for is watched; polling
// finds what is not, such as the origin of a VolumeSnapshot.
const (
	pollInterval     = 5 * time.Second
	conflictInterval = 200 * time.Millisecond
	releaseTimeout   = time.Minute
	retryBackoff     = 5 * time.Second
)

// Reconcile observes one operation, asks package phase what follows, and
// records it.
func (e *engine) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	op, err := e.get(ctx, req.NamespacedName)
	if err != nil || op == nil || op.phase.Terminal() {
		return ctrl.Result{}, err
	}
	was := *op.phase
	seen, report, stepErr := e.observe(ctx, op)
	t := phase.Next(was, seen, e.limits(op))
	if err := e.record(op, t, seen, report); err != nil {
		return ctrl.Result{}, err
	}
	switch err := e.patch(ctx, op); {
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: conflictInterval}, nil
	case err != nil:
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	e.announce(ctx, op, was, t, report)
	switch {
	case op.phase.Terminal():
		return ctrl.Result{}, nil
	case stepErr != nil && t.Outcome == nil:
		return ctrl.Result{}, stepErr
	}
	after := pollInterval
	if t.After > 0 {
		after = min(after, t.After)
	}
	return ctrl.Result{RequeueAfter: after}, nil
}

func (e *engine) limits(op *operation) phase.Limits {
	l := phase.Limits{
		Secure:   e.config.PreparingTimeout.Duration,
		Prepare:  e.config.PreparingTimeout.Duration,
		Deliver:  op.operationTimeout(),
		Release:  releaseTimeout,
		Attempts: e.config.Attempts,
		Backoff:  retryBackoff,
	}
	if e.kind == kindUpload {
		l.Secure = op.operationTimeout()
	}
	return l
}

// observe takes the steps that the operation's state asks for and returns what
// came of them. An error that may pass is part of what is waited for, so that
// the limits of time hold for it too, and is returned for its backoff.
func (e *engine) observe(ctx context.Context, op *operation) (phase.Observation, *task.Report, error) {
	seen := phase.Observation{
		Now:     e.now(),
		Created: op.object.GetCreationTimestamp().Time,
		Cancel:  op.cancel,
		Attempt: op.attempt,
		Outcome: op.outcome,
	}
	if *op.accepted != nil {
		seen.Accepted = (*op.accepted).Time
	}
	var report *task.Report
	var err error
	switch {
	case seen.Outcome != nil:
		var end ending
		end, err = e.finish(ctx, op)
		seen.Committed, seen.Delivered = end.committed, end.delivered
		seen.Released = err == nil && len(end.left) == 0
		seen.Left = strings.Join(end.left, ", ")
	case seen.Cancel:
	case op.isNew():
		if seen.Work, err = e.secure(ctx, op); err == nil && seen.Work.State == phase.Secured {
			seen.Slot, err = e.slotFor(ctx, op)
		}
	default:
		seen.Work, report, err = e.advance(ctx, op)
	}
	switch {
	case err == nil:
	case isFinal(err):
		seen.Work = phase.Work{State: phase.Broken, Detail: err.Error()}
		err = nil
	default:
		seen.Work = phase.Work{State: phase.Waiting, Detail: err.Error()}
		seen.Left = err.Error()
	}
	return seen, report, err
}

// isFinal says whether an error stays however often a step is repeated.
func isFinal(err error) bool {
	return errors.Is(err, phase.ErrBroken) || apierrors.IsInvalid(err)
}

// advance observes the mover pod of the current attempt, or goes on making it.
func (e *engine) advance(ctx context.Context, op *operation) (phase.Work, *task.Report, error) {
	pod, gone, err := e.exposer.GetPod(ctx, op.identity(), op.attempt.Number)
	switch {
	case err != nil:
		return phase.Work{}, nil, err
	case pod != nil:
		work, report := exposer.Observe(pod)
		if pod.Spec.NodeName != "" {
			*op.node = pod.Spec.NodeName
			err = e.exposer.AdoptVolume(ctx, op.identity())
		}
		if err != nil && work.State != phase.Succeeded && work.State != phase.Broken {
			return work, nil, err
		}
		return work, report, nil
	case !gone:
		return phase.Work{Detail: "the mover pod of the attempt before is being deleted"}, nil, nil
	case op.attempt.Started:
		return phase.Work{State: phase.Lost, Detail: "the mover pod is gone"}, nil, nil
	}
	start := op.attempt.Since.Add(e.limits(op).Pause(op.attempt.Number))
	if e.now().Before(start) {
		return phase.Work{Detail: fmt.Sprintf("attempt %d starts at %s: %s", op.attempt.Number, start.UTC().Format(time.RFC3339), op.attempt.Reason)}, nil, nil
	}
	work, err := e.expose(ctx, op)
	return work, nil, err
}

// record writes what was decided into the operation.
func (e *engine) record(op *operation, t phase.Transition, seen phase.Observation, report *task.Report) error {
	if t.Outcome != nil && t.Outcome.Phase == phase.Completed {
		if err := e.complete(op, *report); err != nil {
			return err
		}
	}
	if op.isNew() && seen.Work.State == phase.Secured && !op.isSecured() {
		op.setAnnotation(identity.AnnotationSecured, "true")
	}
	return op.apply(t, metav1.NewTime(seen.Now))
}

// patch writes the operation if it changed. The worker writes status.progress
// at the same time, so phases are changed under an optimistic lock.
func (e *engine) patch(ctx context.Context, op *operation) error {
	patch := client.MergeFrom(op.before)
	data, err := patch.Data(op.object)
	if err != nil {
		return fmt.Errorf("diff %s %s: %w", op.kind, op.object.GetName(), err)
	}
	if string(data) == "{}" {
		return nil
	}
	patch = client.MergeFromWithOptions(op.before, client.MergeFromWithOptimisticLock{})
	if err := e.client.Patch(ctx, op.object, patch); err != nil {
		return fmt.Errorf("patch %s %s: %w", op.kind, op.object.GetName(), err)
	}
	return nil
}

// severity is the type of the event for a reason. That the storage has told an
// untruth is not in the nature of things, as the other reasons are.
func severity(reason string) string {
	if reason == string(chain.AuditFailed) {
		return corev1.EventTypeWarning
	}
	return corev1.EventTypeNormal
}

// announce tells people: the log, events, metrics.
func (e *engine) announce(ctx context.Context, op *operation, was phase.Phase, t phase.Transition, report *task.Report) {
	logger := log.FromContext(ctx)
	if was != *op.phase {
		logger.Info("phase changed", "from", was, "to", *op.phase, "message", t.Message)
	}
	if t.Attempt != nil && t.Attempt.Reason != "" {
		logger.Info("mover pod lost", "attempt", t.Attempt.Number, "reason", t.Attempt.Reason)
		e.recorder.Eventf(op.object, nil, corev1.EventTypeWarning, "MoverPodLost", "Retry", "%s", t.Message)
	}
	if t.Outcome != nil && report != nil && report.Reason != "" && report.Error == "" {
		logger.Info("backup fell back", "kind", report.Kind, "reason", report.Reason, "reasons", report.Reasons, "detail", report.Detail)
		e.recorder.Eventf(op.object, nil, severity(report.Reason), report.Reason, "Backup", "%s image: %s", report.Kind, report.Detail)
	}
	if !op.phase.Terminal() {
		return
	}
	kind := corev1.EventTypeNormal
	if *op.phase == phase.Failed {
		kind = corev1.EventTypeWarning
	}
	note := t.Message
	if note == "" {
		note = fmt.Sprintf("moved a volume of %d bytes", op.progress.TotalBytes)
	}
	e.recorder.Eventf(op.object, nil, kind, string(*op.phase), op.kind, "%s", note)
	e.metrics.observe(op)
}
