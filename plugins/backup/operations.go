package backup

import (
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	biav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/backupitemaction/v2"
)

// noOperations is embedded by an action that starts no operations.
type noOperations struct{}

// Progress implements BackupItemAction.
func (noOperations) Progress(string, *velerov1.Backup) (velero.OperationProgress, error) {
	return velero.OperationProgress{}, biav2.AsyncOperationsNotSupportedError()
}

// Cancel implements BackupItemAction.
func (noOperations) Cancel(string, *velerov1.Backup) error {
	return biav2.AsyncOperationsNotSupportedError()
}
