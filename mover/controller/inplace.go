package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/livevolume"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/mover/exposer"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

// liveTarget is a download that writes into the volume of a live PVC:
//
//	secure  check PVC, volume and pods; wait until the volume is detached
//	expose  check again; BackupRepository, alias of the volume, mover pod; when the worker has
//	        the device to itself, a VolumeSnapshot of the volume
//	finish  delete VolumeSnapshot, pod, PVC and alias; the volume stays
//
// Before the first write, whatever speaks against it ends the operation. After it, half a
// restore is worse than a whole one. So a pod that comes while a mover pod writes is only
// reported: on the same node it cannot mount a device that the worker has opened for itself, and
// a volume for one node is not attached to another. Between two attempts, the next one waits
// until the pods are gone.
type liveTarget struct {
	*downloads
	op     *operation.View
	wanted inplace.Wanted
}

// inPlaceOf returns what a download needs that writes into a live volume. ok is false for
// others.
func inPlaceOf(dd *velerov2alpha1.DataDownload) (wanted inplace.Wanted, ok bool) {
	config := dd.Spec.DataMoverConfig
	wanted = inplace.Wanted{
		Mode:   inplace.Mode(config[identity.ConfigInPlaceVolume]),
		UID:    config[identity.ConfigInPlace],
		Size:   dd.Spec.SnapshotSize,
		Handle: config[identity.ConfigVolumeHandle],
	}
	return wanted, wanted.UID != ""
}

// inPlace returns an operation as one that writes into a live volume. ok is false for others.
func (e *engine) inPlace(op *operation.View) (*liveTarget, bool) {
	d, downloads := e.flow.(*downloads)
	if !downloads {
		return nil, false
	}
	return d.inPlace(op)
}

func (d *downloads) inPlace(op *operation.View) (*liveTarget, bool) {
	wanted, ok := inPlaceOf(op.Download)
	return &liveTarget{downloads: d, op: op, wanted: wanted}, ok
}

// look checks whether the volume may be written, and returns its PersistentVolume, or what it
// waits for.
func (l *liveTarget) look(ctx context.Context) (*corev1.PersistentVolume, inplace.Volume, phase.Work, error) {
	key := targetOf(l.op.Download)
	claim, err := kube.Find(ctx, l.reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return nil, inplace.Volume{}, phase.Work{}, err
	}
	if claim == nil {
		return nil, inplace.Volume{}, phase.Work{}, fmt.Errorf("%w: PVC %s was deleted since the restore began", phase.ErrBroken, key)
	}
	volume, pv, err := livevolume.Look(ctx, l.reader, claim)
	if err != nil {
		return nil, volume, phase.Work{}, err
	}
	switch err := inplace.Check(volume, l.wanted); {
	case errors.Is(err, inplace.ErrInUse) && l.op.Status.Attempt.Wrote:
		return nil, volume, phase.Work{State: phase.Held, Detail: "the restore is half done and goes on when nothing uses the volume any more: " + err.Error()}, nil
	case err != nil:
		return nil, volume, phase.Work{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	if volume.Nodes, err = livevolume.Nodes(ctx, l.reader, pv.Name); err != nil {
		return nil, volume, phase.Work{}, err
	}
	if len(volume.Nodes) > 0 {
		return nil, volume, phase.Work{Detail: fmt.Sprintf("the volume of PVC %s is still attached to node %s: no pod uses it any more, so it is being detached", key, strings.Join(volume.Nodes, ", "))}, nil
	}
	rival, err := l.exposer.RivalOf(ctx, l.op.Operation, pv)
	if err != nil {
		return nil, volume, phase.Work{}, err
	}
	if rival != nil {
		return nil, volume, phase.Work{State: phase.Held, Detail: fmt.Sprintf("%s restores PVC %s in place, too: it goes first", rival.Reference(), key)}, nil
	}
	return pv, volume, phase.Work{}, nil
}

// secure checks the volume without taking a slot.
func (l *liveTarget) secure(ctx context.Context) (phase.Work, error) {
	if mode := l.wanted.Mode; mode != inplace.SameVolume && mode != inplace.AnyVolume {
		return phase.Work{}, fmt.Errorf("%w: %s of the dataMoverConfig is %q, want %s or %s", phase.ErrBroken, identity.ConfigInPlaceVolume, mode, inplace.SameVolume, inplace.AnyVolume)
	}
	pv, _, work, err := l.look(ctx)
	if err != nil || pv == nil {
		return work, err
	}
	if l.op.Status.Place, err = onlyNode(ctx, l.client, affinityOf(pv)); err != nil {
		return phase.Work{}, err
	}
	return phase.Work{State: phase.Secured}, nil
}

func affinityOf(pv *corev1.PersistentVolume) *corev1.NodeSelector {
	if pv.Spec.NodeAffinity == nil {
		return nil
	}
	return pv.Spec.NodeAffinity.Required
}

// expose creates what leads to the mover pod, and the pod, and returns what it waits for.
func (l *liveTarget) expose(ctx context.Context) (phase.Work, error) {
	dd := l.op.Download
	repositoryName, waiting, err := l.repositoryFor(ctx, dd.Spec.SourceNamespace, dd.Spec.BackupStorageLocation)
	if err != nil {
		return phase.Work{}, err
	}
	pv, volume, work, err := l.look(ctx)
	if err != nil || pv == nil {
		return work, err
	}
	if err := l.mark(ctx); err != nil {
		return phase.Work{}, err
	}
	bound, err := l.exposer.EnsureAlias(ctx, l.op.Operation, pv)
	switch {
	case err != nil:
		return phase.Work{}, err
	case waiting != "" || bound != "":
		return phase.Work{Detail: cmp.Or(waiting, bound)}, nil
	}
	plan := exposer.PodPlan{
		Operation:    l.op.Operation,
		Attempt:      l.op.Status.Attempt.Number,
		Relabel:      true,
		StorageClass: pv.Spec.StorageClassName,
	}
	live := &task.InPlace{Claim: volume.Claim, ClaimUID: volume.UID, Mode: l.wanted.Mode, Driver: volume.Driver, VolumeHandle: volume.Handle, Audit: policy.DefaultAudit.String()}
	if err := l.askStorage(ctx, live, &plan); err != nil {
		return phase.Work{}, err
	}
	request := l.request(l.op, repositoryName)
	request.Restore.InPlace = live
	return l.createPod(ctx, plan, request, dd.Spec.BackupStorageLocation)
}

// mark notes on the live PVC of the disk of a VM who writes the disk, before anybody does: QEMU does not know that it changes.
func (l *liveTarget) mark(ctx context.Context) error {
	key := targetOf(l.op.Download)
	if is, err := vmbackup.HasDisk(ctx, l.reader, key); err != nil || !is {
		return err
	}
	claim, err := kube.Find(ctx, l.reader, key, &corev1.PersistentVolumeClaim{})
	uid := l.op.UID
	if err != nil || claim == nil || claim.Labels[identity.LabelRestored] == uid {
		return err
	}
	before := claim.DeepCopy()
	if claim.Labels == nil {
		claim.Labels = map[string]string{}
	}
	claim.Labels[identity.LabelRestored] = uid
	if err := l.client.Patch(ctx, claim, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("label PVC %s: %w", key, err)
	}
	return nil
}

// askStorage makes the worker ask the storage what has changed, or says why it cannot.
func (l *liveTarget) askStorage(ctx context.Context, live *task.InPlace, plan *exposer.PodPlan) error {
	class, err := l.snapshotClass(ctx, live.Driver)
	if err != nil {
		return err
	}
	if class == "" {
		live.MetadataUnavailable = fmt.Sprintf("driver %s has no VolumeSnapshotClass", live.Driver)
		return nil
	}
	service, unavailable, err := exposer.FindMetadataService(ctx, l.reader, l.client.RESTMapper(), live.Driver, l.apiAudiences)
	if err != nil || service == nil {
		live.MetadataUnavailable = unavailable
		return err
	}
	plan.Audience = service.Audience
	live.Metadata = &task.MetadataService{Address: service.Address, CACert: service.CACert, TokenPath: exposer.TokenPath}
	live.VolumeSnapshot = l.op.LiveSnapshotName(l.op.Status.Attempt.Number)
	return nil
}

// snapshotClass returns "" if the driver has none, or the cluster has no VolumeSnapshots.
func (l *liveTarget) snapshotClass(ctx context.Context, driver string) (string, error) {
	if served, err := snapshotsServed(l.client.RESTMapper()); err != nil || !served {
		return "", err
	}
	return volumesnapshot.ClassOf(ctx, l.reader, driver)
}

// takeSnapshot takes the VolumeSnapshot that the worker waits for. Its PVC is the alias of the live
// one, so that the VolumeSnapshot is in Velero's namespace, where the worker may ask about it.
func (l *liveTarget) takeSnapshot(ctx context.Context) error {
	alias, err := kube.Find(ctx, l.reader, client.ObjectKey{Name: l.op.AliasVolumeName()}, &corev1.PersistentVolume{})
	if err != nil || alias == nil || alias.Spec.CSI == nil {
		return err
	}
	class, err := l.snapshotClass(ctx, alias.Spec.CSI.Driver)
	if err != nil || class == "" {
		return err
	}
	return volumesnapshot.EnsureLive(ctx, l.client, l.op.Operation, l.op.Status.Attempt.Number, class)
}

// finish releases everything but the volume, which has its PVC all the time.
func (l *liveTarget) finish(ctx context.Context) (ending, error) {
	end := ending{committed: true, delivered: true}
	err := l.lookLast(ctx)
	if err != nil {
		return end, err
	}
	if end.left, err = releaseLive(ctx, l.client, l.reader, l.op.Operation); err != nil {
		return end, err
	}
	left, err := l.exposer.Release(ctx, l.op.Operation)
	end.left = append(end.left, left...)
	return end, err
}

// lookLast corrects the outcome if the mover pod began to run after that was decided, and before the
// pod was deleted: a manager may have been killed in between.
func (l *liveTarget) lookLast(ctx context.Context) error {
	outcome := l.op.Status.Outcome
	if !strings.HasSuffix(outcome.Message, unchanged) {
		return nil
	}
	pod, err := l.exposer.FindPod(ctx, l.op.Operation)
	if err != nil || pod == nil || !exposer.HasRun(pod) {
		return err
	}
	if _, report := exposer.Observe(pod); report != nil && report.Untouched {
		return nil
	}
	corrected := *outcome
	corrected.Message = strings.TrimSuffix(outcome.Message, unchanged) + halfRestored
	l.op.Status.Outcome = &corrected
	return nil
}

// releaseLive deletes the VolumeSnapshots of a live volume.
func releaseLive(ctx context.Context, c client.Client, reader client.Reader, op identity.Operation) ([]string, error) {
	if served, err := snapshotsServed(c.RESTMapper()); err != nil || !served {
		return nil, err
	}
	return volumesnapshot.ReleaseLive(ctx, c, reader, op)
}

// mayHaveWritten reports whether a mover pod may have written to the volume. Work is that of the
// pod, as far as it is known.
func (l *liveTarget) mayHaveWritten(work phase.Work, report *task.Report) bool {
	attempt := l.op.Status.Attempt
	if attempt.Wrote || report != nil {
		return attempt.Wrote || !report.Untouched
	}
	return attempt.Started || work.State == phase.Running || work.State == phase.Lost || work.State == phase.Unknown
}

// What an outcome says of the volume.
const (
	unchanged    = "nothing was written to the volume"
	halfRestored = "the volume may hold a mixture of old and restored data: do not use it, and restore in place again, which makes it whole"
)

// conclude returns the message of an outcome, with what it means for the volume.
func (l *liveTarget) conclude(o phase.Outcome, wrote bool, report *task.Report) string {
	switch {
	case o.Phase == phase.Completed && report != nil:
		how := "the storage told what has changed since repo snapshot " + string(report.Parent)
		if report.Parent == "" {
			how = "the whole volume was compared: " + report.Detail
		}
		return fmt.Sprintf("restored in place: %d bytes were written and %d zeroed, %d of %d were read, and the rest was equal; %s",
			report.BytesWritten, report.ZeroBytes, report.BytesRead, report.VolumeSize, how)
	case o.Phase == phase.Completed:
		return o.Message
	case wrote:
		return o.Message + "; " + halfRestored
	}
	return o.Message + "; " + unchanged
}

// lookBeside takes the VolumeSnapshot that a mover pod waits for, and looks for pods that want the
// volume while the mover pod has it.
func (e *engine) lookBeside(ctx context.Context, l *liveTarget, p *task.Progress, work phase.Work) (phase.Work, error) {
	if p != nil && p.Held {
		if err := l.takeSnapshot(ctx); err != nil {
			return work, err
		}
	}
	key := targetOf(l.op.Download)
	users, err := livevolume.Users(ctx, l.reader, key)
	if err != nil || len(users) == 0 {
		return work, err
	}
	pods := strings.Join(users, ", ")
	if !l.mayHaveWritten(work, nil) {
		return phase.Work{State: phase.Broken, Detail: fmt.Sprintf("pod %s began to use PVC %s before the restore did: scale the application down and restore again", pods, key)}, nil
	}
	note := fmt.Sprintf("pod %s wants PVC %s while it is being restored: stop it until the restore has ended", pods, key)
	if !strings.Contains(l.op.Status.Message, note) {
		log.FromContext(ctx).Info("a pod wants a volume that is being restored in place", "pvc", key, "pods", users)
		e.event(l.op, corev1.EventTypeWarning, "VolumeInUse", "Restore", note)
		e.eventOfClaim(l.op, corev1.EventTypeWarning, "VolumeInUse", note)
	}
	if work.Detail != "" {
		note = work.Detail + "; " + note
	}
	work.Detail = note
	return work, nil
}

// announceInPlace tells the owner of the PVC that its volume is restored, or half restored, and counts what a
// restore in place has done.
func (e *engine) announceInPlace(op *operation.View, t phase.Transition, report *task.Report) {
	if _, ok := e.inPlace(op); !ok {
		return
	}
	if op.Status.Phase.Terminal() && strings.Contains(op.Status.Message, halfRestored) {
		e.eventOfClaim(op, corev1.EventTypeWarning, "HalfRestored", op.Status.Message)
	}
	if t.Outcome != nil && t.Outcome.Phase == phase.Completed && report != nil {
		e.metrics.inPlace(op, report)
		e.eventOfClaim(op, corev1.EventTypeNormal, "RestoredInPlace", fmt.Sprintf("DataDownload %s has restored the volume in place: %d bytes were not as in the image",
			op.Name, report.BytesWritten+report.ZeroBytes))
	}
}

// eventOfClaim makes an event of the live PVC.
func (e *engine) eventOfClaim(op *operation.View, kind, reason, note string) {
	target := targetOf(op.Download)
	claim := &corev1.ObjectReference{
		APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: target.Namespace, Name: target.Name,
		UID: types.UID(op.Download.Spec.DataMoverConfig[identity.ConfigInPlace]),
	}
	e.recorder.Eventf(claim, op.Object(), kind, reason, "Restore", "%s", shorten(note))
}
