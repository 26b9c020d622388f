package restore

import (
	"context"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/plugins/internal/poll"
)

// PVCActionName is the registered name of the PVC action.
const PVCActionName = "blockmover.io/pvc-restore"

// PVCAction restores the PVCs that our backup action has marked.
type PVCAction struct {
	noAdditionalItems
	log    logrus.FieldLogger
	api    client.Client
	poller poll.Poller
}

var _ riav2.RestoreItemAction = (*PVCAction)(nil)

// NewPVCAction returns the action.
func NewPVCAction(log logrus.FieldLogger, api client.Client) *PVCAction {
	return &PVCAction{
		log: log,
		api: api,
		poller: poll.Poller{
			Log:    log,
			API:    api,
			Action: PVCActionName,
			Plugin: common.PluginKindRestoreItemActionV2,
			Kind:   identity.KindDataDownload,
			Now:    time.Now,
			// No manager has accepted the DataDownload, so it holds nothing.
			Release: func(context.Context, *operation.View) error { return nil },
		},
	}
}

// Name implements RestoreItemAction.
func (*PVCAction) Name() string { return PVCActionName }

// AppliesTo implements RestoreItemAction.
func (*PVCAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumeclaims"}}, nil
}

// Execute implements RestoreItemAction.
func (a *PVCAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	var pvc, fromBackup corev1.PersistentVolumeClaim
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(input.Item.UnstructuredContent(), &pvc); err != nil {
		return nil, fmt.Errorf("decode PVC: %w", err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(input.ItemFromBackup.UnstructuredContent(), &fromBackup); err != nil {
		return nil, fmt.Errorf("decode PVC of the backup: %w", err)
	}
	uploadName, marked := fromBackup.Annotations[identity.AnnotationDataUpload]
	mode, err := inplace.ParseMode(input.Restore.Annotations[identity.AnnotationInPlace])
	if !marked && (err != nil || mode == inplace.Off) {
		return velero.NewRestoreItemActionExecuteOutput(input.Item), nil
	}
	delete(pvc.Annotations, identity.AnnotationDataUpload)
	delete(pvc.Labels, identity.LabelRestored) // it is of the volume, which will be another one
	if owner := kube.PodOf(&fromBackup); owner != "" {
		// Kubernetes makes the PVC of a generic ephemeral volume for its pod, and lets the pod
		// use no other. A restored one would keep the pod from starting.
		a.log.Warnf("PVC %s/%s is the generic ephemeral volume of pod %s: it is not restored, and the pod gets a new and empty one", pvc.Namespace, pvc.Name, owner)
		return velero.NewRestoreItemActionExecuteOutput(input.Item).WithoutRestore(), nil
	}

	ctx, cancel := context.WithTimeout(context.Background(), poll.CallTimeout)
	defer cancel()
	if err == nil && mode != inplace.Off {
		var operationID string
		if operationID, err = a.restoreInPlace(ctx, &pvc, &fromBackup, mode, input.Restore); operationID != "" {
			return velero.NewRestoreItemActionExecuteOutput(input.Item).WithOperationID(operationID).WithoutRestore(), nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("restore PVC %s/%s with blockmover: %w", pvc.Namespace, pvc.Name, err)
	}
	if !marked {
		return velero.NewRestoreItemActionExecuteOutput(input.Item), nil
	}
	operationID, err := a.restore(ctx, &pvc, &fromBackup, uploadName, input.Restore)
	if err != nil {
		return nil, fmt.Errorf("restore PVC %s/%s with blockmover: %w", pvc.Namespace, pvc.Name, err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&pvc)
	if err != nil {
		return nil, fmt.Errorf("encode PVC: %w", err)
	}
	return velero.NewRestoreItemActionExecuteOutput(&unstructured.Unstructured{Object: content}).WithOperationID(operationID), nil
}

// restore makes the PVC wait for the restored volume, and starts the operation that provides
// it. The operation ID is empty if there is nothing to move.
func (a *PVCAction) restore(ctx context.Context, pvc, fromBackup *corev1.PersistentVolumeClaim, uploadName string, restore *velerov1.Restore) (string, error) {
	found, err := a.findLive(ctx, pvc, restore)
	if err != nil {
		return "", err
	}
	namespace := namespaceOf(pvc, restore)
	if found != nil {
		return "", a.sayNotRestored(ctx, found, pvc, uploadName, restore)
	}

	backup := &velerov1.Backup{}
	backupKey := client.ObjectKey{Namespace: restore.Namespace, Name: restore.Spec.BackupName}
	if err := a.api.Get(ctx, backupKey, backup); err != nil {
		return "", fmt.Errorf("get Backup %s: %w", backupKey, err)
	}
	if _, builtIn := fromBackup.Annotations[velerov1.DataUploadNameAnnotation]; builtIn && isTrue(backup.Spec.SnapshotMoveData) {
		return "", nil
	}
	unbind(pvc)
	if restore.Spec.RestorePVs != nil && !*restore.Spec.RestorePVs {
		a.log.Infof("PVC %s/%s: the restore is without volumes: the PVC gets a new and empty one", namespace, pvc.Name)
		return "", nil
	}
	result, err := findResult(ctx, a.api, restore, fromBackup.Namespace, fromBackup.Name, uploadName)
	if err != nil {
		return "", err
	}
	if err := checkResult(result, uploadName); err != nil {
		return "", err
	}
	if _, err := a.poller.AcceptTimeout(ctx, restore.Namespace, restore.Spec.ItemOperationTimeout.Duration); err != nil {
		return "", err
	}
	result.SnapshotSize = sizeOf(result, fromBackup)
	download := newDataDownload(restore, backup, result, namespace, pvc.Name, string(fromBackup.UID))
	selectOnly(pvc, label.GetValidName(namespace+"."+pvc.Name+"."+download.Name))
	if err := a.ensureDataDownload(ctx, download); err != nil {
		return "", err
	}
	a.log.WithField("dataDownload", client.ObjectKeyFromObject(download).String()).Info("The volume is restored by the blockmover data mover")
	return download.Labels[velerov1.AsyncOperationIDLabel], nil
}

// namespaceOf returns the namespace that a restore has for a PVC.
func namespaceOf(pvc *corev1.PersistentVolumeClaim, restore *velerov1.Restore) string {
	if mapped, ok := restore.Spec.NamespaceMapping[pvc.Namespace]; ok {
		return mapped
	}
	return pvc.Namespace
}

// findLive returns the PVC that exists where a PVC of the backup would be restored, or nil.
func (a *PVCAction) findLive(ctx context.Context, pvc *corev1.PersistentVolumeClaim, restore *velerov1.Restore) (*corev1.PersistentVolumeClaim, error) {
	return kube.Find(ctx, a.api, client.ObjectKey{Namespace: namespaceOf(pvc, restore), Name: pvc.Name}, &corev1.PersistentVolumeClaim{})
}

// sizeOf returns the size of the volume in the backup. The device may have been larger than the
// PersistentVolume said, and the other way round.
func sizeOf(result velerov2alpha1.DataUploadResult, fromBackup *corev1.PersistentVolumeClaim) int64 {
	return max(result.SnapshotSize, fromBackup.Status.Capacity.Storage().Value())
}

// sayNotRestored says that a PVC keeps the data that it has. Velero has no warnings of actions. It
// warns of a PVC that exists, but only if that differs from the one in the backup, and says nothing of
// data. So the PVC keeps our annotation, which no live one has, and an event of the Restore says what
// that means. With the policy update Velero would give the annotation to the live PVC.
func (a *PVCAction) sayNotRestored(ctx context.Context, live, pvc *corev1.PersistentVolumeClaim, uploadName string, restore *velerov1.Restore) error {
	text := fmt.Sprintf("PVC %s/%s already exists: its data is not restored. Delete it first, or restore into another namespace with --namespace-mappings, "+
		"or into the PVC itself with --annotations %s=%s", live.Namespace, live.Name, identity.AnnotationInPlace, inplace.SameVolume)
	a.log.Warn(text)
	if restored := live.Labels[identity.LabelRestored]; restored != "" { // nor may Velero take it from the live PVC
		metav1.SetMetaDataLabel(&pvc.ObjectMeta, identity.LabelRestored, restored)
	}
	if restore.Spec.ExistingResourcePolicy != velerov1.PolicyTypeUpdate {
		kube.SetAnnotation(pvc, identity.AnnotationDataUpload, uploadName)
	}
	about := corev1.ObjectReference{APIVersion: velerov1.SchemeGroupVersion.String(), Kind: "Restore", Namespace: restore.Namespace, Name: restore.Name, UID: restore.UID}
	return kube.Warn(ctx, a.api, about, identity.DataMover, "VolumeExists", text)
}

// bindAnnotations are annotations of the volume controller and the scheduler on the PVC of
// the backup. Velero's own action removes them, too, but the order of the actions is not
// defined.
var bindAnnotations = []string{
	"pv.kubernetes.io/bind-completed",
	"pv.kubernetes.io/bound-by-controller",
	"volume.kubernetes.io/storage-provisioner",
	"volume.beta.kubernetes.io/storage-provisioner",
	"volume.kubernetes.io/selected-node",
}

// unbind removes the volume and the data source from a PVC.
func unbind(pvc *corev1.PersistentVolumeClaim) {
	pvc.Spec.VolumeName = ""
	pvc.Spec.DataSource = nil
	pvc.Spec.DataSourceRef = nil
	for _, key := range bindAnnotations {
		delete(pvc.Annotations, key)
	}
}

// selectOnly makes a PVC wait for the volume that the mover will label with value.
func selectOnly(pvc *corev1.PersistentVolumeClaim, value string) {
	if pvc.Spec.Selector == nil {
		pvc.Spec.Selector = &metav1.LabelSelector{}
	}
	if pvc.Spec.Selector.MatchLabels == nil {
		pvc.Spec.Selector.MatchLabels = map[string]string{}
	}
	pvc.Spec.Selector.MatchLabels[velerov1.DynamicPVRestoreLabel] = value
}

// Progress implements RestoreItemAction.
func (a *PVCAction) Progress(operationID string, restore *velerov1.Restore) (velero.OperationProgress, error) {
	if operationID == "" {
		return velero.OperationProgress{}, riav2.InvalidOperationIDError(operationID)
	}
	return a.poller.Progress(operationID, restore.Namespace, restore.Spec.ItemOperationTimeout.Duration)
}

// Cancel implements RestoreItemAction.
func (a *PVCAction) Cancel(operationID string, restore *velerov1.Restore) error {
	if operationID == "" {
		return riav2.InvalidOperationIDError(operationID)
	}
	return a.poller.Cancel(operationID, restore.Namespace)
}

func isTrue(b *bool) bool { return b != nil && *b }
