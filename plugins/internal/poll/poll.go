// Package poll is what the backup and the restore action have in common once they
// have created a DataUpload or a DataDownload: it answers Velero's polls from the
// status of that object, and passes a cancellation on.
//
// # Acceptance
//
// If the mover is not installed, nobody reacts to a DataUpload or DataDownload.
// Velero would wait for its item operation timeout (4 hours by default) and then
// report no cause. So an operation without any trace of a manager is given up after
// a while and reported with the likely cause. A manager leaves a trace when it
// changes the phase; while an operation still waits for its turn, the manager sets
// the message and annotations.
//
// Giving up races with a manager that starts at the same moment. The optimistic
// lock decides: whoever changes the object first wins, and the other one does
// nothing. Only the winner may release what the operation holds.
package poll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// CallTimeout bounds the API requests of one call from Velero, which gives a
// plugin no context of its own.
const CallTimeout = time.Minute

// defaultAcceptTimeout is how long an operation may wait for a trace of a manager.
// A running manager needs a second. After its node has failed, it may take minutes
// until it runs on another one.
const defaultAcceptTimeout = 5 * time.Minute

// keyAcceptTimeout is the key of the plugin's ConfigMap that overrides
// defaultAcceptTimeout.
const keyAcceptTimeout = "acceptTimeout"

// Poller answers Velero's questions about the operations of one action.
type Poller struct {
	Log logrus.FieldLogger
	API client.Client
	// Action and Plugin are the name and the kind that the action is registered
	// under. They select the plugin's ConfigMap.
	Action string
	Plugin common.PluginKind
	// Kind is the kind of the operations: identity.KindDataUpload or
	// identity.KindDataDownload.
	Kind string
	Now  func() time.Time
	// Release releases what an operation holds that was given up.
	Release func(ctx context.Context, v *operation.View) error
}

// errLost says that somebody has deleted the object of an operation. Any other
// error of find may pass.
var errLost = errors.New("operation is lost")

// Progress answers Velero's poll of one operation. It gives the operation up if no
// manager has left a trace on it in time.
//
// Velero ends an operation for good when its Progress fails. So an error that may
// pass becomes the description of the progress.
func (p Poller) Progress(operationID, namespace string, itemOperationTimeout time.Duration) (velero.OperationProgress, error) {
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	progress, err := p.progress(ctx, operationID, namespace, itemOperationTimeout)
	if err != nil && !errors.Is(err, errLost) {
		p.Log.WithError(err).WithField("operation", operationID).Warn("Cannot read the progress of the operation; Velero asks again")
		return velero.OperationProgress{Description: err.Error()}, nil
	}
	return progress, err
}

func (p Poller) progress(ctx context.Context, operationID, namespace string, itemOperationTimeout time.Duration) (velero.OperationProgress, error) {
	v, err := p.find(ctx, operationID, namespace)
	if err != nil {
		return velero.OperationProgress{}, err
	}
	if hasTrace(v) {
		return render(v), nil
	}
	timeout, err := p.AcceptTimeout(ctx, namespace, itemOperationTimeout)
	if err != nil {
		return velero.OperationProgress{}, err
	}
	if p.Now().Sub(v.Created) < timeout {
		return render(v), nil
	}
	gaveUp, err := p.giveUp(ctx, v, phase.Failed, fmt.Sprintf(
		"%s %s was not accepted within %s: is the blockmover manager running in namespace %s?", v.Kind, v.Key(), timeout, namespace))
	if err != nil || !gaveUp {
		return velero.OperationProgress{}, err
	}
	progress := render(v)
	if err := p.Release(ctx, v); err != nil {
		progress.Err = errors.Join(errors.New(progress.Err), err).Error()
	}
	return progress, nil
}

// Cancel ends an operation. Without a trace of a manager it ends at once, and what
// it holds is released. Otherwise the manager is asked to end it and answers with
// phase Canceled. An operation that has already ended stays as it is.
func (p Poller) Cancel(operationID, namespace string) error {
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	v, err := p.find(ctx, operationID, namespace)
	if err != nil || v.Status.Phase.Terminal() {
		return err
	}
	if !hasTrace(v) {
		gaveUp, err := p.giveUp(ctx, v, phase.Canceled, v.Kind+" was canceled before anybody accepted it")
		if err != nil {
			return err
		}
		if gaveUp {
			return p.Release(ctx, v)
		}
	}
	return operation.RequestCancel(ctx, p.API, v.Operation)
}

// AcceptTimeout returns how long an operation may wait for a trace of a manager:
// the value in the plugin's ConfigMap, or else the default. The ConfigMap is the
// one in Velero's namespace with the labels velero.io/plugin-config and
// <name of the action>: <its kind>. The timeout is at most half of the item
// operation timeout, after which Velero itself gives up and reports no cause.
func (p Poller) AcceptTimeout(ctx context.Context, namespace string, itemOperationTimeout time.Duration) (time.Duration, error) {
	timeout := defaultAcceptTimeout
	var configs corev1.ConfigMapList
	if err := p.API.List(ctx, &configs, client.InNamespace(namespace),
		client.HasLabels{"velero.io/plugin-config"}, client.MatchingLabels{p.Action: string(p.Plugin)}); err != nil {
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

// find returns the object of an operation of Velero.
func (p Poller) find(ctx context.Context, operationID, namespace string) (*operation.View, error) {
	found, err := operation.List(ctx, p.API, p.Kind, client.InNamespace(namespace),
		client.MatchingLabels{velerov1.AsyncOperationIDLabel: operationID})
	if err != nil {
		return nil, fmt.Errorf("find operation %s: %w", operationID, err)
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%w: %d %ss of operation %s, want 1", errLost, len(found), p.Kind, operationID)
	}
	return found[0], nil
}

// giveUp ends an operation that has no trace of a manager: it asks to cancel and
// sets the phase that the operation ends in. A manager that starts later leaves it
// alone, and people see what happened. It reports false if somebody else has
// changed the object since it was read.
func (p Poller) giveUp(ctx context.Context, v *operation.View, end phase.Phase, message string) (bool, error) {
	v.SetCancel()
	v.Status.Phase, v.Status.Message, v.Status.Completed = end, message, p.Now()
	err := v.Save(ctx, p.API)
	if apierrors.IsConflict(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("give up %s %s: %w", v.Kind, v.Key(), err)
	}
	return true, nil
}

// hasTrace looks for a trace of a manager. On an object that a plugin has just
// created, nobody else writes any of them.
func hasTrace(v *operation.View) bool {
	for key := range v.Object().GetAnnotations() {
		if strings.HasPrefix(key, identity.Domain) {
			return true
		}
	}
	return v.Status.Phase != phase.New || v.Status.Message != ""
}

// render returns the status of an operation as Velero shows it.
func render(v *operation.View) velero.OperationProgress {
	s := v.Status
	if s.Phase == phase.New {
		return velero.OperationProgress{Description: orElse(s.Message, "waiting for the blockmover manager to accept the "+v.Kind)}
	}
	p := velero.OperationProgress{
		Completed:      s.Phase.Terminal(),
		Description:    string(s.Phase),
		OperationUnits: "Bytes",
		NCompleted:     s.BytesDone,
		NTotal:         s.BytesTotal,
		Started:        s.Started,
		Updated:        s.Completed,
	}
	if !p.Completed && s.Message != "" {
		p.Description += ": " + s.Message
	}
	switch s.Phase {
	case phase.Failed:
		p.Err = orElse(s.Message, v.Kind+" failed without a message")
	case phase.Canceled:
		p.Err = orElse(s.Message, v.Kind+" was canceled")
	default: // no error
	}
	return p
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
