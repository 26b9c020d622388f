package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// downloads is the flow of a DataDownload:
//
//	secure  wait for the target PVC and, if it binds late, for its node
//	expose  BackupRepository, empty PVC like the target, mover pod
//	finish  hand the volume over to the target PVC, delete the rest
//
// One that writes into a live PVC is a liveTarget.
type downloads struct {
	surroundings
}

// secure checks the request and waits for the target without taking a slot: a target whose
// pod is never created must not hold up others.
func (d *downloads) secure(ctx context.Context, op *operation.View) (phase.Work, error) {
	dd := op.Download
	if dd.Spec.SnapshotID == "" {
		// This must not become "the latest": Velero creates such a DataDownload from a
		// canceled DataUpload.
		return phase.Work{}, fmt.Errorf("%w: the backup of this volume did not complete: there is no snapshot ID to restore", phase.ErrBroken)
	}
	if _, _, err := d.repositoryFor(ctx, dd.Spec.SourceNamespace, dd.Spec.BackupStorageLocation); err != nil {
		return phase.Work{}, err
	}
	if live, ok := d.inPlace(op); ok {
		return live.secure(ctx)
	}
	place, err := d.placeFor(ctx, dd)
	if err != nil || place.waiting != "" {
		return phase.Work{Detail: place.waiting}, err
	}
	op.Status.Place = place.node
	return phase.Work{State: phase.Secured}, nil
}

// place is where a restored volume has to be.
type place struct {
	target *corev1.PersistentVolumeClaim
	// class is what the volume is made of.
	class string
	// node is the only node that will do, or "" if any will. The pod that uses the target
	// tolerates its taints.
	node    string
	taints  []corev1.Taint
	waiting string
}

// placeFor reads the target PVC.
func (d *downloads) placeFor(ctx context.Context, dd *velerov2alpha1.DataDownload) (place, error) {
	key := targetOf(dd)
	target, err := kube.Find(ctx, d.reader, key, &corev1.PersistentVolumeClaim{})
	switch {
	case err != nil:
		return place{}, err
	case target == nil:
		return d.missing(ctx, dd)
	case target.DeletionTimestamp != nil:
		return place{}, fmt.Errorf("%w: target PVC %s is being deleted", phase.ErrBroken, key)
	case target.Spec.VolumeName != "":
		return place{}, fmt.Errorf("%w: target PVC %s is bound to PV %s already", phase.ErrBroken, key, target.Spec.VolumeName)
	case target.Spec.StorageClassName == nil:
		return place{waiting: fmt.Sprintf("target PVC %s has no storage class, and the cluster has no default", key)}, nil
	}
	className := d.classFor(target)
	if className == "" {
		return place{}, fmt.Errorf("%w: target PVC %s has the storage class \"\", which provides no volumes: name one in restorePVC.storageClass of the configuration",
			phase.ErrBroken, key)
	}
	class, err := d.storageClass(ctx, className)
	switch {
	case err != nil:
		return place{}, err
	case class == nil:
		return place{waiting: fmt.Sprintf("StorageClass %s of target PVC %s does not exist", className, key)}, nil
	case !bindsLate(class) || d.live.Get().RestorePVC.IgnoreDelayBinding:
		return place{target: target, class: className}, nil
	}
	node := exposer.SelectedNode(target)
	if node == "" {
		return place{waiting: fmt.Sprintf("target PVC %s waits for its first consumer: no pod that uses it was scheduled yet", key)}, nil
	}
	found, err := kube.Find(ctx, d.reader, client.ObjectKey{Name: node}, &corev1.Node{})
	if err != nil {
		return place{}, err
	}
	if found == nil {
		return place{waiting: fmt.Sprintf("node %s, which the scheduler chose for target PVC %s, does not exist any more: a new pod that uses the PVC is waited for", node, key)}, nil
	}
	return place{target: target, class: className, node: node, taints: found.Spec.Taints}, nil
}

// missing says why there is no target PVC. Velero creates it before its Restore waits for the
// operations: after that, it never comes.
func (d *downloads) missing(ctx context.Context, dd *velerov2alpha1.DataDownload) (place, error) {
	key := targetOf(dd)
	restore := &velerov1.Restore{}
	i := slices.IndexFunc(dd.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "Restore" })
	if i >= 0 {
		found, err := kube.Find(ctx, d.reader, client.ObjectKey{Namespace: d.namespace, Name: dd.OwnerReferences[i].Name}, restore)
		if err != nil {
			return place{}, err
		}
		if found != nil && hasCreated(found) {
			return place{}, fmt.Errorf("%w: Velero has not created target PVC %s: the errors of Restore %s say why", phase.ErrBroken, key, found.Name)
		}
	}
	return place{waiting: fmt.Sprintf("target PVC %s does not exist yet", key)}, nil
}

// hasCreated reports whether a restore has created all that it will create.
func hasCreated(restore *velerov1.Restore) bool {
	switch restore.Status.Phase {
	case "", velerov1.RestorePhaseNew, velerov1.RestorePhaseInProgress:
		return false
	default:
		return true
	}
}

func targetOf(dd *velerov2alpha1.DataDownload) types.NamespacedName {
	return types.NamespacedName{Namespace: dd.Spec.TargetVolume.Namespace, Name: dd.Spec.TargetVolume.PVC}
}

// expose creates what leads to the mover pod, and the pod, and returns what it waits for.
func (d *downloads) expose(ctx context.Context, op *operation.View) (phase.Work, error) {
	if live, ok := d.inPlace(op); ok {
		return live.expose(ctx)
	}
	dd := op.Download
	repositoryName, waiting, err := d.repositoryFor(ctx, dd.Spec.SourceNamespace, dd.Spec.BackupStorageLocation)
	if err != nil {
		return phase.Work{}, err
	}
	at, err := d.placeFor(ctx, dd)
	if err != nil || at.waiting != "" {
		return phase.Work{Detail: at.waiting}, err
	}
	inFile := isDiskImage(dd, at.target)
	restorePVC := d.live.Get().RestorePVC
	copies := exposer.CopiesOf(restorePVC.SecretNames, restorePVC.ConfigMapNames)
	needed, err := d.copyFor(ctx, op, dd.Spec.TargetVolume.Namespace, copies)
	switch {
	case errors.Is(err, exposer.ErrNoOriginal):
		return phase.Work{Detail: err.Error()}, nil // the restore may still make it
	case err != nil || needed != "":
		return phase.Work{Detail: needed}, err
	}
	err = d.exposer.EnsureVolume(ctx, op.Operation, func() (*corev1.PersistentVolumeClaim, error) {
		return exposer.PlanRestoreVolume(op.Operation, exposer.RestoreVolume{
			Target: at.target, Class: at.class, Size: dd.Spec.SnapshotSize, Node: at.node, Filesystem: inFile,
		}), nil
	})
	if err != nil {
		return phase.Work{}, err
	}
	if waiting != "" {
		return phase.Work{Detail: waiting}, nil
	}
	plan := exposer.PodPlan{
		Operation:    op.Operation,
		Attempt:      op.Status.Attempt.Number,
		Relabel:      true,
		Node:         at.node,
		Taints:       at.taints,
		StorageClass: at.class,
	}
	if plan.CacheClass, err = d.cacheClass(ctx, dd.Spec.SnapshotSize); err != nil {
		return phase.Work{}, err
	}
	request := d.request(op, repositoryName)
	if inFile {
		plan.Directory = &exposer.Directory{UserID: kubevirt.UserID, Write: true}
		request.Device, request.Restore.DiskImage = exposer.DirectoryPath, true
	}
	return d.createPod(ctx, plan, request, dd.Spec.BackupStorageLocation)
}

// request is what the mover pod of a download is asked to do.
func (d *downloads) request(op *operation.View, repositoryName string) task.Request {
	dd := op.Download
	return task.Request{
		Namespace:        d.namespace,
		Name:             dd.Name,
		OperationID:      string(dd.UID),
		Device:           exposer.DevicePath,
		BackupRepository: repositoryName,
		Volume:           repository.VolumeKey{Namespace: dd.Spec.SourceNamespace, PVC: dd.Spec.TargetVolume.PVC},
		Restore:          &task.Restore{SnapshotID: repository.SnapshotID(dd.Spec.SnapshotID), Resume: op.Status.Attempt.Number > 1},
	}
}

// isDiskImage reports whether the image is the disk of a VM, which the target has in a file.
func isDiskImage(dd *velerov2alpha1.DataDownload, target *corev1.PersistentVolumeClaim) bool {
	mode := target.Spec.VolumeMode
	return dd.Spec.DataMoverConfig[identity.ConfigVM] != "" && (mode == nil || *mode == corev1.PersistentVolumeFilesystem)
}

// complete writes the report into the status.
func (d *downloads) complete(_ context.Context, op *operation.View, report task.Report) error {
	op.Status.BytesTotal, op.Status.BytesDone = report.VolumeSize, report.VolumeSize
	op.Status.Filesystem = report.Filesystem
	return nil
}

// finish hands the restored volume over, if there is one, and releases the rest.
func (d *downloads) finish(ctx context.Context, op *operation.View) (ending, error) {
	if live, ok := d.inPlace(op); ok {
		return live.finish(ctx)
	}
	end := ending{committed: true, delivered: true}
	if op.Status.Outcome.Phase == phase.Completed {
		mount, err := d.mountFor(ctx, op)
		if err != nil {
			return ending{}, err
		}
		handover, err := d.exposer.Rebind(ctx, op.Operation, targetOf(op.Download), mount)
		end.committed, end.delivered = handover.Committed, handover.Delivered
		if err != nil || !handover.Delivered {
			end.left = []string{handover.Waiting}
			return end, err
		}
	}
	var err error
	end.left, err = d.releaseVolume(ctx, op)
	return end, err
}

// mountFor returns how the target's class mounts the volume: as the file system that it holds, or
// else as that of the class.
func (d *downloads) mountFor(ctx context.Context, op *operation.View) (exposer.Mount, error) {
	var mount exposer.Mount
	target, err := kube.Find(ctx, d.reader, targetOf(op.Download), &corev1.PersistentVolumeClaim{})
	if err == nil && target != nil && target.Spec.StorageClassName != nil {
		var class *storagev1.StorageClass
		if class, err = d.storageClass(ctx, d.classFor(target)); class != nil {
			mount.Parameters = class.Parameters
		}
	}
	if mount.Filesystem = op.Status.Filesystem; mount.Filesystem == "" {
		mount.Filesystem = exposer.FilesystemOf(mount.Parameters)
	}
	return mount, err
}

// classFor returns the name of the class that the volume of a target is made of.
func (d *downloads) classFor(target *corev1.PersistentVolumeClaim) string {
	if other := d.live.Get().RestorePVC.StorageClass[*target.Spec.StorageClassName]; other != "" {
		return other
	}
	return *target.Spec.StorageClassName
}
