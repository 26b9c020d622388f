package backup

import (
	"context"
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	biav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/backupitemaction/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/plugins/internal/poll"
)

// VMActionName is the registered name of the action for VMs.
const VMActionName = "blockmover.io/virtualmachine-backup"

// VMAction adds the disks of a VM to the backup that Blockmover moves, and notes them on the VM:
// a restore starts the VM after the last of them.
type VMAction struct {
	noOperations
	api      client.Client
	policies policies
}

var _ biav2.BackupItemAction = (*VMAction)(nil)

// NewVMAction returns the action. globalPolicies is as in NewPVCAction.
func NewVMAction(log logrus.FieldLogger, api client.Client, globalPolicies string) *VMAction {
	return &VMAction{api: api, policies: policies{log: log, api: api, global: globalPolicies}}
}

// Name implements BackupItemAction.
func (*VMAction) Name() string { return VMActionName }

// AppliesTo implements BackupItemAction.
func (*VMAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"virtualmachines.kubevirt.io"}}, nil
}

// Execute implements BackupItemAction.
func (a *VMAction) Execute(item runtime.Unstructured, backup *velerov1.Backup) (
	runtime.Unstructured, []velero.ResourceIdentifier, string, []velero.ResourceIdentifier, error,
) {
	vm := &unstructured.Unstructured{Object: item.UnstructuredContent()}
	if annotations := vm.GetAnnotations(); annotations[identity.AnnotationVMDisks] != "" {
		delete(annotations, identity.AnnotationVMDisks) // a restore without our plugin left it
		vm.SetAnnotations(annotations)
	}
	ctx, cancel := context.WithTimeout(context.Background(), poll.CallTimeout)
	defer cancel()
	claims, err := a.moved(ctx, vm, backup)
	if err != nil {
		return nil, nil, "", nil, fmt.Errorf("back up VM %s/%s with blockmover: %w", vm.GetNamespace(), vm.GetName(), err)
	}
	if len(claims) == 0 {
		return vm, nil, "", nil, nil
	}
	kube.SetAnnotation(vm, identity.AnnotationVMDisks, strings.Join(claims, ","))
	var items []velero.ResourceIdentifier
	for _, claim := range claims {
		items = append(items, velero.ResourceIdentifier{GroupResource: kuberesource.PersistentVolumeClaims, Namespace: vm.GetNamespace(), Name: claim})
	}
	return vm, items, "", nil, nil
}

// moved returns the PVCs of a VM that Blockmover moves, in either way.
func (a *VMAction) moved(ctx context.Context, vm *unstructured.Unstructured, backup *velerov1.Backup) ([]string, error) {
	var claims []string
	for _, disk := range kubevirt.Disks(vm) {
		key := client.ObjectKey{Namespace: vm.GetNamespace(), Name: disk.Claim}
		pvc, err := kube.Find(ctx, a.api, key, &corev1.PersistentVolumeClaim{})
		if err != nil {
			return nil, err
		}
		if pvc == nil {
			continue
		}
		decided, err := a.policies.decideClaim(pvc, backup)
		if err != nil {
			return nil, err
		}
		if decided.ours {
			claims = append(claims, disk.Claim)
		}
	}
	return claims, nil
}
