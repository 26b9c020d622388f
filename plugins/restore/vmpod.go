package restore

import (
	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// VMPodActionName is the registered name of the action for the pods of VMs.
const VMPodActionName = "blockmover.io/virtualmachine-pod-restore"

// VMPodAction keeps the pods of VMs out of a restore. KubeVirt makes them for a VM that it starts. A
// restored one belongs to no VM, and holds its disks.
type VMPodAction struct {
	noOperations
	noAdditionalItems
	log logrus.FieldLogger
}

var _ riav2.RestoreItemAction = (*VMPodAction)(nil)

// NewVMPodAction returns the action.
func NewVMPodAction(log logrus.FieldLogger) *VMPodAction { return &VMPodAction{log: log} }

// Name implements RestoreItemAction.
func (*VMPodAction) Name() string { return VMPodActionName }

// AppliesTo implements RestoreItemAction.
func (*VMPodAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"pods"}, LabelSelector: "kubevirt.io in (virt-launcher, hotplug-disk)"}, nil
}

// Execute implements RestoreItemAction.
func (a *VMPodAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	pod := unstructured.Unstructured{Object: input.Item.UnstructuredContent()}
	a.log.Infof("Pod %s/%s of a VM is not restored: KubeVirt makes its pods", pod.GetNamespace(), pod.GetName())
	return velero.NewRestoreItemActionExecuteOutput(input.Item).WithoutRestore(), nil
}
