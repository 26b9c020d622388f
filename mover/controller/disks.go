package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

// disks is the flow of a DataUpload of a disk of a running VM, which KubeVirt backs up:
//
//	secure  the backup of the VM, once for all its disks
//	expose  mover pod with the files
//	finish  delete the pod, and the files after the last disk
//
// The oldest DataUpload of a VM leads: it has the state of the backup of the VM, and takes its
// steps. The others wait for it.
type disks struct {
	*uploads
	maker *vmbackup.Maker
}

// resultCheckpoint is the key of DataUpload.status.dataMoverResult with the checkpoint that an
// image shows, and resultRestored that with the DataDownload that had restored the disk in place last.
const (
	resultCheckpoint = "checkpoint"
	resultRestored   = "restoredInPlace"
)

// isDisk reports whether KubeVirt backs up the volume.
func isDisk(op *operation.View) bool { return vmBackupOf(op) != "" }

func vmBackupOf(op *operation.View) string {
	if op.Upload == nil {
		return ""
	}
	return op.Upload.Spec.DataMoverConfig[identity.ConfigVMBackup]
}

// list returns all DataUploads, the oldest first.
func (d *disks) list(ctx context.Context, r client.Reader) ([]*operation.View, error) {
	all, err := operation.List(ctx, r, identity.KindDataUpload, client.InNamespace(d.namespace))
	slices.SortFunc(all, compareAge)
	return all, err
}

// siblingsOf returns those of the DataUploads that have the VM and the Backup of op.
func siblingsOf(op *operation.View, all []*operation.View) []*operation.View {
	var siblings []*operation.View
	for _, other := range all {
		if vmBackupOf(other) == vmBackupOf(op) {
			siblings = append(siblings, other)
		}
	}
	return siblings
}

// leaderOf returns the DataUpload that has the state of the backup, or else the oldest that has not
// ended.
func leaderOf(siblings []*operation.View) *operation.View {
	for _, op := range siblings {
		if op.Status.VMBackup != "" {
			return op
		}
	}
	for _, op := range siblings {
		if op.Status.Outcome == nil && !op.Cancel {
			return op
		}
	}
	return nil
}

// secure has KubeVirt write the files, or waits for the leader to do so.
func (d *disks) secure(ctx context.Context, op *operation.View) (phase.Work, error) {
	if waiting, err := d.velerosTurn(ctx, op.Upload); err != nil || waiting != "" {
		return phase.Work{State: phase.Held, Detail: waiting}, err
	}
	state, work, err := d.progress(ctx, op)
	if err != nil || !state.Ready {
		return work, err
	}
	if err := d.refuseMixture(ctx, op, state.Files.At, state.Files.At); err != nil {
		return phase.Work{}, err
	}
	if _, _, err := d.repositoryFor(ctx, op.Upload.Spec.SourceNamespace, op.Upload.Spec.BackupStorageLocation); err != nil {
		return phase.Work{}, err
	}
	return phase.Work{State: phase.Secured}, nil
}

// progress returns how far the backup of the VM is. It takes the next step if the DataUpload leads.
func (d *disks) progress(ctx context.Context, op *operation.View) (vmbackup.State, phase.Work, error) {
	all, err := d.list(ctx, d.client)
	if err != nil {
		return vmbackup.State{}, phase.Work{}, err
	}
	leader := leaderOf(siblingsOf(op, all))
	if leader == nil || leader.UID == op.UID {
		return d.lead(ctx, op, all)
	}
	return follow(op, leader)
}

// velerosTurn says what Velero still does, or returns "". While it writes the backup, its hooks may
// freeze and thaw the guest, and KubeVirt would do the same in between.
func (d *disks) velerosTurn(ctx context.Context, du *velerov2alpha1.DataUpload) (string, error) {
	name, _ := backupOf(du)
	if name == "" {
		return "", nil
	}
	backup, err := kube.Find(ctx, d.client, client.ObjectKey{Namespace: d.namespace, Name: name}, &velerov1.Backup{})
	if err != nil || backup == nil {
		return "", err
	}
	switch backup.Status.Phase {
	case "", velerov1.BackupPhaseNew, velerov1.BackupPhaseQueued, velerov1.BackupPhaseReadyToStart, velerov1.BackupPhaseInProgress:
		return fmt.Sprintf("waits until Velero has written Backup %s: its hooks may freeze the guest until then", name), nil
	default:
		return "", nil
	}
}

// lead takes the next step of the backup of the VM.
func (d *disks) lead(ctx context.Context, op *operation.View, all []*operation.View) (vmbackup.State, phase.Work, error) {
	state, err := vmbackup.Parse(op.Status.VMBackup)
	if err != nil {
		return state, phase.Work{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	request, err := d.vmRequest(ctx, op, all, state.Begun)
	if err != nil {
		return state, phase.Work{}, err
	}
	progress, err := d.maker.Step(ctx, request, &state)
	op.Status.VMBackup = state.String()
	work := phase.Work{Detail: progress.Waiting}
	if progress.Busy || progress.Waiting == "" {
		work.State = phase.Held
	}
	return state, work, err
}

// follow reads what the leader has come to. It keeps the state once the files are ready: from then
// on the DataUpload needs no leader.
func follow(op, leader *operation.View) (vmbackup.State, phase.Work, error) {
	state, err := vmbackup.Parse(leader.Status.VMBackup)
	switch {
	case err != nil:
		return state, phase.Work{}, fmt.Errorf("%w: DataUpload %s: %w", phase.ErrBroken, leader.Name, err)
	case !state.Ready && (leader.Status.Outcome != nil || leader.Cancel):
		return state, phase.Work{}, fmt.Errorf("%w: the backup of VM %s ended with DataUpload %s, which leads it: %s",
			phase.ErrBroken, op.Upload.Spec.DataMoverConfig[identity.ConfigVM], leader.Name, cmp.Or(leader.Status.Message, "it was canceled"))
	}
	if state.Ready {
		op.Status.VMBackup = leader.Status.VMBackup
	}
	return state, phase.Work{State: phase.Held, Detail: leader.Status.Message}, nil
}

// vmRequest describes the backup of the VM. What the attempt asks for is only read before the
// attempt has begun: it is decided then.
func (d *disks) vmRequest(ctx context.Context, op *operation.View, all []*operation.View, begun bool) (vmbackup.Request, error) {
	du := op.Upload
	config := du.Spec.DataMoverConfig
	request := vmbackup.Request{
		Name:         config[identity.ConfigVMBackup],
		Operation:    op.Operation,
		Namespace:    du.Spec.SourceNamespace,
		VM:           config[identity.ConfigVM],
		UID:          config[identity.ConfigVMUID],
		Location:     du.Spec.BackupStorageLocation,
		StorageClass: d.live.Get().VMBackup.StorageClass,
		Timeout:      op.Timeout,
	}
	images := imagesOf(request.UID, request.Location, all)
	for _, sibling := range siblingsOf(op, all) {
		if sibling.Status.HasFailed() || sibling.Cancel {
			continue
		}
		disk := kubevirt.Disk{Volume: sibling.Upload.Spec.DataMoverConfig[identity.ConfigVMVolume], Claim: sibling.Upload.Spec.SourcePVC}
		if begun {
			request.Disks = append(request.Disks, vmbackup.Disk{Disk: disk})
			continue
		}
		settings, err := d.settings(ctx, sibling.Upload)
		if err != nil {
			return vmbackup.Request{}, err
		}
		if settings.Parent != "" {
			return vmbackup.Request{}, fmt.Errorf("%w: DataUpload %s names repo snapshot %s as the parent, and for the disk of a VM only KubeVirt knows what changed since what",
				phase.ErrBroken, sibling.Name, settings.Parent)
		}
		request.SkipQuiesce = request.SkipQuiesce || settings.SkipQuiesce
		request.Disks = append(request.Disks, vmbackup.Disk{
			Disk:      disk,
			Image:     images[claimUID(sibling.Upload)],
			FullEvery: settings.FullEvery,
			Forced:    settings.ParentSnapshot() == identity.ParentNone,
		})
	}
	return request, nil
}

// claimUID is the UID of the PVC of a DataUpload.
func claimUID(du *velerov2alpha1.DataUpload) string { return du.Labels[velerov1.PVCUIDLabel] }

// imagesOf returns the newest images of the disks of a VM, by the UID of their PVC. The DataUploads
// are sorted by age.
func imagesOf(vm, location string, all []*operation.View) map[string]vmbackup.Image {
	images := map[string]vmbackup.Image{}
	for _, op := range all {
		du := op.Upload
		if du.Spec.DataMoverConfig[identity.ConfigVMUID] != vm || du.Spec.BackupStorageLocation != location ||
			op.Status.Phase != phase.Completed || op.Result() == nil {
			continue
		}
		result := op.Result()
		image := images[claimUID(du)]
		image.Checkpoint, image.Restored = result[resultCheckpoint], result[resultRestored]
		if result["kind"] == string(repository.Full) {
			image.Full = op.Created
		}
		images[claimUID(du)] = image
	}
	return images
}

// expose creates the mover pod.
func (d *disks) expose(ctx context.Context, op *operation.View) (phase.Work, error) {
	du := op.Upload
	repositoryName, waiting, err := d.repositoryFor(ctx, du.Spec.SourceNamespace, du.Spec.BackupStorageLocation)
	if err != nil || waiting != "" {
		return phase.Work{Detail: waiting}, err
	}
	state, err := filesOf(op)
	if err != nil {
		return phase.Work{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	backup, err := d.backup(ctx, op, state)
	if err != nil {
		return phase.Work{}, err
	}
	name := vmBackupOf(op)
	plan := exposer.PodPlan{
		Operation: op.Operation,
		Attempt:   op.Status.Attempt.Number,
		Relabel:   true,
		Directory: &exposer.Directory{
			Claim: name, UserID: kubevirt.UserID, Shared: map[string]string{identity.LabelVMBackup: name},
		},
	}
	request := task.Request{
		Namespace:        d.namespace,
		Name:             du.Name,
		OperationID:      string(du.UID),
		Device:           exposer.DirectoryPath,
		BackupRepository: repositoryName,
		Volume:           repository.VolumeKey{Namespace: du.Spec.SourceNamespace, PVC: du.Spec.SourcePVC},
		Backup:           backup,
	}
	return d.createPod(ctx, plan, request, du.Spec.BackupStorageLocation)
}

// filesOf returns the state of a DataUpload that was secured.
func filesOf(op *operation.View) (vmbackup.State, error) {
	state, err := vmbackup.Parse(op.Status.VMBackup)
	if err == nil && !state.Ready {
		err = fmt.Errorf("annotation %s of DataUpload %s does not say where the files of its VM are", identity.AnnotationVMBackup, op.Name)
	}
	return state, err
}

// backup describes the file of the disk. Its instant is named by VM and checkpoint.
func (d *disks) backup(ctx context.Context, op *operation.View, state vmbackup.State) (*task.Backup, error) {
	du := op.Upload
	config := du.Spec.DataMoverConfig
	failed, err := d.failed(ctx, du)
	if err != nil {
		return nil, err
	}
	instant := func(checkpoint string) string { return config[identity.ConfigVMUID] + "/" + checkpoint }
	backup := &task.Backup{
		ParentSnapshot: identity.ParentAuto,
		Audit:          "0%",
		Failed:         failed,
		Driver:         kubevirt.Driver,
		VolumeHandle:   config[identity.ConfigVMUID] + "/" + claimUID(du),
		SnapshotHandle: instant(state.Files.Checkpoint),
		SnapshotTime:   state.Files.At,
		DiskFile: &task.DiskFile{
			Instance: config[identity.ConfigVM],
			Backup:   state.Files.Backup,
			Volume:   config[identity.ConfigVMVolume],
			Full:     state.Full,
		},
	}
	if state.Since != "" {
		backup.DiskFile.Since = instant(state.Since)
	}
	key := client.ObjectKey{Namespace: du.Spec.SourceNamespace, Name: du.Spec.SourcePVC}
	claim, err := kube.Find(ctx, d.reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return nil, err
	}
	if claim != nil && claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		capacity := claim.Status.Capacity[corev1.ResourceStorage]
		backup.Capacity = capacity.Value()
	}
	return backup, nil
}

// complete writes the report into the status.
func (d *disks) complete(ctx context.Context, op *operation.View, report task.Report) error {
	if err := d.uploads.complete(ctx, op, report); err != nil {
		return err
	}
	result := op.Result()
	result[identity.ConfigVM] = op.Upload.Spec.DataMoverConfig[identity.ConfigVM]
	state, err := filesOf(op)
	if err != nil {
		return err
	}
	result[resultCheckpoint] = state.Files.Checkpoint
	if restored := state.Restored[op.Upload.Spec.DataMoverConfig[identity.ConfigVMVolume]]; restored != "" {
		result[resultRestored] = restored
	}
	return nil
}

// finish releases the pod, and the files of the VM after its last disk. The outcomes of the others
// are read from the API server: of two that end at once, one sees both.
func (d *disks) finish(ctx context.Context, op *operation.View) (ending, error) {
	end := ending{committed: true, delivered: true}
	var err error
	if end.left, err = d.exposer.Release(ctx, op.Operation); err != nil || len(end.left) > 0 {
		return end, err
	}
	all, err := d.list(ctx, d.reader)
	if err != nil {
		return end, err
	}
	if slices.ContainsFunc(siblingsOf(op, all), func(other *operation.View) bool {
		return other.UID != op.UID && other.Status.Outcome == nil && !other.Status.Phase.Terminal()
	}) {
		return end, nil
	}
	end.left, err = d.maker.Release(ctx, vmBackupOf(op))
	return end, err
}

// byVolume is the flow of DataUploads of either kind.
type byVolume struct {
	snapshots *uploads
	disks     *disks
}

func (b byVolume) of(op *operation.View) flow {
	if isDisk(op) {
		return b.disks
	}
	return b.snapshots
}

func (b byVolume) secure(ctx context.Context, op *operation.View) (phase.Work, error) {
	return b.of(op).secure(ctx, op)
}

func (b byVolume) expose(ctx context.Context, op *operation.View) (phase.Work, error) {
	return b.of(op).expose(ctx, op)
}

func (b byVolume) complete(ctx context.Context, op *operation.View, report task.Report) error {
	return b.of(op).complete(ctx, op, report)
}

// finish names the image to Velero first, if its backup has failed: the backup may be deleted as soon as
// the upload has ended.
func (b byVolume) finish(ctx context.Context, op *operation.View) (ending, error) {
	if err := b.snapshots.noteIfFailed(ctx, op.Upload); err != nil {
		return ending{committed: true}, err
	}
	return b.of(op).finish(ctx, op)
}
