package operation

import (
	"context"
	"fmt"

	"github.com/vmware-tanzu/velero/pkg/apis/velero/shared"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
)

// Save writes the status and whatever else was changed in the object to the API
// server. It does nothing if nothing has changed. It takes an optimistic lock: if
// somebody has changed the object since it was read, the error is a conflict of
// the API server.
func (v *View) Save(ctx context.Context, c client.Writer) error {
	if err := v.render(); err != nil {
		return err
	}
	object := v.Object()
	diff, err := client.MergeFrom(v.before).Data(object)
	if err != nil {
		return fmt.Errorf("compare %s %s: %w", v.Kind, v.Key(), err)
	}
	if string(diff) == "{}" {
		return nil
	}
	locked := client.MergeFromWithOptions(v.before, client.MergeFromWithOptimisticLock{})
	if err := c.Patch(ctx, object, locked); err != nil {
		return fmt.Errorf("patch %s %s: %w", v.Kind, v.Key(), err)
	}
	v.before, v.read = Of(object).before, v.Status
	return nil
}

// render writes the status into the object. An annotation that still has the value
// that was read is not touched: a damaged one stays until the manager replaces it.
func (v *View) render() error {
	was, err := v.read.annotations()
	if err != nil {
		return err
	}
	is, err := v.Status.annotations()
	if err != nil {
		return err
	}
	object := v.Object()
	for key, value := range is {
		switch value {
		case was[key]:
		case "":
			annotations := object.GetAnnotations()
			delete(annotations, key)
			object.SetAnnotations(annotations)
		default:
			kube.SetAnnotation(object, key, value)
		}
	}
	name := v.Status.Phase
	if name == phase.New && v.read.Phase == phase.New {
		name = "" // a missing phase stays missing
	}
	s := v.Status
	progress := shared.DataMoveOperationProgress{BytesDone: s.BytesDone, TotalBytes: s.BytesTotal}
	if v.Upload != nil {
		to := &v.Upload.Status
		if name != "" {
			to.Phase = velerov2alpha1.DataUploadPhase(name)
		}
		to.Message, to.Node, to.Progress = s.Message, s.Node, progress
		to.AcceptedTimestamp, to.StartTimestamp, to.CompletionTimestamp = timestamp(s.Accepted), timestamp(s.Started), timestamp(s.Completed)
		return nil
	}
	to := &v.Download.Status
	if name != "" {
		to.Phase = velerov2alpha1.DataDownloadPhase(name)
	}
	to.Message, to.Node, to.Progress = s.Message, s.Node, progress
	to.AcceptedTimestamp, to.StartTimestamp, to.CompletionTimestamp = timestamp(s.Accepted), timestamp(s.Started), timestamp(s.Completed)
	return nil
}

// SetCancel asks the operation to end. Save writes it.
func (v *View) SetCancel() {
	v.Cancel = true
	if v.Upload != nil {
		v.Upload.Spec.Cancel = true
		return
	}
	v.Download.Spec.Cancel = true
}

// RequestCancel asks the manager to end an operation, which need not have been read. It takes no
// lock: nobody else writes spec.cancel, and progress must not get in its way.
func RequestCancel(ctx context.Context, c client.Writer, op identity.Operation) error {
	object, _, err := blank(op.Kind)
	if err != nil {
		return err
	}
	object.SetNamespace(op.Namespace)
	object.SetName(op.Name)
	if err := c.Patch(ctx, object, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"cancel":true}}`))); err != nil {
		return fmt.Errorf("cancel %s: %w", op.Reference(), err)
	}
	return nil
}
