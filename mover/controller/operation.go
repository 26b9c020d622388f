package controller

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/vmware-tanzu/velero/pkg/apis/velero/shared"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
)

// Kinds of operation.
const (
	kindUpload   = identity.KindDataUpload
	kindDownload = identity.KindDataDownload
)

// operation is what a DataUpload and a DataDownload have in common: a view of
// one of them, and the way to change it.
type operation struct {
	kind   string
	object client.Object
	// upload or download is the object, the other one is nil.
	upload   *velerov2alpha1.DataUpload
	download *velerov2alpha1.DataDownload
	// before is the object as it was read, to patch against.
	before client.Object

	cancel  bool
	timeout time.Duration

	phase                        *phase.Phase
	message, node                *string
	accepted, started, completed **metav1.Time
	progress                     *shared.DataMoveOperationProgress

	attempt phase.Attempt
	outcome *phase.Outcome
}

func newUpload(du *velerov2alpha1.DataUpload) (*operation, error) {
	op := &operation{
		kind:      kindUpload,
		object:    du,
		upload:    du,
		before:    du.DeepCopy(),
		cancel:    du.Spec.Cancel || du.DeletionTimestamp != nil,
		timeout:   du.Spec.OperationTimeout.Duration,
		phase:     (*phase.Phase)(&du.Status.Phase),
		message:   &du.Status.Message,
		node:      &du.Status.Node,
		accepted:  &du.Status.AcceptedTimestamp,
		started:   &du.Status.StartTimestamp,
		completed: &du.Status.CompletionTimestamp,
		progress:  &du.Status.Progress,
	}
	if err := op.readAnnotations(); err != nil {
		return nil, err
	}
	return op, nil
}

func newDownload(dd *velerov2alpha1.DataDownload) (*operation, error) {
	op := &operation{
		kind:      kindDownload,
		object:    dd,
		download:  dd,
		before:    dd.DeepCopy(),
		cancel:    dd.Spec.Cancel || dd.DeletionTimestamp != nil,
		timeout:   dd.Spec.OperationTimeout.Duration,
		phase:     (*phase.Phase)(&dd.Status.Phase),
		message:   &dd.Status.Message,
		node:      &dd.Status.Node,
		accepted:  &dd.Status.AcceptedTimestamp,
		started:   &dd.Status.StartTimestamp,
		completed: &dd.Status.CompletionTimestamp,
		progress:  &dd.Status.Progress,
	}
	if err := op.readAnnotations(); err != nil {
		return nil, err
	}
	return op, nil
}

func (o *operation) readAnnotations() error {
	o.attempt = phase.Attempt{Number: 1}
	annotations := o.object.GetAnnotations()
	for key, into := range map[string]any{identity.AnnotationAttempt: &o.attempt, identity.AnnotationOutcome: &o.outcome} {
		text, ok := annotations[key]
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(text), into); err != nil {
			return fmt.Errorf("read annotation %s of %s %s: %w", key, o.kind, o.object.GetName(), err)
		}
	}
	return nil
}

// isNew treats the missing phase as New.
func (o *operation) isNew() bool { return *o.phase == "" || *o.phase == phase.New }

// hasFailed says that the operation has ended, or is about to, without a result.
// An upload that is Completed stays so.
func (o *operation) hasFailed() bool {
	ended := *o.phase
	if o.outcome != nil {
		ended = o.outcome.Phase
	}
	return ended == phase.Failed || ended == phase.Canceled
}

func (o *operation) isSecured() bool {
	return o.object.GetAnnotations()[identity.AnnotationSecured] != ""
}

// identity identifies the operation.
func (o *operation) identity() identity.Operation {
	return identity.Operation{Kind: o.kind, Namespace: o.object.GetNamespace(), Name: o.object.GetName(), UID: string(o.object.GetUID())}
}

// operationTimeout bounds what depends on others; Velero sets it, to 10 minutes
// unless told otherwise.
func (o *operation) operationTimeout() time.Duration {
	if o.timeout > 0 {
		return o.timeout
	}
	const veleroDefault = 10 * time.Minute
	return veleroDefault
}

// apply writes a transition into the object.
func (o *operation) apply(t phase.Transition, now metav1.Time) error {
	if !o.isNew() || t.Next != phase.New { // a missing phase stays missing
		*o.phase = t.Next
	}
	*o.message = t.Message
	if o.phase.Underway() && *o.accepted == nil {
		*o.accepted = &now
	}
	if *o.phase == phase.InProgress && *o.started == nil {
		*o.started = &now
	}
	if o.phase.Terminal() {
		*o.completed = &now
		if *o.started == nil {
			*o.started = &now
		}
	}
	if t.Attempt != nil {
		o.attempt = *t.Attempt
		if err := o.annotate(identity.AnnotationAttempt, t.Attempt); err != nil {
			return err
		}
	}
	if t.Outcome != nil {
		o.outcome = t.Outcome
		return o.annotate(identity.AnnotationOutcome, t.Outcome)
	}
	return nil
}

func (o *operation) annotate(key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write annotation %s: %w", key, err)
	}
	o.setAnnotation(key, string(text))
	return nil
}

func (o *operation) setAnnotation(key, value string) {
	annotations := o.object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	o.object.SetAnnotations(annotations)
}
