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
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
)

// sweeper releases what nobody else will: the objects of operations that are
// gone or have ended, the VolumeSnapshots and groups of backups that have, and the
// retained VolumeSnapshots that no backup needs any more.
//
// It looks for objects first and for what they belong to after that, both at
// the API server: what was there when the objects were listed and is missing
// afterwards has been deleted, and is not merely too young to be seen.
type sweeper struct {
	client    client.Writer
	reader    client.Reader
	exposer   *exposer.Exposer
	rehomer   rehome.Rehomer
	groups    groupsnapshot.Groups
	namespace string
	interval  time.Duration
	// wake asks for a sweep now.
	wake chan struct{}
	// goesAway is set when a sweep leaves what takes more than one to go.
	goesAway bool
}

// sweepInterval is how often the cluster is searched. An upload that has ended
// and a deleted operation wake the sweeper at once.
const sweepInterval = 2 * time.Minute

// What is going away is looked at sooner, so many times in a row.
const (
	againInterval = 3 * time.Second
	maxAgain      = 10
)

// NeedLeaderElection makes the manager start the sweeper where it reconciles.
func (s *sweeper) NeedLeaderElection() bool { return true }

// Start sweeps until the context ends.
func (s *sweeper) Start(ctx context.Context) error {
	for again := 0; ; {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			log.FromContext(ctx).WithName("sweep").Error(err, "sweep is incomplete, the next one goes on")
		}
		wait := s.interval
		if again++; !s.goesAway {
			again = 0
		} else if again <= maxAgain {
			wait = min(wait, againInterval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		case <-s.wake:
		}
	}
}

// poke asks for a sweep without waiting for it.
func (s *sweeper) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // one is due already
	}
}

func (s *sweeper) sweep(ctx context.Context) error {
	s.goesAway = false
	operations, operationsErr := s.findOperations(ctx)
	snapshots, snapshotsErr := s.findSnapshots(ctx)
	groups, groupsErr := s.groups.Find(ctx, snapshots)
	retained, retainedErr := s.rehomer.ListRetained(ctx)
	err := errors.Join(operationsErr, groupsErr, snapshotsErr, retainedErr)
	if len(operations)+len(groups)+len(snapshots)+len(retained) == 0 {
		return err
	}
	o, ownersErr := s.listOwners(ctx)
	if ownersErr != nil {
		return errors.Join(err, ownersErr)
	}
	return errors.Join(err,
		s.sweepOperations(ctx, operations, o),
		s.sweepGroups(ctx, groups, o),
		s.sweepBackups(ctx, snapshots, o),
		s.sweepRetained(ctx, retained, o),
	)
}

// owners are what the objects of the cluster can belong to. They are those of each
// Velero in it: what a backup of another one needs does not look different.
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

// hasEnded says whether a backup has, or is gone.
func (o owners) hasEnded(backupUID string) bool {
	for i := range o.backups {
		if string(o.backups[i].UID) != backupUID {
			continue
		}
		switch o.backups[i].Status.Phase {
		case velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed, velerov1.BackupPhaseFailed,
			velerov1.BackupPhaseFailedValidation, velerov1.BackupPhaseDeleting:
			return true
		default:
			return false
		}
	}
	return true
}

// sweepOperations releases the objects of operations that do not run.
func (s *sweeper) sweepOperations(ctx context.Context, found map[string]identity.Operation, o owners) error {
	for _, op := range slices.Concat(o.uploads, o.downloads) {
		if !op.Status.Phase.Terminal() {
			delete(found, op.UID)
		}
	}
	var errs []error
	for _, uid := range slices.Sorted(maps.Keys(found)) {
		if err := s.release(ctx, found[uid]); err != nil {
			errs = append(errs, fmt.Errorf("sweep after %s: %w", found[uid].Reference(), err))
		}
	}
	return errors.Join(errs...)
}

// release goes as far as it can now; the next sweep goes on.
func (s *sweeper) release(ctx context.Context, op identity.Operation) error {
	left, err := s.exposer.Release(ctx, op)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		left, err = s.rehomer.Release(ctx, op)
		if err != nil {
			return err
		}
	}
	log.FromContext(ctx).WithName("sweep").Info("released what an ended operation left", "operation", op.Reference(), "uid", op.UID, "goingAway", left)
	return nil
}

// findOperations returns the operations of our Velero that any object is labelled
// with.
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
		if err := s.reader.List(ctx, kind.list, options...); err != nil {
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
	return found, nil
}

// findSnapshots returns the VolumeSnapshots that were taken for backups.
func (s *sweeper) findSnapshots(ctx context.Context) ([]snapshotv1.VolumeSnapshot, error) {
	snapshots := &snapshotv1.VolumeSnapshotList{}
	if err := s.reader.List(ctx, snapshots, client.HasLabels{identity.LabelBackupUID}); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshots of backups: %w", err)
	}
	return snapshots.Items, nil
}

// sweepBackups deletes the VolumeSnapshots that our action took for a backup
// that has ended, unless a DataUpload still needs them: a plugin that died
// between the two leaves such. Members of a group go with that.
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
		log.FromContext(ctx).WithName("sweep").Info("deleting the VolumeSnapshot of a backup that has ended", "volumeSnapshot", key)
		if _, err := s.rehomer.ReleaseOrigin(ctx, key); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
