package controller

import (
	"context"
	"errors"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/blockmover/blockmover/internal/forget"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// failedBackups names the images of failed backups to Velero's deletion controller. A backup that is Failed
// may have no contents in the object store, and when it is deleted, Velero does not call the delete item
// action. Then nobody would know its images any more.
//
// A backup may fail before or after its uploads have ended. It may be deleted as soon as both have. So an
// upload names its image before it ends, if its backup has failed by then (uploads.noteIfFailed), and this
// controller names the images of uploads that ended before.
type failedBackups struct {
	client    client.Client
	namespace string
}

func (f *failedBackups) setup(mgr ctrl.Manager) error {
	backupOfUpload := func(_ context.Context, object client.Object) []reconcile.Request {
		du, ok := object.(*velerov2alpha1.DataUpload)
		if !ok {
			return nil
		}
		name, _ := backupOf(du)
		if name == "" {
			return nil
		}
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: du.Namespace, Name: name}}}
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("failed-backups").
		For(&velerov1.Backup{}, builder.WithPredicates(becomes(hasFailed))).
		Watches(&velerov2alpha1.DataUpload{}, handler.EnqueueRequestsFromMapFunc(backupOfUpload), builder.WithPredicates(becomes(hasImage))).
		Complete(f)
}

// becomes passes objects on when they are first seen and when they are changed so that the condition holds.
func becomes(holds func(client.Object) bool) predicate.Predicate {
	return predicate.Funcs{
		CreateFunc:  func(e event.CreateEvent) bool { return holds(e.Object) },
		UpdateFunc:  func(e event.UpdateEvent) bool { return !holds(e.ObjectOld) && holds(e.ObjectNew) },
		DeleteFunc:  func(event.DeleteEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

func hasFailed(object client.Object) bool {
	backup, ok := object.(*velerov1.Backup)
	return ok && backup.Status.Phase == velerov1.BackupPhaseFailed
}

// hasImage reports whether a DataUpload of ours has saved an image.
func hasImage(object client.Object) bool {
	du, ok := object.(*velerov2alpha1.DataUpload)
	return ok && du.Spec.DataMover == identity.DataMover && du.Status.SnapshotID != ""
}

// Reconcile names the images of a backup, if it has failed.
func (f *failedBackups) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	backup, err := kube.Find(ctx, f.client, req.NamespacedName, &velerov1.Backup{})
	if err != nil || backup == nil || !hasFailed(backup) {
		return reconcile.Result{}, err
	}
	all := &velerov2alpha1.DataUploadList{}
	if err := f.client.List(ctx, all, client.InNamespace(f.namespace)); err != nil {
		return reconcile.Result{}, fmt.Errorf("list DataUploads: %w", err)
	}
	var errs []error
	for i := range all.Items {
		du := &all.Items[i]
		if _, uid := backupOf(du); uid != string(backup.UID) || !hasImage(du) {
			continue
		}
		errs = append(errs, noteImage(ctx, f.client, du, backup))
	}
	return reconcile.Result{}, errors.Join(errs...)
}

// noteIfFailed names the image of an upload if its backup has failed.
func (s surroundings) noteIfFailed(ctx context.Context, du *velerov2alpha1.DataUpload) error {
	name, uid := backupOf(du)
	if name == "" || !hasImage(du) {
		return nil
	}
	backup, err := kube.Find(ctx, s.reader, types.NamespacedName{Namespace: s.namespace, Name: name}, &velerov1.Backup{})
	if err != nil || backup == nil || string(backup.UID) != uid || !hasFailed(backup) {
		return err
	}
	return noteImage(ctx, s.client, du, backup)
}

func noteImage(ctx context.Context, c client.Client, du *velerov2alpha1.DataUpload, backup *velerov1.Backup) error {
	err := c.Create(ctx, forget.Note(du, backup))
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("note repo snapshot of DataUpload %s/%s: %w", du.Namespace, du.Name, err)
	}
	log.FromContext(ctx).Info("the image of a failed backup will be deleted with it",
		"dataUpload", du.Namespace+"/"+du.Name, "backup", backup.Name, "repoSnapshot", du.Status.SnapshotID)
	return nil
}
