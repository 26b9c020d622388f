package restore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/plugins/internal/poll"
)

// VMActionName is the registered name of the action for VMs.
const VMActionName = "blockmover.io/virtualmachine-restore"

// VMAction restores a VM halted, and starts it when its last disk is restored. KubeVirt would
// otherwise start it with the first node that has all disks, whatever is in them.
type VMAction struct {
	noAdditionalItems
	log logrus.FieldLogger
	api client.Client
	now func() time.Time
}

var _ riav2.RestoreItemAction = (*VMAction)(nil)

// NewVMAction returns the action.
func NewVMAction(log logrus.FieldLogger, api client.Client) *VMAction {
	return &VMAction{log: log, api: api, now: time.Now}
}

// Name implements RestoreItemAction.
func (*VMAction) Name() string { return VMActionName }

// AppliesTo implements RestoreItemAction.
func (*VMAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{
		"virtualmachines.kubevirt.io", "virtualmachineinstances.kubevirt.io",
		"virtualmachinebackups.backup.kubevirt.io", "virtualmachinebackuptrackers.backup.kubevirt.io",
	}}, nil
}

// The run strategy that keeps a VM from starting.
const halted = "Halted"

// Execute implements RestoreItemAction.
func (a *VMAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	vm := &unstructured.Unstructured{Object: input.Item.UnstructuredContent()}
	output := velero.NewRestoreItemActionExecuteOutput(vm)
	if vm.GetKind() != kubevirt.VirtualMachine.Kind {
		// Velero has removed the owner from the item.
		fromBackup := unstructured.Unstructured{Object: input.ItemFromBackup.UnstructuredContent()}
		if vm.GetKind() == kubevirt.VirtualMachineInstance.Kind && len(fromBackup.GetOwnerReferences()) == 0 {
			return output, nil // nobody else makes it
		}
		// A restored VirtualMachineInstance would start with whatever is on the disks, a
		// VirtualMachineBackup would run, and a tracker would name a checkpoint that the restored
		// disks do not have.
		a.log.Infof("%s %s/%s is not restored", vm.GetKind(), vm.GetNamespace(), vm.GetName())
		return output.WithoutRestore(), nil
	}
	if !marked(input) {
		return output, nil
	}
	annotations := vm.GetAnnotations()
	delete(annotations, identity.AnnotationVMDisks)
	vm.SetAnnotations(annotations)
	if restorePVs := input.Restore.Spec.RestorePVs; restorePVs != nil && !*restorePVs {
		return output, nil
	}
	key := client.ObjectKeyFromObject(vm)
	if mapped, ok := input.Restore.Spec.NamespaceMapping[key.Namespace]; ok {
		key.Namespace = mapped
	}
	ctx, cancel := context.WithTimeout(context.Background(), poll.CallTimeout)
	defer cancel()
	found, err := kube.Find(ctx, a.api, key, kubevirt.New(kubevirt.VirtualMachine))
	switch {
	case err != nil:
		return nil, fmt.Errorf("restore VM %s with blockmover: %w", key, err)
	case found != nil:
		a.log.Warnf("VM %s already exists: it is not restored, and neither halted nor started", key)
		return output, nil
	}
	strategy := runStrategy(vm)
	if strategy == halted {
		return output, nil
	}
	kube.SetAnnotation(vm, identity.AnnotationRunStrategy, strategy)
	if err := setRunStrategy(vm, halted); err != nil {
		return nil, fmt.Errorf("restore VM %s with blockmover: %w", key, err)
	}
	a.log.Infof("VM %s is restored halted, and gets its run strategy %s when its disks are restored", key, strategy)
	return output.WithOperationID(operationPrefix + key.String()), nil
}

func marked(input *velero.RestoreItemActionExecuteInput) bool {
	fromBackup := unstructured.Unstructured{Object: input.ItemFromBackup.UnstructuredContent()}
	return fromBackup.GetAnnotations()[identity.AnnotationVMDisks] != ""
}

// operationPrefix is what an operation ID begins with. The rest is namespace/name of the VM.
const operationPrefix = "blockmover-vm."

// runStrategy returns the run strategy of a VM. Older VMs have a field running instead.
func runStrategy(vm *unstructured.Unstructured) string {
	if strategy, _, _ := unstructured.NestedString(vm.Object, "spec", "runStrategy"); strategy != "" {
		return strategy
	}
	if running, _, _ := unstructured.NestedBool(vm.Object, "spec", "running"); running {
		return "Always"
	}
	return halted
}

func setRunStrategy(vm *unstructured.Unstructured, strategy string) error {
	unstructured.RemoveNestedField(vm.Object, "spec", "running")
	return unstructured.SetNestedField(vm.Object, strategy, "spec", "runStrategy")
}

// Progress implements RestoreItemAction. It starts the VM when all its disks are restored.
func (a *VMAction) Progress(operationID string, restore *velerov1.Restore) (velero.OperationProgress, error) {
	namespace, name, ok := strings.Cut(strings.TrimPrefix(operationID, operationPrefix), "/")
	if !ok || !strings.HasPrefix(operationID, operationPrefix) {
		return velero.OperationProgress{}, riav2.InvalidOperationIDError(operationID)
	}
	ctx, cancel := context.WithTimeout(context.Background(), poll.CallTimeout)
	defer cancel()
	key := client.ObjectKey{Namespace: namespace, Name: name}
	vm, err := kube.Find(ctx, a.api, key, kubevirt.New(kubevirt.VirtualMachine))
	if err != nil {
		return velero.OperationProgress{}, fmt.Errorf("start VM %s: %w", key, err)
	}
	progress := velero.OperationProgress{OperationUnits: "disks", Started: restore.CreationTimestamp.Time, Updated: a.now()}
	if vm == nil {
		progress.Completed = true
		progress.Err = fmt.Sprintf("VM %s does not exist: it was deleted, or the errors of the Restore say why", key)
		return progress, nil
	}
	disks, err := a.disks(ctx, vm, restore)
	if err != nil {
		return velero.OperationProgress{}, fmt.Errorf("start VM %s: %w", key, err)
	}
	progress.NTotal = int64(len(disks))
	for _, d := range disks {
		switch {
		case d.Status.Phase == phase.Completed:
			progress.NCompleted++
		case d.Status.Phase.Terminal():
			progress.Completed = true
			progress.Err = fmt.Sprintf("VM %s stays halted: the restore of its disk, PVC %s, is %s: %s. Its run strategy is in annotation %s",
				key, d.Download.Spec.TargetVolume.PVC, d.Status.Phase, d.Status.Message, identity.AnnotationRunStrategy)
		}
	}
	if progress.Completed || progress.NCompleted < progress.NTotal {
		progress.Description = fmt.Sprintf("VM %s is halted until its disks are restored", key)
		return progress, nil
	}
	if err := a.start(ctx, vm); err != nil {
		return velero.OperationProgress{}, fmt.Errorf("start VM %s: %w", key, err)
	}
	progress.Completed = true
	return progress, nil
}

// disks returns the DataDownloads of a restore that write the disks of a VM.
func (a *VMAction) disks(ctx context.Context, vm *unstructured.Unstructured, restore *velerov1.Restore) ([]*operation.View, error) {
	all, err := operation.List(ctx, a.api, identity.KindDataDownload, client.InNamespace(restore.Namespace),
		client.MatchingLabels{velerov1.RestoreUIDLabel: string(restore.UID)})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(op *operation.View) bool {
		target := op.Download.Spec.TargetVolume
		_, ok := kubevirt.DiskOf(vm, target.PVC)
		return !ok || target.Namespace != vm.GetNamespace()
	}), nil
}

// start gives a VM its run strategy back.
func (a *VMAction) start(ctx context.Context, vm *unstructured.Unstructured) error {
	annotations := vm.GetAnnotations()
	strategy := annotations[identity.AnnotationRunStrategy]
	if strategy == "" {
		return nil // it was started before
	}
	before := vm.DeepCopy()
	delete(annotations, identity.AnnotationRunStrategy)
	vm.SetAnnotations(annotations)
	if err := setRunStrategy(vm, strategy); err != nil {
		return err
	}
	return a.api.Patch(ctx, vm, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// Cancel implements RestoreItemAction. The VM stays halted; the DataDownloads of its disks are
// canceled by themselves.
func (a *VMAction) Cancel(operationID string, _ *velerov1.Restore) error {
	a.log.Warnf("VM %s stays halted", strings.TrimPrefix(operationID, operationPrefix))
	return nil
}
