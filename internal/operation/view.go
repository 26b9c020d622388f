// Package operation is the one view of a DataUpload or a DataDownload that the
// manager and the plugins share: it finds and lists them, reads what both kinds
// have in common into plain values, and writes a changed status back.
//
// The two kinds have the same life and almost the same fields, under different Go
// types. Code that does not care about the kind reads the View. Code that does
// reaches the typed object through View.Upload or View.Download; Save writes what
// it changed there as well.
//
// # Damage
//
// A part of the status is stored in annotations, which anybody with access to the
// object can break. Reading therefore never fails: a View whose annotations cannot
// be read says so in Damage and has default values in their place. One such object
// fails alone. Lists, the count of slots and the sweep go on with the rest.
//
// # Writing
//
// Neither kind has a status subresource. Every write is a patch of the object, and
// its parties own disjoint fields: Velero and the plugins write the spec, the
// manager the status. Save takes an optimistic lock because phases must not change
// behind its back.
package operation

import (
	"encoding/json"
	"fmt"
	"time"

	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/policy"
)

// View is a DataUpload or a DataDownload.
type View struct {
	identity.Operation
	// Upload or Download is the object; the other one is nil.
	Upload   *velerov2alpha1.DataUpload
	Download *velerov2alpha1.DataDownload

	// DataMover is the data mover that the operation is for.
	DataMover string
	Created   time.Time
	// Cancel is set if the operation was asked to end or is being deleted.
	Cancel bool
	// Timeout bounds the steps that depend on others, such as the storage.
	Timeout time.Duration

	// Status is as it was read, until somebody changes it. Save writes it.
	Status Status
	// Damage says why a part of the status could not be read, or is nil.
	Damage error

	// before and read are the object and the status as they were read.
	before client.Object
	read   Status
}

// Status is how far an operation has come.
type Status struct {
	// Phase is New if the object has none yet.
	Phase   phase.Phase
	Message string
	// Node is where the mover pod runs, or "".
	Node string
	// Accepted, Started and Completed are zero until the operation comes to that.
	Accepted, Started, Completed time.Time
	// BytesDone and BytesTotal count bytes of the volume.
	BytesDone, BytesTotal int64

	// What follows is stored in annotations; the table in package identity
	// describes them.

	// Attempt is the first one if none is recorded.
	Attempt phase.Attempt
	// Outcome is nil until the end of the operation is decided.
	Outcome *phase.Outcome
	// Secured is set once a new operation waits for nothing but a slot.
	Secured bool
	// Place is the only node that can use the volume, or "" if there are several or it is not
	// known.
	Place string
	// Filesystem is the file system found on a restored volume, or "".
	Filesystem string
	// Retention is the rule of the storage snapshot, or "".
	Retention policy.Retention
	// Retained describes the retained storage snapshot as JSON, or is "".
	Retained string
	// VMBackup is the state of the backup of a VM as JSON, or "".
	VMBackup string
	// Copies are the Secrets and ConfigMaps that were copied for the operation, or "".
	Copies string
}

// defaultTimeout is Velero's default of spec.operationTimeout.
const defaultTimeout = 10 * time.Minute

// Of returns the view of an object, or nil if it is neither a DataUpload nor a
// DataDownload. It does not look at the data mover.
func Of(object runtime.Object) *View {
	v := &View{}
	switch o := object.(type) {
	case *velerov2alpha1.DataUpload:
		v.Kind, v.Upload = identity.KindDataUpload, o
		v.DataMover, v.Cancel, v.Timeout = o.Spec.DataMover, o.Spec.Cancel, o.Spec.OperationTimeout.Duration
		v.before = o.DeepCopy()
		v.Status = Status{
			Phase:      phase.Phase(o.Status.Phase),
			Message:    o.Status.Message,
			Node:       o.Status.Node,
			Accepted:   timeOf(o.Status.AcceptedTimestamp),
			Started:    timeOf(o.Status.StartTimestamp),
			Completed:  timeOf(o.Status.CompletionTimestamp),
			BytesDone:  o.Status.Progress.BytesDone,
			BytesTotal: o.Status.Progress.TotalBytes,
		}
	case *velerov2alpha1.DataDownload:
		v.Kind, v.Download = identity.KindDataDownload, o
		v.DataMover, v.Cancel, v.Timeout = o.Spec.DataMover, o.Spec.Cancel, o.Spec.OperationTimeout.Duration
		v.before = o.DeepCopy()
		v.Status = Status{
			Phase:      phase.Phase(o.Status.Phase),
			Message:    o.Status.Message,
			Node:       o.Status.Node,
			Accepted:   timeOf(o.Status.AcceptedTimestamp),
			Started:    timeOf(o.Status.StartTimestamp),
			Completed:  timeOf(o.Status.CompletionTimestamp),
			BytesDone:  o.Status.Progress.BytesDone,
			BytesTotal: o.Status.Progress.TotalBytes,
		}
	default:
		return nil
	}
	meta := v.Object()
	v.Namespace, v.Name, v.UID = meta.GetNamespace(), meta.GetName(), string(meta.GetUID())
	v.Created = meta.GetCreationTimestamp().Time
	v.Cancel = v.Cancel || meta.GetDeletionTimestamp() != nil
	if v.Timeout <= 0 {
		v.Timeout = defaultTimeout
	}
	if v.Status.Phase == "" {
		v.Status.Phase = phase.New
	}
	v.Damage = v.Status.readAnnotations(meta.GetAnnotations())
	v.read = v.Status
	return v
}

// Object is the DataUpload or DataDownload.
func (v *View) Object() client.Object {
	if v.Upload != nil {
		return v.Upload
	}
	return v.Download
}

// Key is the key of the object.
func (v *View) Key() client.ObjectKey {
	return client.ObjectKey{Namespace: v.Namespace, Name: v.Name}
}

// HasFailed reports whether the operation has ended, or is about to end, without a
// result. A DataUpload that is Completed never fails any more.
func (s Status) HasFailed() bool {
	ended := s.Phase
	if s.Outcome != nil {
		ended = s.Outcome.Phase
	}
	return ended == phase.Failed || ended == phase.Canceled
}

// Apply records a transition that happens now.
func (s *Status) Apply(t phase.Transition, now time.Time) {
	s.Phase, s.Message = t.Next, t.Message
	if t.Attempt != nil {
		s.Attempt = *t.Attempt
	}
	if t.Outcome != nil {
		s.Outcome = t.Outcome
	}
	if s.Phase.Underway() && s.Accepted.IsZero() {
		s.Accepted = now
	}
	if (s.Phase == phase.InProgress || s.Phase.Terminal()) && s.Started.IsZero() {
		s.Started = now
	}
	if s.Phase.Terminal() {
		s.Completed = now
	}
}

// readAnnotations returns the first error, after it has read what can be read.
func (s *Status) readAnnotations(annotations map[string]string) error {
	s.Secured = annotations[identity.AnnotationSecured] != ""
	s.Place = annotations[identity.AnnotationPlace]
	s.Filesystem = annotations[identity.AnnotationFilesystem]
	s.Retention = policy.Retention(annotations[identity.AnnotationRetention])
	s.Retained = annotations[identity.AnnotationRetained]
	s.VMBackup = annotations[identity.AnnotationVMBackup]
	s.Copies = annotations[identity.AnnotationCopies]

	s.Attempt = phase.Attempt{Number: 1}
	attempt, attemptErr := decode[phase.Attempt](annotations, identity.AnnotationAttempt)
	switch {
	case attempt != nil && attempt.Number < 1:
		attemptErr = fmt.Errorf("read annotation %s: attempt number is %d, want 1 or more", identity.AnnotationAttempt, attempt.Number)
	case attempt != nil:
		s.Attempt = *attempt
	}
	outcome, outcomeErr := decode[phase.Outcome](annotations, identity.AnnotationOutcome)
	switch {
	case outcome != nil && !outcome.Phase.Terminal():
		outcomeErr = fmt.Errorf("read annotation %s: phase is %q, want one that ends an operation", identity.AnnotationOutcome, outcome.Phase)
	case outcome != nil:
		s.Outcome = outcome
	}
	if attemptErr != nil {
		return attemptErr
	}
	return outcomeErr
}

// decode returns nil if the annotation does not exist or cannot be read.
func decode[T any](annotations map[string]string, key string) (*T, error) {
	text, ok := annotations[key]
	if !ok {
		return nil, nil
	}
	value := new(T)
	if err := json.Unmarshal([]byte(text), value); err != nil {
		return nil, fmt.Errorf("read annotation %s: %w", key, err)
	}
	return value, nil
}

// annotations renders what readAnnotations reads. An empty value stands for no
// annotation.
func (s Status) annotations() (map[string]string, error) {
	values := map[string]string{
		identity.AnnotationSecured:    "",
		identity.AnnotationPlace:      s.Place,
		identity.AnnotationFilesystem: s.Filesystem,
		identity.AnnotationRetention:  string(s.Retention),
		identity.AnnotationRetained:   s.Retained,
		identity.AnnotationVMBackup:   s.VMBackup,
		identity.AnnotationCopies:     s.Copies,
		identity.AnnotationOutcome:    "",
	}
	if s.Secured {
		values[identity.AnnotationSecured] = "true"
	}
	attempt, err := json.Marshal(s.Attempt)
	if err != nil {
		return nil, fmt.Errorf("render annotation %s: %w", identity.AnnotationAttempt, err)
	}
	values[identity.AnnotationAttempt] = string(attempt)
	if s.Outcome == nil {
		return values, nil
	}
	outcome, err := json.Marshal(s.Outcome)
	if err != nil {
		return nil, fmt.Errorf("render annotation %s: %w", identity.AnnotationOutcome, err)
	}
	values[identity.AnnotationOutcome] = string(outcome)
	return values, nil
}

func timeOf(t *metav1.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}

func timestamp(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return &metav1.Time{Time: t}
}
