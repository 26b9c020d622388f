package restore

import (
	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
)

// GroupSnapshotActionName is the registered name of the action for group snapshots.
const GroupSnapshotActionName = "blockmover.io/volumegroupsnapshot-restore"

// GroupSnapshotAction keeps VolumeGroupSnapshots and their contents out of a restore, whoever
// made them. A VolumeGroupSnapshot is a request to take snapshots: restored, it would take
// new ones of the restored volumes. The content describes snapshots in a storage that this
// cluster may not have.
type GroupSnapshotAction struct {
	noOperations
	noAdditionalItems
	log logrus.FieldLogger
}

var _ riav2.RestoreItemAction = (*GroupSnapshotAction)(nil)

// NewGroupSnapshotAction returns the action.
func NewGroupSnapshotAction(log logrus.FieldLogger) *GroupSnapshotAction {
	return &GroupSnapshotAction{log: log}
}

// Name implements RestoreItemAction.
func (*GroupSnapshotAction) Name() string { return GroupSnapshotActionName }

// AppliesTo implements RestoreItemAction.
func (*GroupSnapshotAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{
		"volumegroupsnapshots." + groupsnapshot.APIGroup,
		"volumegroupsnapshotcontents." + groupsnapshot.APIGroup,
	}}, nil
}

// Execute implements RestoreItemAction.
func (a *GroupSnapshotAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	item := &unstructured.Unstructured{Object: input.Item.UnstructuredContent()}
	a.log.Infof("%s %s/%s: group snapshots are not restored", item.GetKind(), item.GetNamespace(), item.GetName())
	return velero.NewRestoreItemActionExecuteOutput(input.Item).WithoutRestore(), nil
}
