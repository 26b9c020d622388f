package controller

import (
	"context"
	"slices"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

// siblings maps a DataUpload to the others of the same backup of a VM.
func (e *engine) siblings(ctx context.Context, object client.Object) []reconcile.Request {
	op := operation.Of(object)
	if op == nil || vmBackupOf(op) == "" {
		return nil
	}
	return e.vmDisks(ctx, func(other *operation.View) bool { return other.UID != op.UID && vmBackupOf(other) == vmBackupOf(op) })
}

// disksOf maps a Backup to the DataUploads of disks of VMs that wait until Velero has written it.
func (e *engine) disksOf(ctx context.Context, object client.Object) []reconcile.Request {
	return e.vmDisks(ctx, func(op *operation.View) bool {
		name, _ := backupOf(op.Upload)
		return vmBackupOf(op) != "" && name == object.GetName()
	})
}

func (e *engine) vmDisks(ctx context.Context, wanted func(*operation.View) bool) []reconcile.Request {
	all, err := e.list(ctx)
	if err != nil {
		return nil // they poll as well
	}
	return requests(slices.DeleteFunc(all, func(op *operation.View) bool { return op.Status.Phase.Terminal() || !wanted(op) }))
}

// vmBackupMoved passes a step of the backup of a VM, which the other disks wait for.
func vmBackupMoved() predicate.Predicate {
	return updates(func(was, is client.Object) bool {
		const key = identity.AnnotationVMBackup
		return was.GetAnnotations()[key] != is.GetAnnotations()[key]
	})
}

// backupWritten passes a Backup when Velero has written it.
func backupWritten() predicate.Predicate {
	return updates(func(was, is client.Object) bool {
		before, ok := was.(*velerov1.Backup)
		after, too := is.(*velerov1.Backup)
		return ok && too && before.Status.Phase != after.Status.Phase
	})
}

// updates passes only changes of objects that there were.
func updates(wanted func(was, is client.Object) bool) predicate.Predicate {
	return predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
		DeleteFunc:  func(event.DeleteEvent) bool { return false },
		UpdateFunc:  func(e event.UpdateEvent) bool { return wanted(e.ObjectOld, e.ObjectNew) },
	}
}

// The objects of KubeVirt are not watched: a cluster may not have them. A backup that has begun is
// looked at often for a while, because most take seconds.
const (
	vmPollInterval = time.Second
	vmPollFor      = 2 * time.Minute
)

// looksOften reports whether a DataUpload leads a backup of a VM that may be ready at any moment.
func (e *engine) looksOften(op *operation.View) bool {
	if op.Status.VMBackup == "" || op.Status.Phase != phase.New || e.now().Sub(op.Created) > vmPollFor {
		return false
	}
	state, err := vmbackup.Parse(op.Status.VMBackup)
	return err == nil && state.Begun && !state.Ready
}
