package controller

import (
	"context"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
)

// CacheOptions limits the cache to what is watched. In Velero's namespace these are
// Velero's objects, and the pods, PVCs and VolumeSnapshots that belong to an operation.
// PVs and contents must belong to an operation as well. In other namespaces these are
// the PVCs of Velero's restores and the VolumeSnapshots of its backups.
func CacheOptions(namespace string) (cache.Options, error) {
	ours, err := hasLabel(identity.LabelOperation)
	if err != nil {
		return cache.Options{}, err
	}
	restored, err := hasLabel(velerov1.RestoreNameLabel)
	if err != nil {
		return cache.Options{}, err
	}
	taken, err := hasLabel(identity.LabelBackupUID)
	if err != nil {
		return cache.Options{}, err
	}
	return cache.Options{
		DefaultNamespaces: map[string]cache.Config{namespace: {}},
		// Who has written which field is half of a small object, and nobody asks.
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:                      {Transform: trimNode},
			&corev1.Pod{}:                       {Label: ours},
			&corev1.PersistentVolume{}:          {Label: ours},
			&snapshotv1.VolumeSnapshotContent{}: {Label: ours},
			&snapshotv1.VolumeSnapshot{}: {Namespaces: map[string]cache.Config{
				namespace:           {LabelSelector: ours},
				cache.AllNamespaces: {LabelSelector: taken},
			}},
			&corev1.PersistentVolumeClaim{}: {Namespaces: map[string]cache.Config{
				namespace:           {LabelSelector: ours},
				cache.AllNamespaces: {LabelSelector: restored},
			}},
		},
	}, nil
}

func hasLabel(key string) (labels.Selector, error) {
	requirement, err := labels.NewRequirement(key, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("select by label %s: %w", key, err)
	}
	return labels.NewSelector().Add(*requirement), nil
}

// The indexes of the cache: the VolumeSnapshot that a DataUpload is made for, and the
// PVC that a DataDownload restores, as namespace/name.
const (
	indexSource = "source"
	indexTarget = "target"
)

// addIndexes adds the indexes to the cache.
func addIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	err := indexer.IndexField(ctx, &velerov2alpha1.DataUpload{}, indexSource, func(object client.Object) []string {
		du, ok := object.(*velerov2alpha1.DataUpload)
		if !ok || du.Spec.CSISnapshot == nil {
			return nil
		}
		return []string{sourceOf(du).String()}
	})
	if err != nil {
		return fmt.Errorf("index DataUploads by %s: %w", indexSource, err)
	}
	err = indexer.IndexField(ctx, &velerov2alpha1.DataDownload{}, indexTarget, func(object client.Object) []string {
		dd, ok := object.(*velerov2alpha1.DataDownload)
		if !ok {
			return nil
		}
		return []string{targetOf(dd).String()}
	})
	if err != nil {
		return fmt.Errorf("index DataDownloads by %s: %w", indexTarget, err)
	}
	return nil
}

// ownerOf maps an object of an operation to the operation.
func ownerOf(kind, namespace string) handler.MapFunc {
	return func(_ context.Context, object client.Object) []reconcile.Request {
		op, ok := identity.OperationOf(object.GetLabels(), object.GetAnnotations())
		if !ok || op.Kind != kind || op.Namespace != namespace {
			return nil
		}
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: op.Namespace, Name: op.Name}}}
	}
}

// referring maps an object to the operations that wait for it, by an index.
func (e *engine) referring(index string) handler.MapFunc {
	return func(ctx context.Context, object client.Object) []reconcile.Request {
		key := client.ObjectKeyFromObject(object).String()
		all, err := e.list(ctx, client.MatchingFields{index: key})
		if err != nil {
			return nil // they poll as well
		}
		return requests(slices.DeleteFunc(all, func(op *operation.View) bool { return op.Status.Phase.Terminal() }))
	}
}

// underway maps to the operations that wait for a BackupRepository.
func (e *engine) underway(ctx context.Context, _ client.Object) []reconcile.Request {
	all, err := e.list(ctx)
	if err != nil {
		return nil // they poll as well
	}
	return requests(slices.DeleteFunc(all, func(op *operation.View) bool { return !op.Status.Phase.Underway() }))
}

// waiting maps to the operations that may start now.
func (e *engine) waiting(ctx context.Context, _ client.Object) []reconcile.Request {
	all, err := e.next(ctx)
	if err != nil {
		return nil // the next change maps again
	}
	return requests(all)
}

func requests(all []*operation.View) []reconcile.Request {
	out := make([]reconcile.Request, len(all))
	for i, op := range all {
		out[i].NamespacedName = op.Key()
	}
	return out
}

// ignoreProgress drops the events that progress makes.
func ignoreProgress() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !equality.Semantic.DeepEqual(withoutProgress(e.ObjectOld), withoutProgress(e.ObjectNew))
	}}
}

func withoutProgress(object client.Object) client.Object {
	object, _ = object.DeepCopyObject().(client.Object)
	object.SetResourceVersion("")
	object.SetGeneration(0)
	if annotations := object.GetAnnotations(); annotations[identity.AnnotationAttempt] != "" {
		delete(annotations, identity.AnnotationAttempt) // it has the bytes that were read
		object.SetAnnotations(annotations)
	}
	switch o := object.(type) {
	case *velerov2alpha1.DataUpload:
		o.Status.Progress.BytesDone, o.Status.Progress.TotalBytes = 0, 0
	case *velerov2alpha1.DataDownload:
		o.Status.Progress.BytesDone, o.Status.Progress.TotalBytes = 0, 0
	}
	return object
}

// slotFreed passes what lets another operation start: one that takes less of the limits
// than before, or is gone.
func slotFreed() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool {
			was, is := operation.Of(e.ObjectOld), operation.Of(e.ObjectNew)
			if was == nil || is == nil {
				return false
			}
			before, now := weigh(was), weigh(is)
			return now.underway < before.underway || now.preparing < before.preparing
		},
		DeleteFunc: func(e event.DeleteEvent) bool {
			op := operation.Of(e.Object)
			return op != nil && weigh(op) != weight{}
		},
	}
}

// needsSweep passes the end of an operation or a Backup, the deletion of an operation
// that had not ended, and that of any Backup: its retained snapshots are needless.
func needsSweep() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
		UpdateFunc:  func(e event.UpdateEvent) bool { return !hasEnded(e.ObjectOld) && hasEnded(e.ObjectNew) },
		DeleteFunc: func(e event.DeleteEvent) bool {
			_, isBackup := e.Object.(*velerov1.Backup)
			return isBackup || !hasEnded(e.Object)
		},
	}
}

// hasEnded reports whether an operation or a Backup has ended.
func hasEnded(object client.Object) bool {
	if backup, ok := object.(*velerov1.Backup); ok {
		return backupEnded(backup)
	}
	op := operation.Of(object)
	return op != nil && op.Status.Phase.Terminal()
}

// backupEnded reports whether a Backup takes no more snapshots.
func backupEnded(backup *velerov1.Backup) bool {
	switch backup.Status.Phase {
	case velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed, velerov1.BackupPhaseFailed,
		velerov1.BackupPhaseFailedValidation, velerov1.BackupPhaseDeleting:
		return true
	default:
		return false
	}
}
