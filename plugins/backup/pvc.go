package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	"github.com/vmware-tanzu/velero/pkg/plugin/utils/volumehelper"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	biav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/backupitemaction/v2"
	"github.com/vmware-tanzu/velero/pkg/util/boolptr"
	"github.com/vmware-tanzu/velero/pkg/util/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/veleroapi"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/plugins/internal/poll"
)

// PVCActionName is the registered name of the PVC action.
const PVCActionName = "blockmover.io/pvc-backup"

// defaultSnapshotTimeout is Velero's default of Backup.spec.csiSnapshotTimeout.
const defaultSnapshotTimeout = 10 * time.Minute

// maxNameLength is that of a file, 255, without ".json".
const maxNameLength = 250

// PVCAction backs up the PVCs that a volume policy gives to Blockmover. It is safe for
// concurrent use: Velero runs item blocks in parallel.
type PVCAction struct {
	log      logrus.FieldLogger
	api      client.Client
	poller   poll.Poller
	policies policies
	groups   grouping
	vms      vms
	// csi is set if Velero's server takes CSI snapshots.
	csi bool
}

var _ biav2.BackupItemAction = (*PVCAction)(nil)

// NewPVCAction returns the action. globalPolicies is the ConfigMap of volume policies that
// apply to every backup (a flag of the Velero server), or "". csi says whether the server has the
// feature EnableCSI.
func NewPVCAction(log logrus.FieldLogger, api client.Client, globalPolicies string, csi bool) *PVCAction {
	p := policies{log: log, api: api, global: globalPolicies}
	a := &PVCAction{log: log, api: api, policies: p, groups: grouping{p}, vms: vms{log, api, p}, csi: csi}
	a.poller = poll.Poller{
		Log:     log,
		API:     api,
		Action:  PVCActionName,
		Plugin:  common.PluginKindBackupItemActionV2,
		Kind:    identity.KindDataUpload,
		Now:     time.Now,
		Release: a.releaseUpload,
	}
	return a
}

// Name implements BackupItemAction.
func (*PVCAction) Name() string { return PVCActionName }

// AppliesTo implements BackupItemAction.
func (*PVCAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumeclaims"}}, nil
}

// Execute implements BackupItemAction.
func (a *PVCAction) Execute(item runtime.Unstructured, backup *velerov1.Backup) (
	runtime.Unstructured, []velero.ResourceIdentifier, string, []velero.ResourceIdentifier, error,
) {
	if backup.Status.Phase == velerov1.BackupPhaseFinalizing || backup.Status.Phase == velerov1.BackupPhaseFinalizingPartiallyFailed {
		return item, nil, "", nil, nil
	}
	pvc := &corev1.PersistentVolumeClaim{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.UnstructuredContent(), pvc); err != nil {
		return nil, nil, "", nil, fmt.Errorf("decode PVC: %w", err)
	}
	snapshotTimeout := backup.Spec.CSISnapshotTimeout.Duration
	if snapshotTimeout <= 0 {
		snapshotTimeout = defaultSnapshotTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTimeout+poll.CallTimeout)
	defer cancel()

	decided, err := a.policies.decide(item, pvc, backup)
	if err != nil {
		return nil, nil, "", nil, err
	}
	if !decided.ours {
		return withoutStaleMarks(item), nil, "", nil, a.checkServer(ctx, item, pvc, backup)
	}
	if owner := kube.PodOf(pvc); owner != "" {
		a.log.Warnf("PVC %s/%s is the generic ephemeral volume of pod %s: it is not backed up, and a restored pod gets a new and empty one",
			pvc.Namespace, pvc.Name, owner)
		return skipped(item), nil, "", nil, nil
	}
	if isPersistentState(pvc) {
		a.log.Warnf("PVC %s/%s has the state of VM %s besides its disks: it is not backed up. What a persistent TPM or EFI of the VM keeps is not in the backup",
			pvc.Namespace, pvc.Name, pvc.Labels[labelPersistentState])
		return skipped(item), nil, "", nil, nil
	}
	upload, err := a.start(ctx, pvc, backup, decided.params, snapshotTimeout)
	if err != nil {
		return nil, nil, "", nil, fmt.Errorf("back up PVC %s/%s with blockmover: %w", pvc.Namespace, pvc.Name, err)
	}
	a.log.WithField("dataUpload", client.ObjectKeyFromObject(upload).String()).Info("The volume is handed to the blockmover data mover")

	updated := &unstructured.Unstructured{Object: withoutStaleMarks(item).UnstructuredContent()}
	kube.SetAnnotation(updated, identity.AnnotationDataUpload, client.ObjectKeyFromObject(upload).String())
	// Velero reads the DataUpload again when the operation has ended, and stores it in the
	// backup. A restore starts from its status.
	afterwards := []velero.ResourceIdentifier{{GroupResource: kuberesource.DataUploads, Namespace: upload.Namespace, Name: upload.Name}}
	if name := upload.Spec.DataMoverConfig[identity.ConfigGroup]; name != "" {
		// GroupSnapshotAction deletes the group when all operations have ended.
		afterwards = append(afterwards, velero.ResourceIdentifier{GroupResource: groupSnapshots, Namespace: pvc.Namespace, Name: name})
	}
	return updated, nil, upload.Labels[velerov1.AsyncOperationIDLabel], afterwards, nil
}

// checkServer returns an error if the backup asks Velero to snapshot the volume for Blockmover, and Velero's server does not
// take CSI snapshots: it then leaves the volume out, and says so nowhere.
func (a *PVCAction) checkServer(ctx context.Context, item runtime.Unstructured, pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup) error {
	if a.csi || backup.Spec.DataMover != identity.DataMover || !boolptr.IsSetToTrue(backup.Spec.SnapshotMoveData) || pvc.Spec.VolumeName == "" {
		return nil
	}
	pv, err := kube.Find(ctx, a.api, client.ObjectKey{Name: pvc.Spec.VolumeName}, &corev1.PersistentVolume{})
	if err != nil || pv == nil || pv.Spec.CSI == nil {
		return err
	}
	helper, err := volumehelper.NewVolumeHelperWithCache(*backup, a.api, a.log, nil)
	if err != nil {
		return fmt.Errorf("match volume policies for PVC %s/%s: %w", pvc.Namespace, pvc.Name, err)
	}
	wanted, err := helper.ShouldPerformSnapshot(item, kuberesource.PersistentVolumeClaims)
	if err != nil || !wanted {
		return err
	}
	return fmt.Errorf("back up PVC %s/%s with blockmover: Velero's server takes no CSI snapshots: start it with --features=%s, or give the volume to Blockmover by a volume policy",
		pvc.Namespace, pvc.Name, velerov1.CSIFeatureFlag)
}

// skipped tells Velero to leave an item out of the backup.
func skipped(item runtime.Unstructured) runtime.Unstructured {
	u := &unstructured.Unstructured{Object: withoutStaleMarks(item).UnstructuredContent()}
	kube.SetAnnotation(u, velerov1.SkipFromBackupAnnotation, "true")
	return u
}

// withoutStaleMarks removes marks that a restore must not bring back. A restore without our
// plugin leaves our annotation on a PVC; if this backup does not move the PVC, the annotation
// would name a DataUpload that is not in the backup. Stamps belong to groups that are being
// made.
func withoutStaleMarks(item runtime.Unstructured) runtime.Unstructured {
	u := &unstructured.Unstructured{Object: item.UnstructuredContent()}
	if annotations := u.GetAnnotations(); annotations[identity.AnnotationDataUpload] != "" {
		delete(annotations, identity.AnnotationDataUpload)
		u.SetAnnotations(annotations)
	}
	if labels := u.GetLabels(); labels[identity.LabelGrouped] != "" {
		groupsnapshot.RemoveStamps(labels)
		u.SetLabels(labels)
	}
	return u
}

// start takes the VolumeSnapshot, alone or with a group, and creates the DataUpload. It finds
// every error that can be found before it takes the VolumeSnapshot.
func (a *PVCAction) start(ctx context.Context, pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup, params map[string]any, snapshotTimeout time.Duration) (*velerov2alpha1.DataUpload, error) {
	settings, err := a.settings(ctx, backup, params)
	if err != nil {
		return nil, err
	}
	if len(pvc.Name) > maxNameLength {
		return nil, fmt.Errorf("its name has %d characters, want at most %d: Velero stores it as a file, and cannot restore a longer one", len(pvc.Name), maxNameLength)
	}
	if _, err := a.poller.AcceptTimeout(ctx, backup.Namespace, backup.Spec.ItemOperationTimeout.Duration); err != nil {
		return nil, err
	}
	if settings.KubeVirt {
		disk, reason, detail, err := a.vms.find(ctx, pvc, backup)
		if err != nil {
			return nil, err
		}
		if disk != nil {
			return a.create(ctx, newDiskUpload(disk, pvc, backup, settings))
		}
		settings.VMReason = string(reason)
		a.log.Warnf("PVC %s/%s is snapshotted by its storage, and not backed up by KubeVirt: %s: %s", pvc.Namespace, pvc.Name, reason, detail)
	}
	pv, err := a.volumeOf(ctx, pvc)
	if err != nil {
		return nil, err
	}
	member, alone, err := a.groups.join(ctx, pvc, pv.Spec.CSI.Driver, backup, settings)
	if err != nil {
		return nil, err
	}
	if member != nil {
		class := a.groups.classOfMember(ctx, settings.SnapshotClass, pv.Spec.CSI.Driver, pvc, backup)
		return a.startMember(ctx, member, newDataUpload(pvc, pv.Spec.CSI.Driver, backup, "", class, settings), snapshotTimeout)
	}
	class, err := a.snapshotClass(ctx, settings.SnapshotClass, pv.Spec.CSI.Driver, pvc, backup)
	if err != nil {
		return nil, err
	}
	vs, err := volumesnapshot.Ensure(ctx, a.api, volumesnapshot.Source{
		Namespace: pvc.Namespace,
		PVC:       pvc.Name,
		PVCUID:    string(pvc.UID),
		Class:     class,
		BackupUID: string(backup.UID),
	})
	if err != nil {
		return nil, err
	}
	vsKey := client.ObjectKeyFromObject(vs)
	wanted := newDataUpload(pvc, pv.Spec.CSI.Driver, backup, vs.Name, class, settings)
	if alone != "" {
		wanted.Spec.DataMoverConfig[identity.ConfigGroupReason] = string(alone)
	}
	upload, err := a.upload(ctx, vsKey, wanted, snapshotTimeout)
	if err != nil {
		return nil, errors.Join(err, a.release(ctx, vsKey))
	}
	return upload, nil
}

// release deletes the VolumeSnapshot of a failed attempt, unless a manager has taken it over
// at the last moment. It has a context of its own: the attempt may have failed because its
// time was up.
func (a *PVCAction) release(ctx context.Context, vs client.ObjectKey) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), poll.CallTimeout)
	defer cancel()
	_, err := volumesnapshot.Release(ctx, a.api, a.api, vs)
	return err
}

// settings returns what policy and Backup ask for.
func (a *PVCAction) settings(ctx context.Context, backup *velerov1.Backup, params map[string]any) (policy.Settings, error) {
	settings, err := policy.Parse(params)
	if err != nil {
		return policy.Settings{}, err
	}
	// The Backup that Velero passes has lost the fields that this version of Velero does not
	// know.
	asked, err := veleroapi.GetBackup(ctx, a.api, client.ObjectKeyFromObject(backup))
	if err != nil {
		return policy.Settings{}, err
	}
	if settings.BackupType, err = policy.Resolve(asked.Type, asked.Annotations[identity.AnnotationBackupType], settings); err != nil {
		return policy.Settings{}, err
	}
	settings.Retention, err = policy.ResolveRetention(asked.Annotations[identity.AnnotationRetainSnapshot], settings)
	return settings, err
}

// volumeOf returns the CSI volume of a PVC, or an error if it cannot be snapshotted and
// exposed.
func (a *PVCAction) volumeOf(ctx context.Context, pvc *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, error) {
	if pvc.Status.Phase != corev1.ClaimBound || pvc.Spec.VolumeName == "" {
		return nil, fmt.Errorf("the PVC is %s, want %s: it has no volume to back up", cmp.Or(string(pvc.Status.Phase), "of unknown phase"), corev1.ClaimBound)
	}
	pv := &corev1.PersistentVolume{}
	if err := a.api.Get(ctx, client.ObjectKey{Name: pvc.Spec.VolumeName}, pv); err != nil {
		return nil, fmt.Errorf("get PersistentVolume %s: %w", pvc.Spec.VolumeName, err)
	}
	if pv.Spec.CSI == nil {
		return nil, fmt.Errorf("PersistentVolume %s is not a CSI volume: blockmover cannot snapshot it", pv.Name)
	}
	return pv, nil
}

// snapshotClass returns the class that the policy names, or else the one that Velero would
// choose.
func (a *PVCAction) snapshotClass(ctx context.Context, named, driver string, pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (string, error) {
	if named == "" {
		class, err := csi.GetVolumeSnapshotClass(driver, backup, pvc, a.log, a.api)
		if err != nil {
			return "", fmt.Errorf("choose VolumeSnapshotClass of driver %s: %w", driver, err)
		}
		return class.Name, nil
	}
	return named, checkClass(ctx, a.api, named, driver)
}

// Progress implements BackupItemAction.
func (a *PVCAction) Progress(operationID string, backup *velerov1.Backup) (velero.OperationProgress, error) {
	if operationID == "" {
		return velero.OperationProgress{}, biav2.InvalidOperationIDError(operationID)
	}
	return a.poller.Progress(operationID, backup.Namespace, backup.Spec.ItemOperationTimeout.Duration)
}

// Cancel implements BackupItemAction.
func (a *PVCAction) Cancel(operationID string, backup *velerov1.Backup) error {
	if operationID == "" {
		return biav2.InvalidOperationIDError(operationID)
	}
	return a.poller.Cancel(operationID, backup.Namespace)
}

// releaseUpload releases the VolumeSnapshot of a DataUpload that was given up.
func (a *PVCAction) releaseUpload(ctx context.Context, v *operation.View) error {
	spec := v.Upload.Spec
	if spec.CSISnapshot == nil || spec.CSISnapshot.VolumeSnapshot == "" {
		return nil // nobody has begun to back up the disk of the VM
	}
	return a.release(ctx, client.ObjectKey{Namespace: spec.SourceNamespace, Name: spec.CSISnapshot.VolumeSnapshot})
}

// operationID returns the ID in the format of Velero's own action.
func operationID(backup *velerov1.Backup, pvc *corev1.PersistentVolumeClaim) string {
	return label.GetValidName(string(velerov1.AsyncOperationIDPrefixDataUpload) + string(backup.UID) + "." + string(pvc.UID))
}
