package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	"github.com/blockmover/blockmover/internal/volumesnapshot"
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
	rehomer   volumesnapshot.Rehomer
	groups    volumesnapshot.Groups
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
	return errors.Join(s.sweepOperations(ctx), s.sweepGroups(ctx), s.sweepBackups(ctx), s.sweepRetained(ctx))
}

// sweepOperations releases the objects of operations that do not run.
func (s *sweeper) sweepOperations(ctx context.Context) error {
	found, err := s.findOperations(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	uploads, err := listUploads(ctx, s.reader, s.namespace)
	if err != nil {
		return err
	}
	downloads, err := listDownloads(ctx, s.reader, s.namespace)
	if err != nil {
		return err
	}
	for _, op := range slices.Concat(uploads, downloads) {
		if !op.phase.Terminal() {
			delete(found, string(op.object.GetUID()))
		}
	}
	var errs []error
	for _, uid := range slices.Sorted(maps.Keys(found)) {
		if err := s.release(ctx, uid, found[uid]); err != nil {
			errs = append(errs, fmt.Errorf("sweep after %s: %w", found[uid], err))
		}
	}
	return errors.Join(errs...)
}

// release goes as far as it can now; the next sweep goes on.
func (s *sweeper) release(ctx context.Context, uid, reference string) error {
	kind, name, _ := strings.Cut(reference, "/")
	op := exposer.Operation{Kind: kind, Name: name, UID: types.UID(uid)}
	left, err := s.exposer.Release(ctx, op)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		left, err = s.rehomer.Release(ctx, volumesnapshot.Operation{UID: uid, Reference: reference})
		if err != nil {
			return err
		}
	}
	log.FromContext(ctx).WithName("sweep").Info("released what an ended operation left", "operation", reference, "uid", uid, "goingAway", left)
	return nil
}

// findOperations returns the operations that any object is labelled with: UID
// to reference.
func (s *sweeper) findOperations(ctx context.Context) (map[string]string, error) {
	found := map[string]string{}
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
			found[object.GetLabels()[identity.LabelOperation]] = object.GetAnnotations()[identity.AnnotationOperation]
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read %T: %w", kind.list, err)
		}
	}
	return found, nil
}

// sweepBackups deletes the VolumeSnapshots that our action took for a backup
// that has ended, unless a DataUpload still needs them: a plugin that died
// between the two leaves such. Members of a group go with that.
func (s *sweeper) sweepBackups(ctx context.Context) error {
	snapshots := &snapshotv1.VolumeSnapshotList{}
	if err := s.reader.List(ctx, snapshots, client.HasLabels{identity.LabelBackupUID}); err != nil {
		return fmt.Errorf("list VolumeSnapshots of backups: %w", err)
	}
	if len(snapshots.Items) == 0 {
		return nil
	}
	running, err := s.runningBackups(ctx)
	if err != nil {
		return err
	}
	uploads, err := listUploads(ctx, s.reader, s.namespace)
	if err != nil {
		return err
	}
	needed := map[types.NamespacedName]bool{}
	for _, op := range uploads {
		if !op.phase.Terminal() {
			needed[sourceOf(op.upload)] = true
		}
	}
	var errs []error
	for i := range snapshots.Items {
		vs := &snapshots.Items[i]
		key := client.ObjectKeyFromObject(vs)
		if running[vs.Labels[identity.LabelBackupUID]] || needed[key] || vs.DeletionTimestamp != nil || volumesnapshot.IsOurMember(vs) {
			continue
		}
		log.FromContext(ctx).WithName("sweep").Info("deleting the VolumeSnapshot of a backup that has ended", "volumeSnapshot", key)
		if _, err := s.rehomer.ReleaseOrigin(ctx, volumesnapshot.Origin{Namespace: key.Namespace, VolumeSnapshot: key.Name}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// runningBackups returns the UIDs of backups that have not ended.
func (s *sweeper) runningBackups(ctx context.Context) (map[string]bool, error) {
	backups := &velerov1.BackupList{}
	if err := s.reader.List(ctx, backups, client.InNamespace(s.namespace)); err != nil {
		return nil, fmt.Errorf("list Backups: %w", err)
	}
	running := map[string]bool{}
	for i := range backups.Items {
		switch b := &backups.Items[i]; b.Status.Phase {
		case velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed, velerov1.BackupPhaseFailed,
			velerov1.BackupPhaseFailedValidation, velerov1.BackupPhaseDeleting:
		default:
			running[string(b.UID)] = true
		}
	}
	return running, nil
}
