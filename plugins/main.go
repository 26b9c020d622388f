// Command velero-plugin-blockmover is the plugin of Blockmover for Velero. Velero starts it
// and calls its item actions over gRPC.
package main

import (
	"fmt"
	"slices"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	veleroclient "github.com/vmware-tanzu/velero/pkg/client"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/plugins/backup"
	"github.com/blockmover/blockmover/plugins/delete"
	"github.com/blockmover/blockmover/plugins/restore"
)

func main() {
	factory := veleroclient.NewFactory("velero-plugin-blockmover", veleroclient.VeleroConfig{})
	server := framework.NewServer()
	// Velero passes the flags of its server to its plugins.
	server.BindFlags(pflag.CommandLine)
	factory.BindFlags(pflag.CommandLine)
	features := pflag.CommandLine.StringSlice("features", nil, "features of Velero's server")
	config := server.GetConfig()

	action := func(build func(logrus.FieldLogger, client.Client) any) common.HandlerInitializer {
		return func(log logrus.FieldLogger) (any, error) {
			factory.SetClientQPS(config.ClientQPS)
			factory.SetClientBurst(config.ClientBurst)
			api, err := factory.KubebuilderClient()
			if err != nil {
				return nil, fmt.Errorf("connect to the API server: %w", err)
			}
			return build(log, api), nil
		}
	}
	server.
		RegisterBackupItemActionV2(backup.PVCActionName, action(func(log logrus.FieldLogger, api client.Client) any {
			return backup.NewPVCAction(log, api, config.GlobalBackupVolumePoliciesConfigMap, slices.Contains(*features, velerov1.CSIFeatureFlag))
		})).
		RegisterBackupItemActionV2(backup.GroupSnapshotActionName, action(func(log logrus.FieldLogger, api client.Client) any {
			return backup.NewGroupSnapshotAction(log, api)
		})).
		RegisterBackupItemActionV2(backup.VMActionName, action(func(log logrus.FieldLogger, api client.Client) any {
			return backup.NewVMAction(log, api, config.GlobalBackupVolumePoliciesConfigMap)
		})).
		RegisterRestoreItemActionV2(restore.VMActionName, action(func(log logrus.FieldLogger, api client.Client) any {
			return restore.NewVMAction(log, api)
		})).
		RegisterRestoreItemActionV2(restore.VMPodActionName, action(func(log logrus.FieldLogger, _ client.Client) any {
			return restore.NewVMPodAction(log)
		})).
		RegisterRestoreItemActionV2(restore.PVCActionName, action(func(log logrus.FieldLogger, api client.Client) any {
			return restore.NewPVCAction(log, api)
		})).
		RegisterRestoreItemActionV2(restore.PVActionName, action(func(log logrus.FieldLogger, api client.Client) any {
			return restore.NewPVAction(log, api)
		})).
		RegisterRestoreItemActionV2(restore.GroupSnapshotActionName, action(func(log logrus.FieldLogger, _ client.Client) any {
			return restore.NewGroupSnapshotAction(log)
		})).
		RegisterDeleteItemAction(delete.DataUploadActionName, action(func(log logrus.FieldLogger, api client.Client) any {
			return delete.NewDataUploadAction(log, api)
		})).
		Serve()
}
