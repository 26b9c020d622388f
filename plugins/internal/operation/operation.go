// Package operation is what the backup and the restore action have in common:
// they start an operation by creating a DataUpload or a DataDownload, and answer
// Velero's polls from its status.
//
// # Acceptance
//
// Nothing in the cluster answers a DataUpload or DataDownload when the mover is
// not installed; Velero would wait for its item operation timeout (4 hours unless
// told otherwise) and then tell nobody why. Therefore an operation that nobody has
// taken note of after a while is given up and reported with the likely reason. A
// manager takes note when it changes the phase, and before that, while an
// operation waits for its turn, by the message and its annotations.
//
// Giving up races with a manager that comes alive this moment. The optimistic
// lock decides: whoever changes the object first wins, and the loser does nothing.
// Only the winner may release what the operation holds.
package operation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// CallTimeout bounds the API requests of one call from Velero, which gives a
// plugin no context of its own.
const CallTimeout = time.Minute

// defaultAcceptTimeout is how long an operation may wait to be accepted. A
// manager accepts within a second; after a restart of its node it may take
// minutes until it runs elsewhere.
const defaultAcceptTimeout = 5 * time.Minute

// keyAcceptTimeout is the key of the plugin's ConfigMap that overrides
// defaultAcceptTimeout.
const keyAcceptTimeout = "acceptTimeout"

// Poller answers Velero's polls of one action's operations.
type Poller struct {
	API client.Client
	// Action and Kind are the name and the kind that the action is registered
	// under; the plugin's ConfigMap is found by them.
	Action string
	Kind   common.PluginKind
	Now    func() time.Time
}

// Poll renders the progress of an operation, or gives the operation up when
// nobody has taken note of it in time; gaveUp tells the caller to release what the
// operation holds.
func (p Poller) Poll(ctx context.Context, o Object, itemOperationTimeout time.Duration) (progress velero.OperationProgress, gaveUp bool, err error) {
	if o.State().Noted {
		return o.State().Progress(o.Kind()), false, nil
	}
	timeout, err := p.AcceptTimeout(ctx, o.Client().GetNamespace(), itemOperationTimeout)
	if err != nil {
		return velero.OperationProgress{}, false, err
	}
	now := p.Now()
	if now.Sub(o.Client().GetCreationTimestamp().Time) < timeout {
		return o.State().Progress(o.Kind()), false, nil
	}
	message := fmt.Sprintf("%s %s/%s was not accepted within %s: is the blockmover manager running in namespace %[2]s?",
		o.Kind(), o.Client().GetNamespace(), o.Client().GetName(), timeout)
	gaveUp, err = giveUp(ctx, p.API, o, phaseFailed, message, now)
	if err != nil || !gaveUp {
		return velero.OperationProgress{}, false, err
	}
	return o.State().Progress(o.Kind()), true, nil
}

// Answer is what a Progress method does with its question: it bounds the call,
// and reports an error that may pass as a description, because Velero ends an
// operation for good when its Progress fails.
func Answer(log logrus.FieldLogger, operationID string, ask func(context.Context) (velero.OperationProgress, error)) (velero.OperationProgress, error) {
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	progress, err := ask(ctx)
	if err != nil && !errors.Is(err, ErrLost) {
		log.WithError(err).WithField("operation", operationID).Warn("Cannot tell the progress of the operation this time")
		return velero.OperationProgress{Description: err.Error()}, nil
	}
	return progress, err
}

// Cancel stops an operation. One that nobody has taken note of ends at once, and
// gaveUp tells the caller to release what it holds; otherwise the mover is asked
// to stop and answers with phase Canceled. An operation that has ended is left as
// it is.
func (p Poller) Cancel(ctx context.Context, o Object) (gaveUp bool, err error) {
	if o.State().Final() {
		return false, nil
	}
	if !o.State().Noted {
		gaveUp, err := giveUp(ctx, p.API, o, phaseCanceled, o.Kind()+" was canceled before anybody accepted it", p.Now())
		if err != nil || gaveUp {
			return gaveUp, err
		}
		// Somebody was faster. Spec.cancel is ours alone, so asking needs no lock.
	}
	return false, requestCancel(ctx, p.API, o)
}

// AcceptTimeout reads the time that an operation may wait to be accepted from
// the plugin's ConfigMap: the one in Velero's namespace with the labels
// velero.io/plugin-config and <name of the action>: <its kind>. It is at most
// half of the item operation timeout, so that it ends before Velero gives up
// without a reason.
func (p Poller) AcceptTimeout(ctx context.Context, namespace string, itemOperationTimeout time.Duration) (time.Duration, error) {
	timeout := defaultAcceptTimeout
	var configs corev1.ConfigMapList
	if err := p.API.List(ctx, &configs, client.InNamespace(namespace),
		client.HasLabels{"velero.io/plugin-config"}, client.MatchingLabels{p.Action: string(p.Kind)}); err != nil {
		return 0, fmt.Errorf("list plugin ConfigMaps: %w", err)
	}
	if len(configs.Items) > 1 {
		return 0, fmt.Errorf("read plugin ConfigMap of %s: there are %d, want at most one: %s, %s",
			p.Action, len(configs.Items), configs.Items[0].Name, configs.Items[1].Name)
	}
	for _, config := range configs.Items {
		for key, value := range config.Data {
			if key != keyAcceptTimeout {
				return 0, fmt.Errorf("read plugin ConfigMap %s/%s: %s: unknown key, want %s",
					config.Namespace, config.Name, key, keyAcceptTimeout)
			}
			d, err := time.ParseDuration(value)
			if err != nil || d <= 0 {
				return 0, fmt.Errorf("read plugin ConfigMap %s/%s: %s: %q: want a duration above 0 such as 5m",
					config.Namespace, config.Name, key, value)
			}
			timeout = d
		}
	}
	if itemOperationTimeout > 0 {
		timeout = min(timeout, itemOperationTimeout/2)
	}
	return timeout, nil
}

// Object is a DataUpload or DataDownload, seen the same way.
type Object interface {
	// Client is the object as the API client takes it.
	Client() client.Object
	Kind() string
	State() State
	// Copy shares nothing with the original.
	Copy() Object
	// SetCancel asks the mover to stop.
	SetCancel()
	// Finish puts the object into a phase that is final.
	Finish(phase, message string, at metav1.Time)
}

// State is the part of a status that an operation's progress is made of. The
// phases of DataUpload and DataDownload are spelled the same.
type State struct {
	// Noted is set when a manager has left a trace on the object.
	Noted      bool
	Phase      string
	Message    string
	BytesDone  int64
	TotalBytes int64
	Started    *metav1.Time
	Completed  *metav1.Time
}

// The phases that matter to a plugin.
const (
	phaseNew       = string(velerov2alpha1.DataUploadPhaseNew)
	phaseCompleted = string(velerov2alpha1.DataUploadPhaseCompleted)
	phaseFailed    = string(velerov2alpha1.DataUploadPhaseFailed)
	phaseCanceled  = string(velerov2alpha1.DataUploadPhaseCanceled)
)

// accepted says whether the operation has left phase New.
func (s State) accepted() bool { return s.Phase != "" && s.Phase != phaseNew }

// Final says whether the phase is one that nobody changes any more.
func (s State) Final() bool {
	return s.Phase == phaseCompleted || s.Phase == phaseFailed || s.Phase == phaseCanceled
}

// Progress renders a state for Velero.
func (s State) Progress(kind string) velero.OperationProgress {
	if !s.accepted() {
		return velero.OperationProgress{Description: orElse(s.Message, "waiting for the blockmover manager to accept the "+kind)}
	}
	p := velero.OperationProgress{
		Completed:      s.Final(),
		Description:    s.Phase,
		OperationUnits: "Bytes",
		NCompleted:     s.BytesDone,
		NTotal:         s.TotalBytes,
	}
	if !p.Completed && s.Message != "" {
		p.Description += ": " + s.Message
	}
	if s.Started != nil {
		p.Started = s.Started.Time
	}
	if s.Completed != nil {
		p.Updated = s.Completed.Time
	}
	switch s.Phase {
	case phaseFailed:
		p.Err = orElse(s.Message, kind+" failed without a message")
	case phaseCanceled:
		p.Err = orElse(s.Message, kind+" was canceled")
	}
	return p
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// giveUp ends an operation that no manager has taken note of: it asks to cancel and
// puts the object into its final phase, so that a manager that starts later
// leaves it alone and people see what happened. It reports false when somebody
// else has changed the object since it was read.
func giveUp(ctx context.Context, c client.Client, o Object, phase, message string, at time.Time) (bool, error) {
	before := o.Copy().Client()
	o.SetCancel()
	o.Finish(phase, message, metav1.NewTime(at))
	err := c.Patch(ctx, o.Client(), client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsConflict(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("give up %s %s: %w", o.Kind(), client.ObjectKeyFromObject(before), err)
	}
	return true, nil
}

func requestCancel(ctx context.Context, c client.Client, o Object) error {
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"cancel":true}}`))
	if err := c.Patch(ctx, o.Copy().Client(), patch); err != nil {
		return fmt.Errorf("cancel %s %s: %w", o.Kind(), client.ObjectKeyFromObject(o.Client()), err)
	}
	return nil
}

// noted looks for the traces of a manager. Nobody else writes any of them on an
// object that a plugin has just made.
func noted(phase, message string, annotations map[string]string) bool {
	for key := range annotations {
		if strings.HasPrefix(key, identity.Domain) {
			return true
		}
	}
	return phase != "" && phase != phaseNew || message != ""
}

// Upload makes an Object of a DataUpload.
type Upload struct{ *velerov2alpha1.DataUpload }

// Client implements Object.
func (u Upload) Client() client.Object { return u.DataUpload }

// Kind implements Object.
func (u Upload) Kind() string { return "DataUpload" }

// State implements Object.
func (u Upload) State() State {
	return State{
		Noted:      noted(string(u.Status.Phase), u.Status.Message, u.Annotations),
		Phase:      string(u.Status.Phase),
		Message:    u.Status.Message,
		BytesDone:  u.Status.Progress.BytesDone,
		TotalBytes: u.Status.Progress.TotalBytes,
		Started:    u.Status.StartTimestamp,
		Completed:  u.Status.CompletionTimestamp,
	}
}

// Copy implements Object.
func (u Upload) Copy() Object { return Upload{u.DeepCopy()} }

// SetCancel implements Object.
func (u Upload) SetCancel() { u.Spec.Cancel = true }

// Finish implements Object.
func (u Upload) Finish(phase, message string, at metav1.Time) {
	u.Status.Phase = velerov2alpha1.DataUploadPhase(phase)
	u.Status.Message = message
	u.Status.CompletionTimestamp = &at
}

// Download makes an Object of a DataDownload.
type Download struct{ *velerov2alpha1.DataDownload }

// Client implements Object.
func (d Download) Client() client.Object { return d.DataDownload }

// Kind implements Object.
func (d Download) Kind() string { return "DataDownload" }

// State implements Object.
func (d Download) State() State {
	return State{
		Noted:      noted(string(d.Status.Phase), d.Status.Message, d.Annotations),
		Phase:      string(d.Status.Phase),
		Message:    d.Status.Message,
		BytesDone:  d.Status.Progress.BytesDone,
		TotalBytes: d.Status.Progress.TotalBytes,
		Started:    d.Status.StartTimestamp,
		Completed:  d.Status.CompletionTimestamp,
	}
}

// Copy implements Object.
func (d Download) Copy() Object { return Download{d.DeepCopy()} }

// SetCancel implements Object.
func (d Download) SetCancel() { d.Spec.Cancel = true }

// Finish implements Object.
func (d Download) Finish(phase, message string, at metav1.Time) {
	d.Status.Phase = velerov2alpha1.DataDownloadPhase(phase)
	d.Status.Message = message
	d.Status.CompletionTimestamp = &at
}

// OwnedBy are the owner references of what a Backup or Restore started.
func OwnedBy(kind string, owner client.Object) []metav1.OwnerReference {
	controller := true
	return []metav1.OwnerReference{{
		APIVersion: velerov1.SchemeGroupVersion.String(),
		Kind:       kind,
		Name:       owner.GetName(),
		UID:        owner.GetUID(),
		Controller: &controller,
	}}
}

// Adoptable says why an object that exists already cannot be the one that an
// earlier attempt at the same operation made.
func Adoptable(found, wanted client.Object) error {
	belongs, want := found.GetLabels()[velerov1.AsyncOperationIDLabel], wanted.GetLabels()[velerov1.AsyncOperationIDLabel]
	switch {
	case found.GetDeletionTimestamp() != nil:
		return errors.New("it is being deleted")
	case belongs != want:
		return fmt.Errorf("it belongs to operation %q, want %q", belongs, want)
	}
	return nil
}

// ErrLost says that the object of an operation is gone: somebody deleted it. Any
// other error of FindUpload and FindDownload may pass.
var ErrLost = errors.New("operation is lost")

// FindUpload returns the DataUpload of an operation.
func FindUpload(ctx context.Context, c client.Client, namespace, operationID string) (Upload, error) {
	var list velerov2alpha1.DataUploadList
	if err := find(ctx, c, &list, namespace, operationID); err != nil {
		return Upload{}, fmt.Errorf("list DataUploads of operation %s: %w", operationID, err)
	}
	if len(list.Items) != 1 {
		return Upload{}, fmt.Errorf("%w: %d DataUploads of operation %s, want 1", ErrLost, len(list.Items), operationID)
	}
	return Upload{&list.Items[0]}, nil
}

// FindDownload returns the DataDownload of an operation.
func FindDownload(ctx context.Context, c client.Client, namespace, operationID string) (Download, error) {
	var list velerov2alpha1.DataDownloadList
	if err := find(ctx, c, &list, namespace, operationID); err != nil {
		return Download{}, fmt.Errorf("list DataDownloads of operation %s: %w", operationID, err)
	}
	if len(list.Items) != 1 {
		return Download{}, fmt.Errorf("%w: %d DataDownloads of operation %s, want 1", ErrLost, len(list.Items), operationID)
	}
	return Download{&list.Items[0]}, nil
}

func find(ctx context.Context, c client.Client, list client.ObjectList, namespace, operationID string) error {
	return c.List(ctx, list, client.InNamespace(namespace), client.MatchingLabels{velerov1.AsyncOperationIDLabel: operationID})
}
