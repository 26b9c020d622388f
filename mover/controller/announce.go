package controller

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
)

// severity returns the type of the event for a reason. A failed audit means that
// the storage reported wrong blocks; the other reasons occur in normal operation.
func severity(reason string) string {
	if reason == string(chain.AuditFailed) {
		return corev1.EventTypeWarning
	}
	return corev1.EventTypeNormal
}

// announce writes log lines, events and metrics.
func (e *engine) announce(ctx context.Context, op *operation.View, was phase.Phase, wasMessage string, t phase.Transition, report *task.Report) {
	logger := log.FromContext(ctx)
	is := op.Status.Phase
	if was != is {
		logger.Info("phase changed", "from", was, "to", is, "message", t.Message)
	}
	if t.Retry {
		logger.Info("mover pod lost", "attempt", t.Attempt.Number, "reason", t.Attempt.Reason)
		e.event(op, corev1.EventTypeWarning, "MoverPodLost", "Retry", t.Message)
		e.metrics.retries.WithLabelValues(op.Kind).Inc()
	}
	if t.Overdue && t.Message != wasMessage {
		logger.Info("hand-over is late", "message", t.Message)
		e.event(op, corev1.EventTypeWarning, "HandOverLate", "HandOver", t.Message)
	}
	if t.Outcome != nil && report != nil && report.Reason != "" && report.Error == "" {
		action, what := "Backup", string(report.Kind)+" image"
		if op.Download != nil {
			action, what = "Restore", "the whole volume was compared"
		}
		logger.Info(strings.ToLower(action)+" fell back", "kind", report.Kind, "reason", report.Reason, "reasons", report.Reasons, "detail", report.Detail)
		e.event(op, severity(report.Reason), report.Reason, action, what+": "+report.Detail)
	}
	if t.Outcome != nil && t.Outcome.Phase == phase.Completed && report != nil {
		e.announceSteps(ctx, op, report)
	}
	e.announceInPlace(op, t, report)
	if is.Terminal() {
		e.announceRelease(ctx, op)
		e.announceEnd(op, t)
	}
}

// announceEnd writes the events of an operation that has ended, and counts it.
func (e *engine) announceEnd(op *operation.View, t phase.Transition) {
	is := op.Status.Phase
	for _, reason := range detours(op) {
		e.event(op, corev1.EventTypeNormal, reason, "Backup", "the storage took a snapshot of the volume by itself")
	}
	kind := corev1.EventTypeNormal
	if is == phase.Failed {
		kind = corev1.EventTypeWarning
	}
	note := t.Message
	if note == "" {
		note = fmt.Sprintf("moved a volume of %d bytes", op.Status.BytesTotal)
	}
	e.event(op, kind, string(is), op.Kind, note)
	if is == phase.Failed {
		// Velero counts the error in the status of a Backup or Restore, and describes it only
		// with --details.
		e.eventOfOwner(op, "VolumeFailed", note)
	}
	if suspicion := suspicionOf(op); suspicion != "" {
		e.event(op, corev1.EventTypeWarning, "SuspiciousChange", op.Kind, suspicion)
		e.eventOfOwner(op, "SuspiciousChange", suspicion)
	}
	e.metrics.count(op)
}

// eventOfOwner makes a warning of the Backup or Restore about the volume of an operation.
func (e *engine) eventOfOwner(op *operation.View, reason, note string) {
	if owner := velerosObject(op.Object()); owner != nil {
		e.recorder.Eventf(owner, op.Object(), corev1.EventTypeWarning, reason, op.Kind, "%s", shorten("PVC "+op.Claim().String()+": "+note))
	}
}

// detours are the reasons why a volume was not backed up in the way that was asked for, by KubeVirt
// or in a group, although the backup is complete.
func detours(op *operation.View) []string {
	if op.Upload == nil || op.Status.Phase != phase.Completed {
		return nil
	}
	var reasons []string
	for _, key := range []string{identity.ConfigVMReason, identity.ConfigGroupReason} {
		if reason := op.Upload.Spec.DataMoverConfig[key]; reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}

// velerosObject returns a reference to the Backup or Restore of an operation, or nil.
func velerosObject(object client.Object) *corev1.ObjectReference {
	for _, owner := range object.GetOwnerReferences() {
		if owner.Kind == "Backup" || owner.Kind == "Restore" {
			return &corev1.ObjectReference{
				APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: object.GetNamespace(), Name: owner.Name, UID: owner.UID,
			}
		}
	}
	return nil
}

// event makes an event of the operation. The status has the whole text.
func (e *engine) event(op *operation.View, kind, reason, action, note string) {
	e.recorder.Eventf(op.Object(), nil, kind, reason, action, "%s", shorten(note))
}

// maxNote is the most bytes that the API server accepts as the note of an event.
const maxNote = 1024

// shorten cuts a note that is too long for an event, between two words where it can.
func shorten(note string) string {
	const more = " … (the status has the whole text)"
	if len(note) <= maxNote {
		return note
	}
	cut := strings.ToValidUTF8(note[:maxNote-len(more)], "")
	if space := strings.LastIndexAny(cut, " \n"); space > maxNote/2 {
		cut = cut[:space]
	}
	return strings.TrimRight(cut, " \n") + more
}
