package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
)

// keep passes the storage snapshot of an upload whose image is in the repository to
// its backup, if it is wanted, and records that on the DataUpload.
func (u *uploads) keep(ctx context.Context, op *operation.View) error {
	pair, err := u.rehomer.Pair(ctx, op.Operation)
	if err != nil || pair == nil {
		return err
	}
	by := op.Status.Retention
	if by == "" {
		by = policy.RetentionAuto
	}
	if !pair.Retained {
		if wanted, err := u.wantsSnapshot(ctx, by, pair.Driver); err != nil || !wanted {
			return err
		}
	}
	name, uid := backupOf(op.Upload)
	if name == "" {
		return nil // nothing would ever release it
	}
	kept, err := u.rehomer.Keep(ctx, op.Operation, rehome.Keeping{
		Retention: by,
		Namespace: op.Upload.Spec.SourceNamespace,
		PVC:       op.Upload.Spec.SourcePVC,
		Location:  op.Upload.Spec.BackupStorageLocation,
		Backup:    name,
		BackupUID: uid,
	})
	if err != nil || kept == nil {
		return err
	}
	if !pair.Retained {
		log.FromContext(ctx).Info("storage snapshot is retained", "retain", by, "snapshotHandle", kept.SnapshotHandle, "backup", name)
	}
	note, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("render retained VolumeSnapshot %s: %w", kept.Name, err)
	}
	op.Status.Retained = string(note)
	return nil
}

// wantsSnapshot reports whether the storage snapshot of a completed upload stays. With
// RetentionAuto it stays if the driver needs it as the base of the next delta.
func (u *uploads) wantsSnapshot(ctx context.Context, by policy.Retention, driver string) (bool, error) {
	if by != policy.RetentionAuto {
		return by == policy.RetentionAlways, nil
	}
	service, _, err := exposer.FindMetadataService(ctx, u.reader, u.client.RESTMapper(), driver, u.apiAudiences)
	return service != nil && service.BaseRequired, err
}

// backupOf returns the Backup that a DataUpload was made for.
func backupOf(du *velerov2alpha1.DataUpload) (name, uid string) {
	for _, owner := range du.OwnerReferences {
		if owner.Kind == "Backup" {
			name, uid = owner.Name, string(owner.UID)
		}
	}
	return name, uid
}

// recordsOf returns the records of the groups that retained snapshots are members of.
func recordsOf(retained []rehome.Retained) []string {
	var records []string
	for _, r := range retained {
		if r.Group != "" {
			records = append(records, r.Group)
		}
	}
	return records
}

// sweepRetained releases the retained snapshots that nobody needs, and returns how many. The
// groups that they were the last needed members of are swept after them, and at once: without its
// members, nothing but the content of a group tells of it, and somebody can delete that.
func (s *sweeper) sweepRetained(ctx context.Context, retained []rehome.Retained, o owners) (released int, err error) {
	if len(retained) == 0 {
		return 0, nil
	}
	needs, err := s.needsOf(ctx, o)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, r := range retained {
		why := needs.needless(r, retained)
		if err := s.noteBackup(ctx, &r, needs); err != nil {
			errs = append(errs, err)
			continue
		}
		if s.noteHeld(r, needs); why == "" || why == backupGone && s.now().Sub(r.BackupGone) < goneGrace {
			continue
		}
		log.FromContext(ctx).Info("releasing a retained storage snapshot", "volumeSnapshot", s.namespace+"/"+r.Name,
			"volume", r.Namespace+"/"+r.PVC, "snapshotHandle", r.SnapshotHandle, "backup", r.Backup, "reason", why)
		if err := s.releaseRetained(ctx, r, o.uploads); err != nil {
			errs = append(errs, fmt.Errorf("release retained VolumeSnapshot %s: %w", r.Name, err))
			continue
		}
		released++
		s.count(sweptRetained, r.Name)
	}
	return released, errors.Join(errs...)
}

// backupGone is why nobody needs a snapshot whose Backup does not exist.
const backupGone = "its backup is gone"

// goneGrace is for how long a snapshot outlives its Backup. A Backup that is deleted by Velero
// takes its snapshots with it at once. But Backups also vanish while the backups exist: when
// their location is changed or unreachable for Velero, or with the CRDs. Velero syncs them
// back.
const goneGrace = 24 * time.Hour

// noteBackup records when the Backup of a retained snapshot was first missed, and that it is
// back.
func (s *sweeper) noteBackup(ctx context.Context, r *rehome.Retained, n needs) error {
	switch gone := !n.hasBackup(*r); {
	case gone && r.BackupGone.IsZero():
		r.BackupGone = s.now()
	case !gone && !r.BackupGone.IsZero():
		r.BackupGone = time.Time{}
	default:
		return nil
	}
	return s.rehomer.MarkBackupGone(ctx, r.Name, r.BackupGone)
}

// noteHeld makes an event, once, if a snapshot that a user wants to keep holds up the deletion
// of its volume: some storage deletes no volume that has snapshots.
func (s *sweeper) noteHeld(r rehome.Retained, n needs) {
	backup := n.backups[r.Backup]
	if r.Retention != policy.RetentionAlways || !n.deleting[volumeID{r.Driver, r.VolumeHandle}] || backup == nil || s.held[r.Name] {
		return
	}
	s.held[r.Name] = true
	s.recorder.Eventf(backup, nil, corev1.EventTypeWarning, "SnapshotHoldsVolume", "Retain", "%s", shorten(fmt.Sprintf(
		"retainSnapshot is always: storage snapshot %s of volume %s/%s stays although the volume is being deleted; "+
			"some storage deletes the volume only after this backup is deleted", r.SnapshotHandle, r.Namespace, r.PVC)))
}

// releaseRetained removes the note from the DataUpload first. Otherwise the deletion of the
// backup would look for the storage snapshot again.
func (s *sweeper) releaseRetained(ctx context.Context, r rehome.Retained, uploads []*operation.View) error {
	for _, op := range uploads {
		if op.ObjectName() != r.Name {
			continue
		}
		op.Status.Retained = ""
		if err := client.IgnoreNotFound(op.Save(ctx, s.client)); err != nil {
			return err
		}
	}
	_, err := s.rehomer.ReleaseRetained(ctx, r.Name)
	return err
}

// needs has what decides which retained snapshots are needed.
type needs struct {
	// backups are those that are not being deleted, by name.
	backups map[string]*velerov1.Backup
	// uploading has the volumes of which an upload or an in-place restore runs.
	uploading map[client.ObjectKey]bool
	// volumes are the CSI volumes that exist, with their claims. A volume without a claim
	// has an empty one.
	volumes map[volumeID][]client.ObjectKey
	// deleting are the CSI volumes that nobody will get again: their PV is being deleted, or
	// is released and its policy is Delete.
	deleting map[volumeID]bool
}

// volumeID is how the storage names a volume.
type volumeID struct{ driver, handle string }

func (s *sweeper) needsOf(ctx context.Context, o owners) (needs, error) {
	n := needs{
		backups:   map[string]*velerov1.Backup{},
		uploading: map[client.ObjectKey]bool{},
		volumes:   map[volumeID][]client.ObjectKey{},
		deleting:  map[volumeID]bool{},
	}
	for _, op := range o.downloads {
		if !op.Status.Phase.Terminal() && op.Download.Spec.DataMoverConfig[identity.ConfigInPlace] != "" {
			// It may have chosen a snapshot of the volume that was backed up as its base.
			n.uploading[client.ObjectKey{Namespace: op.Download.Spec.SourceNamespace, Name: op.Download.Spec.TargetVolume.PVC}] = true
		}
	}
	for _, op := range o.running() {
		n.uploading[client.ObjectKey{Namespace: op.Upload.Spec.SourceNamespace, Name: op.Upload.Spec.SourcePVC}] = true
	}
	for i := range o.backups {
		if b := &o.backups[i]; b.Namespace == s.namespace && b.Status.Phase != velerov1.BackupPhaseDeleting {
			n.backups[b.Name] = b
		}
	}
	volumes := &corev1.PersistentVolumeList{}
	if err := s.reader.List(ctx, volumes); err != nil {
		return needs{}, fmt.Errorf("list PVs: %w", err)
	}
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		spec := &pv.Spec
		if spec.CSI == nil || identity.IsAliasVolumeName(pv.Name) {
			continue // an alias says nothing of the volume
		}
		if isBeingDeleted(pv) {
			n.deleting[volumeID{spec.CSI.Driver, spec.CSI.VolumeHandle}] = true
			continue
		}
		var claim client.ObjectKey
		if ref := spec.ClaimRef; ref != nil {
			claim = client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
		}
		id := volumeID{spec.CSI.Driver, spec.CSI.VolumeHandle}
		n.volumes[id] = append(n.volumes[id], claim)
	}
	return n, nil
}

// needless returns why nobody needs a retained snapshot, or "" if somebody does.
//
// While an upload or an in-place restore of the volume runs, the snapshot stays: it may have
// been chosen as the base of a delta, or may still be.
func (n needs) needless(r rehome.Retained, all []rehome.Retained) string {
	switch {
	case n.uploading[client.ObjectKey{Namespace: r.Namespace, Name: r.PVC}]:
		return ""
	case !n.hasBackup(r):
		return backupGone
	case r.Retention == policy.RetentionAlways:
		return ""
	case !n.hasVolume(r):
		return "its volume is gone"
	}
	for _, other := range all {
		if isOfChain(other, r) && other.NewerThan(r) && n.hasBackup(other) {
			return "backup " + other.Backup + " of the volume is newer"
		}
	}
	return ""
}

// isBeingDeleted reports whether a volume goes as soon as the storage lets it. Its PV still
// names the claim that it had.
func isBeingDeleted(pv *corev1.PersistentVolume) bool {
	ended := pv.Status.Phase == corev1.VolumeReleased || pv.Status.Phase == corev1.VolumeFailed
	return pv.DeletionTimestamp != nil || ended && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// isOfChain reports whether two retained snapshots belong to images of one volume in one
// repository, so that the next backup would choose its parent among them. A volume that is
// backed up to two storage locations has a base for each.
func isOfChain(a, b rehome.Retained) bool {
	return a.Namespace == b.Namespace && a.PVC == b.PVC && a.Location == b.Location &&
		a.Driver == b.Driver && a.VolumeHandle == b.VolumeHandle
}

// hasBackup reports whether the backup of a snapshot exists. A backup that Velero synced back
// from the storage location has another UID. A backup of the same name that started later is
// another one.
func (n needs) hasBackup(r rehome.Retained) bool {
	b := n.backups[r.Backup]
	if b == nil {
		return false
	}
	return string(b.UID) == r.BackupUID || b.Status.StartTimestamp != nil && b.Status.StartTimestamp.Time.Before(r.SnapshotTime)
}

// hasVolume reports whether the next backup of the PVC may read this volume: the PVC has it,
// or may get it again.
func (n needs) hasVolume(r rehome.Retained) bool {
	for _, claim := range n.volumes[volumeID{r.Driver, r.VolumeHandle}] {
		if claim == (client.ObjectKey{}) || claim == (client.ObjectKey{Namespace: r.Namespace, Name: r.PVC}) {
			return true
		}
	}
	return false
}
