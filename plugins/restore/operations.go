package restore

import (
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
)

// noOperations is embedded by an action that starts no operations.
type noOperations struct{}

// Progress implements RestoreItemAction.
func (noOperations) Progress(string, *velerov1.Restore) (velero.OperationProgress, error) {
	return velero.OperationProgress{}, riav2.AsyncOperationsNotSupportedError()
}

// Cancel implements RestoreItemAction.
func (noOperations) Cancel(string, *velerov1.Restore) error {
	return riav2.AsyncOperationsNotSupportedError()
}

// noAdditionalItems is embedded by an action that adds no items to a restore.
type noAdditionalItems struct{}

// AreAdditionalItemsReady implements RestoreItemAction.
func (noAdditionalItems) AreAdditionalItemsReady([]velero.ResourceIdentifier, *velerov1.Restore) (bool, error) {
	return true, nil
}
