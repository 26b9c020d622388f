package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

// sweeper releases what nobody else will: the objects of operations that are gone or have
// ended, the VolumeSnapshots and groups of backups that have, and the retained
// VolumeSnapshots that no backup needs any more.
//
// It lists objects first and what they belong to after that, both at the API server. So
// an owner that is missing has been deleted, and is not merely too young to be seen.
type sweeper struct {
	client    client.Client
	reader    client.Reader
	exposer   *exposer.Exposer
	rehomer   rehome.Rehomer
	groups    groupsnapshot.Groups
	vms       *vmbackup.Maker
	namespace string

	recorder events.EventRecorder
	metrics  *metrics
	now      func() time.Time
	// held are the retained snapshots of which it was said that they hold a volume.
	held map[string]bool
	// last is when the last sweep began.
	last time.Time
	// again counts the sweeps in a row that left something.
	again int
	// counted is what this sweep has counted, and before what the last one has.
	counted, before map[string]bool
}

// count counts something that is released. What takes several sweeps counts once.
func (s *sweeper) count(what, name string) {
	key := what + " " + name
	if !s.before[key] {
		s.metrics.swept.WithLabelValues(what).Inc()
	}
	s.counted[key] = true
}

// Times of the sweep. It is wanted when an operation or a backup has ended or is deleted;
// the interval covers what nobody watches, such as the volume of a retained snapshot.
const (
	sweepInterval    = 10 * time.Minute
	minSweepInterval = 30 * time.Second
	// maxAgain is how many sweeps in a row follow soon because something was going away.
	maxAgain = 10
)

// setup adds the sweep to a manager. It has one request, which is due at the start.
func (s *sweeper) setup(mgr ctrl.Manager) error {
	request := reconcile.Request{NamespacedName: types.NamespacedName{Name: "sweep"}}
	enqueue := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{request}
	})
	start := source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		queue.Add(request)
		return nil
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("sweep").
		Watches(&velerov2alpha1.DataUpload{}, enqueue, builder.WithPredicates(needsSweep())).
		Watches(&velerov2alpha1.DataDownload{}, enqueue, builder.WithPredicates(needsSweep())).
		Watches(&velerov1.Backup{}, enqueue, builder.WithPredicates(needsSweep())).
		WatchesRawSource(start).
		Complete(s)
}

// Reconcile sweeps, unless it did so less than minSweepInterval ago.
func (s *sweeper) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if wait := minSweepInterval - time.Since(s.last); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	s.last = time.Now()
	left, err := s.sweep(ctx)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("sweep is incomplete: %w", err)
	}
	if s.again++; left == 0 {
		s.again = 0
	}
	if s.again > 0 && s.again <= maxAgain {
		return reconcile.Result{RequeueAfter: minSweepInterval}, nil
	}
	return reconcile.Result{RequeueAfter: sweepInterval}, nil
}

// sweep returns how many objects are going away and need another sweep.
func (s *sweeper) sweep(ctx context.Context) (left int, err error) {
	s.counted, s.before = map[string]bool{}, s.counted
	operations, operationsErr := s.findOperations(ctx)
	snapshots, snapshotsErr := s.findSnapshots(ctx)
	retained, retainedErr := s.rehomer.ListRetained(ctx)
	groups, groupsErr := s.groups.Find(ctx, snapshots, recordsOf(retained)...)
	vms, vmsErr := s.vms.Names(ctx)
	if groupsErr == nil {
		s.metrics.groups.Set(float64(len(groups)))
	}
	err = errors.Join(operationsErr, groupsErr, snapshotsErr, retainedErr, vmsErr, s.sweepCopies(ctx))
	if len(operations)+len(groups)+len(snapshots)+len(retained)+len(vms) == 0 {
		return 0, err
	}
	o, ownersErr := s.listOwners(ctx)
	if ownersErr != nil {
		return 0, errors.Join(err, ownersErr)
	}
	released, releaseErr := s.sweepOperations(ctx, operations, o)
	dropped, retainedErr := s.sweepRetained(ctx, retained, o)
	ungrouped, groupErr := s.sweepGroups(ctx, groups, o)
	unmade, vmErr := s.sweepVMs(ctx, vms, o)
	return released + dropped + ungrouped + unmade, errors.Join(err, releaseErr, retainedErr, groupErr, vmErr,
		s.sweepBackups(ctx, snapshots, o),
	)
}

// owners are what the objects of the cluster can belong to, of every Velero in it: the
// objects of another Velero's backup look the same.
type owners struct {
	uploads, downloads []*operation.View
	backups            []velerov1.Backup
}

func (s *sweeper) listOwners(ctx context.Context) (owners, error) {
	uploads, uploadsErr := operation.List(ctx, s.reader, identity.KindDataUpload)
	downloads, downloadsErr := operation.List(ctx, s.reader, identity.KindDataDownload)
	backups := &velerov1.BackupList{}
	if err := s.reader.List(ctx, backups); err != nil {
		return owners{}, fmt.Errorf("list Backups: %w", err)
	}
	return owners{uploads, downloads, backups.Items}, errors.Join(uploadsErr, downloadsErr)
}

// running returns the uploads that have not ended.
func (o owners) running() []*operation.View {
	return slices.DeleteFunc(slices.Clone(o.uploads), func(op *operation.View) bool { return op.Status.Phase.Terminal() })
}

// hasEnded reports whether a backup has ended or does not exist.
func (o owners) hasEnded(backupUID string) bool {
	for i := range o.backups {
		if string(o.backups[i].UID) == backupUID {
			return backupEnded(&o.backups[i])
		}
	}
	return true
}

// sweepOperations releases the objects of operations that do not run, and returns how
// many objects of them are going away.
func (s *sweeper) sweepOperations(ctx context.Context, found map[string]identity.Operation, o owners) (int, error) {
	for _, op := range slices.Concat(o.uploads, o.downloads) {
		if !op.Status.Phase.Terminal() {
			delete(found, op.UID)
		}
	}
	left := 0
	var errs []error
	for _, uid := range slices.Sorted(maps.Keys(found)) {
		n, err := s.release(ctx, found[uid])
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep after %s: %w", found[uid].Reference(), err))
			continue
		}
		left += n
		s.count(sweptOperation, uid)
	}
	return left, errors.Join(errs...)
}

// release goes as far as it can now, and returns how many objects are going away.
func (s *sweeper) release(ctx context.Context, op identity.Operation) (int, error) {
	live, err := releaseLive(ctx, s.client, s.reader, op)
	if err != nil {
		return 0, err
	}
	left, err := s.exposer.Release(ctx, op)
	if err != nil {
		return 0, err
	}
	if len(left) == 0 {
		left, err = s.rehomer.Release(ctx, op)
		if err != nil {
			return 0, err
		}
	}
	left = append(live, left...)
	log.FromContext(ctx).Info("released what an ended operation left", "operation", op.Reference(), "uid", op.UID, "goingAway", left)
	return len(left), nil
}

// findOperations returns the operations of our Velero that have a labelled object.
func (s *sweeper) findOperations(ctx context.Context) (map[string]identity.Operation, error) {
	found := map[string]identity.Operation{}
	for _, kind := range []struct {
		list       client.ObjectList
		namespaced bool
	}{
		{&corev1.PodList{}, true},
		{&corev1.PersistentVolumeClaimList{}, true},
		{&corev1.PersistentVolumeList{}, false},
		{&snapshotv1.VolumeSnapshotList{}, true},
		{&snapshotv1.VolumeSnapshotContentList{}, false},
	} {
		options := []client.ListOption{client.HasLabels{identity.LabelOperation}}
		if kind.namespaced {
			options = append(options, client.InNamespace(s.namespace))
		}
		if err := withoutKinds(s.reader.List(ctx, kind.list, options...)); err != nil {
			return nil, fmt.Errorf("list %T: %w", kind.list, err)
		}
		err := meta.EachListItem(kind.list, func(item runtime.Object) error {
			object, err := meta.Accessor(item)
			if err != nil {
				return err
			}
			if op, ok := identity.OperationOf(object.GetLabels(), object.GetAnnotations()); ok && op.Namespace == s.namespace {
				found[op.UID] = op
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read %T: %w", kind.list, err)
		}
	}
	return found, s.addAliases(ctx, found)
}

// addAliases adds the operations of our Velero that have an alias PV.
func (s *sweeper) addAliases(ctx context.Context, found map[string]identity.Operation) error {
	aliases := &corev1.PersistentVolumeList{}
	if err := s.reader.List(ctx, aliases, client.HasLabels{identity.LabelAlias}); err != nil {
		return fmt.Errorf("list alias PVs: %w", err)
	}
	for i := range aliases.Items {
		pv := &aliases.Items[i]
		if op, ok := identity.AliasOperationOf(pv.Name, pv.Labels, pv.Annotations); ok && op.Namespace == s.namespace {
			found[op.UID] = op
		}
	}
	return nil
}

// findSnapshots returns the VolumeSnapshots that were taken for backups. A member of a group gets
// its label only when its action has waited for it, and may outlive the group without one.
func (s *sweeper) findSnapshots(ctx context.Context) ([]snapshotv1.VolumeSnapshot, error) {
	snapshots := &snapshotv1.VolumeSnapshotList{}
	if err := withoutKinds(s.reader.List(ctx, snapshots)); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshots: %w", err)
	}
	return slices.DeleteFunc(snapshots.Items, func(vs snapshotv1.VolumeSnapshot) bool {
		return vs.Labels[identity.LabelBackupUID] == "" && !groupsnapshot.IsOurMember(&vs)
	}), nil
}

// sweepBackups deletes the VolumeSnapshots that our action took for a backup that has ended,
// unless a DataUpload still needs them. A plugin that died before it created the DataUpload
// leaves such a VolumeSnapshot. Members of a group are released with the group.
//
// The label is a hint: a tenant can give it to any VolumeSnapshot. What counts is the name,
// which is derived from the backup and the PVC.
func (s *sweeper) sweepBackups(ctx context.Context, snapshots []snapshotv1.VolumeSnapshot, o owners) error {
	needed := map[types.NamespacedName]bool{}
	for _, op := range o.running() {
		needed[sourceOf(op.Upload)] = true
	}
	var errs []error
	for i := range snapshots {
		vs := &snapshots[i]
		key := client.ObjectKeyFromObject(vs)
		if !o.hasEnded(vs.Labels[identity.LabelBackupUID]) || needed[key] || vs.DeletionTimestamp != nil || groupsnapshot.IsOurMember(vs) {
			continue
		}
		if ours, err := s.isTaken(ctx, vs); err != nil || !ours {
			errs = append(errs, err)
			continue
		}
		log.FromContext(ctx).Info("deleting the VolumeSnapshot of a backup that has ended", "volumeSnapshot", key)
		if _, err := volumesnapshot.Release(ctx, s.client, s.reader, key); err != nil {
			errs = append(errs, err)
			continue
		}
		s.count(sweptVolumeSnapshot, key.String())
	}
	return errors.Join(errs...)
}

// isTaken reports whether our action has taken a VolumeSnapshot.
func (s *sweeper) isTaken(ctx context.Context, vs *snapshotv1.VolumeSnapshot) (bool, error) {
	claim := vs.Spec.Source.PersistentVolumeClaimName
	if claim == nil {
		return false, nil
	}
	pvc, err := kube.Find(ctx, s.reader, client.ObjectKey{Namespace: vs.Namespace, Name: *claim}, &corev1.PersistentVolumeClaim{})
	if err != nil || pvc == nil {
		// Without its PVC, nothing tells whose the snapshot is.
		return false, err
	}
	return vs.Name == identity.VolumeSnapshotName(vs.Labels[identity.LabelBackupUID], string(pvc.UID)), nil
}
