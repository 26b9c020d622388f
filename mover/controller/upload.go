package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/internal/veleroapi"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
)

// uploads is the flow of a DataUpload:
//
//	secure  re-home the VolumeSnapshot
//	expose  BackupRepository, PVC from the re-homed VolumeSnapshot, mover pod
//	finish  delete pod, PVC, re-homed VolumeSnapshot with the storage snapshot,
//	        unless that is retained
type uploads struct {
	surroundings
	rehomer rehome.Rehomer
}

// secure re-homes the VolumeSnapshot as soon as the DataUpload is seen, and creates the
// BackupRepository, which Velero initialises in the meantime.
func (u *uploads) secure(ctx context.Context, op *operation.View) (phase.Work, error) {
	du := op.Upload
	if du.Spec.SnapshotType != velerov2alpha1.SnapshotTypeCSI || du.Spec.CSISnapshot == nil {
		return phase.Work{}, fmt.Errorf("%w: snapshot type is %q, want %s with its csiSnapshot",
			phase.ErrBroken, du.Spec.SnapshotType, velerov2alpha1.SnapshotTypeCSI)
	}
	if served, err := snapshotsServed(u.client.RESTMapper()); err != nil || !served {
		return phase.Work{Detail: "the cluster does not serve VolumeSnapshots"}, err
	}
	pair, err := u.rehomer.Ensure(ctx, op.Operation, originOf(du))
	if err != nil {
		return phase.Work{}, err
	}
	if !pair.Secured {
		return phase.Work{Detail: pair.Waiting}, nil
	}
	settings, err := u.settings(ctx, du)
	if err != nil {
		return phase.Work{}, err
	}
	if settings.Retention != "" {
		op.Status.Retention = settings.Retention
	}
	if _, _, err := u.repositoryFor(ctx, du.Spec.SourceNamespace, du.Spec.BackupStorageLocation); err != nil {
		return phase.Work{}, err
	}
	if !op.Status.Secured {
		affinity, err := u.affinityOf(ctx, du)
		if err != nil {
			return phase.Work{}, err
		}
		if op.Status.Place, err = onlyNode(ctx, u.client, affinity); err != nil {
			return phase.Work{}, err
		}
	}
	return phase.Work{State: phase.Secured}, nil
}

func originOf(du *velerov2alpha1.DataUpload) rehome.Origin {
	return rehome.Origin{
		Namespace:      du.Spec.SourceNamespace,
		VolumeSnapshot: du.Spec.CSISnapshot.VolumeSnapshot,
		PVC:            du.Spec.SourcePVC,
		Class:          du.Spec.CSISnapshot.SnapshotClass,
	}
}

// expose creates what leads to the mover pod, and the pod, and returns what it waits for.
func (u *uploads) expose(ctx context.Context, op *operation.View) (phase.Work, error) {
	du := op.Upload
	repositoryName, waiting, err := u.repositoryFor(ctx, du.Spec.SourceNamespace, du.Spec.BackupStorageLocation)
	if err != nil {
		return phase.Work{}, err
	}
	pair, err := u.rehomer.Ensure(ctx, op.Operation, originOf(du))
	if err != nil {
		return phase.Work{}, err
	}
	if !pair.Ready {
		return phase.Work{Detail: pair.Waiting}, nil
	}
	// The clock of the storage may be another. The snapshot was taken before the upload was created.
	if err := u.refuseMixture(ctx, op, pair.SnapshotTime, op.Object().GetCreationTimestamp().Time); err != nil {
		return phase.Work{}, err
	}
	class := du.Spec.CSISnapshot.StorageClass
	pvcConfig := u.live.Get().BackupPVC[class]
	if class == "" && pvcConfig.StorageClass == "" {
		return phase.Work{}, fmt.Errorf("%w: PVC %s/%s has no storage class, so its snapshot cannot be made a volume to read from: "+
			"name one in backupPVC[\"\"].storageClass of the configuration", phase.ErrBroken, du.Spec.SourceNamespace, du.Spec.SourcePVC)
	}
	copies := exposer.CopiesOf(pvcConfig.SecretNames, pvcConfig.ConfigMapNames)
	needed, err := u.copyFor(ctx, op, du.Spec.SourceNamespace, copies)
	switch {
	case errors.Is(err, exposer.ErrNoOriginal):
		return phase.Work{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	case err != nil || needed != "":
		return phase.Work{Detail: needed}, err
	}
	err = u.exposer.EnsureVolume(ctx, op.Operation, func() (*corev1.PersistentVolumeClaim, error) {
		return exposer.PlanBackupVolume(op.Operation, pair.Name, class, pair.Size, pvcConfig), nil
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
		ReadOnly:     pvcConfig.ReadOnly,
		Relabel:      !pvcConfig.SPCNoRelabeling,
		StorageClass: class,
	}
	if plan.Topology, err = u.topologyOf(ctx, du); err != nil {
		return phase.Work{}, err
	}
	request, err := u.request(ctx, op, pair, repositoryName, &plan)
	if err != nil {
		return phase.Work{}, err
	}
	return u.createPod(ctx, plan, request, du.Spec.BackupStorageLocation)
}

// request returns the task of the mover pod.
func (u *uploads) request(ctx context.Context, op *operation.View, pair rehome.Rehomed, repositoryName string, plan *exposer.PodPlan) (task.Request, error) {
	du := op.Upload
	settings, err := u.settings(ctx, du)
	if err != nil {
		return task.Request{}, err
	}
	service, unavailable, err := exposer.FindMetadataService(ctx, u.reader, u.client.RESTMapper(), pair.Driver, u.apiAudiences)
	if err != nil {
		return task.Request{}, err
	}
	failed, err := u.failed(ctx, du)
	if err != nil {
		return task.Request{}, err
	}
	backup := &task.Backup{
		ParentSnapshot:      settings.ParentSnapshot(),
		FullEvery:           settings.FullEvery,
		Audit:               settings.Audit.String(),
		Failed:              failed,
		Driver:              pair.Driver,
		VolumeHandle:        pair.VolumeHandle,
		SnapshotHandle:      pair.SnapshotHandle,
		SnapshotTime:        pair.SnapshotTime,
		VolumeSnapshot:      pair.Name,
		Capacity:            pair.Capacity,
		Filesystem:          pair.Filesystem,
		MetadataUnavailable: unavailable,
	}
	if service != nil {
		plan.Audience = service.Audience
		backup.Metadata = &task.MetadataService{Address: service.Address, CACert: service.CACert, TokenPath: exposer.TokenPath}
	}
	return task.Request{
		Namespace:        u.namespace,
		Name:             du.Name,
		OperationID:      string(du.UID),
		Device:           exposer.DevicePath,
		BackupRepository: repositoryName,
		Volume:           repository.VolumeKey{Namespace: du.Spec.SourceNamespace, PVC: du.Spec.SourcePVC},
		Backup:           backup,
	}, nil
}

// maxFailed bounds a list that goes into an environment variable, to 40 KiB of the
// 128 that the kernel allows.
const maxFailed = 1000

// failed returns the operation IDs of the uploads of the same volume that failed or were
// canceled, the newest first.
func (u *uploads) failed(ctx context.Context, du *velerov2alpha1.DataUpload) ([]string, error) {
	all, err := operation.List(ctx, u.client, identity.KindDataUpload, client.InNamespace(u.namespace))
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(op *operation.View) bool {
		other := op.Upload.Spec
		return other.SourceNamespace != du.Spec.SourceNamespace || other.SourcePVC != du.Spec.SourcePVC ||
			other.BackupStorageLocation != du.Spec.BackupStorageLocation || !op.Status.HasFailed()
	})
	slices.SortFunc(all, func(a, b *operation.View) int { return compareAge(b, a) })
	var ids []string
	for _, op := range all[:min(len(all), maxFailed)] {
		ids = append(ids, op.UID)
	}
	return ids, nil
}

// settings returns what the user asked for. A DataUpload of our own action has it; for one
// of Velero's action it is read from the Backup.
func (u *uploads) settings(ctx context.Context, du *velerov2alpha1.DataUpload) (policy.Settings, error) {
	parent, err := veleroapi.ParentSnapshot(ctx, u.reader, client.ObjectKeyFromObject(du))
	if err != nil {
		return policy.Settings{}, err
	}
	settings, decided, err := policy.FromDataUpload(du.Spec.DataMoverConfig, parent)
	if err != nil {
		return policy.Settings{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	if _, ours := du.Spec.DataMoverConfig[identity.ConfigParentSnapshot]; ours {
		return settings, nil
	}
	name, _ := backupOf(du)
	if name == "" {
		return settings, nil
	}
	asked, err := veleroapi.GetBackup(ctx, u.reader, client.ObjectKey{Namespace: u.namespace, Name: name})
	if apierrors.IsNotFound(err) {
		return settings, nil
	} else if err != nil {
		return policy.Settings{}, err
	}
	if !decided {
		settings.BackupType, err = policy.Resolve(asked.Type, asked.Annotations[identity.AnnotationBackupType], policy.Settings{})
		if err != nil {
			return policy.Settings{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
		}
	}
	settings.Retention, err = policy.ResolveRetention(asked.Annotations[identity.AnnotationRetainSnapshot], settings)
	if err != nil {
		return policy.Settings{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	return settings, nil
}

// topologyOf returns the nodes that the volume to read from must be made for, for classes that
// bind late. With immediate binding, the scheduler reads them from the bound PV.
func (u *uploads) topologyOf(ctx context.Context, du *velerov2alpha1.DataUpload) (*corev1.NodeSelector, error) {
	class, err := u.storageClass(ctx, du.Spec.CSISnapshot.StorageClass)
	if err != nil || class == nil || !bindsLate(class) {
		return nil, err
	}
	return u.affinityOf(ctx, du)
}

// affinityOf returns the nodes that can use the source volume, or nil if all can or it is gone.
func (u *uploads) affinityOf(ctx context.Context, du *velerov2alpha1.DataUpload) (*corev1.NodeSelector, error) {
	key := client.ObjectKey{Namespace: du.Spec.SourceNamespace, Name: du.Spec.SourcePVC}
	pvc, err := kube.Find(ctx, u.reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil || pvc == nil || pvc.Spec.VolumeName == "" {
		return nil, err
	}
	pv, err := kube.Find(ctx, u.reader, client.ObjectKey{Name: pvc.Spec.VolumeName}, &corev1.PersistentVolume{})
	if err != nil || pv == nil || pv.Spec.NodeAffinity == nil {
		return nil, err
	}
	return pv.Spec.NodeAffinity.Required, nil
}

func bindsLate(class *storagev1.StorageClass) bool {
	return class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// complete writes the report into the status.
func (u *uploads) complete(ctx context.Context, op *operation.View, report task.Report) error {
	du := op.Upload
	if report.SnapshotID == "" {
		return fmt.Errorf("complete DataUpload %s: the report of success has no snapshot ID", du.Name)
	}
	result, err := resultOf(report)
	if err != nil {
		return err
	}
	du.Status.SnapshotID = string(report.SnapshotID)
	for _, key := range []string{identity.ConfigGroup, identity.ConfigGroupReason, identity.ConfigVMReason} {
		if value := du.Spec.DataMoverConfig[key]; value != "" {
			result[key] = value
		}
	}
	du.Status.DataMoverResult = &result
	du.Status.IncrementalBytes = report.BytesUploaded
	op.Status.BytesTotal, op.Status.BytesDone = report.VolumeSize, report.VolumeSize
	result["bytesRead"] = fmt.Sprint(report.BytesRead + op.Status.Attempt.ReadBefore)
	suspicion, err := u.suspect(ctx, op)
	if err == nil && suspicion != "" {
		result[resultSuspicion] = suspicion
	}
	return err
}

// resultOf renders the fields of a report that have a value as text, under their names in
// the report.
func resultOf(report task.Report) (map[string]string, error) {
	b, err := json.Marshal(report)
	if err != nil {
		return nil, fmt.Errorf("render report: %w", err)
	}
	fields := map[string]any{}
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.UseNumber() // counts of bytes are exact beyond 2^53
	if err := decoder.Decode(&fields); err != nil {
		return nil, fmt.Errorf("render report: %w", err)
	}
	delete(fields, "version")
	delete(fields, "snapshotID")
	delete(fields, "steps")
	result := make(map[string]string, len(fields))
	for name, value := range fields {
		result[name] = fmt.Sprint(value)
	}
	if len(report.Reasons) > 0 {
		result["reasons"] = strings.Join(report.Reasons, ",")
	}
	result["duration"] = report.Duration.String()
	return result, nil
}

// finish keeps the storage snapshot if it is wanted, now that the image is in the
// repository, and releases the rest: the volume before the snapshot that it was created
// from. The upload is not delivered before the snapshot is kept, so no limit of the release
// takes away the base of the next backup.
func (u *uploads) finish(ctx context.Context, op *operation.View) (ending, error) {
	end := ending{committed: true}
	if op.Status.Outcome.Phase == phase.Completed {
		if err := u.keep(ctx, op); err != nil {
			return end, err
		}
	}
	end.delivered = true
	var err error
	if end.left, err = u.releaseVolume(ctx, op); err != nil || len(end.left) > 0 {
		return end, err
	}
	if end.left, err = u.rehomer.Release(ctx, op.Operation); err != nil || len(end.left) > 0 {
		return end, err
	}
	du := op.Upload
	if du.Spec.CSISnapshot == nil {
		return end, nil
	}
	end.left, err = volumesnapshot.Release(ctx, u.client, u.reader, sourceOf(du))
	return end, err
}

// sourceOf is the VolumeSnapshot that a DataUpload was made for.
func sourceOf(du *velerov2alpha1.DataUpload) types.NamespacedName {
	if du.Spec.CSISnapshot == nil {
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: du.Spec.SourceNamespace, Name: du.Spec.CSISnapshot.VolumeSnapshot}
}
