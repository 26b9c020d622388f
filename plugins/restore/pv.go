package restore

import (
	"context"
	"fmt"

	"github.com/sirupsen/logrus"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/plugins/internal/poll"
)

// PVActionName is the registered name of the PV action.
const PVActionName = "blockmover.io/pv-restore"

// PVAction keeps PersistentVolumes out of a restore if a DataUpload of ours has their data:
// their PVC gets a restored volume instead. See the package documentation.
type PVAction struct {
	noOperations
	noAdditionalItems
	log logrus.FieldLogger
	api client.Client
}

var _ riav2.RestoreItemAction = (*PVAction)(nil)

// NewPVAction returns the action.
func NewPVAction(log logrus.FieldLogger, api client.Client) *PVAction {
	return &PVAction{log: log, api: api}
}

// Name implements RestoreItemAction.
func (*PVAction) Name() string { return PVActionName }

// AppliesTo implements RestoreItemAction.
func (*PVAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"persistentvolumes"}}, nil
}

// Execute implements RestoreItemAction. Velero restores DataUploads before PersistentVolumes,
// so their results exist.
func (a *PVAction) Execute(input *velero.RestoreItemActionExecuteInput) (*velero.RestoreItemActionExecuteOutput, error) {
	output := velero.NewRestoreItemActionExecuteOutput(input.Item)
	pv := &corev1.PersistentVolume{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(input.ItemFromBackup.UnstructuredContent(), pv); err != nil {
		return nil, fmt.Errorf("decode PersistentVolume of the backup: %w", err)
	}
	claim := pv.Spec.ClaimRef
	if claim == nil {
		return output, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), poll.CallTimeout)
	defer cancel()
	configs, err := listResults(ctx, a.api, input.Restore, claim.Namespace, claim.Name)
	if err != nil {
		return nil, err
	}
	for i := range configs {
		result, err := decodeResult(&configs[i], input.Restore)
		if err != nil {
			return nil, err
		}
		if result.DataMover == identity.DataMover {
			a.log.Infof("PersistentVolume %s: the data of its claim %s/%s is in the backup: not restored as it was", pv.Name, claim.Namespace, claim.Name)
			return output.WithoutRestore(), nil
		}
	}
	return output, nil
}
