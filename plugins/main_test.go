package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"github.com/vmware-tanzu/velero/pkg/plugin/clientmgmt/process"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework/common"
)

// TestDiscovery lets Velero's own code discover the plugin as its server does, with the flags
// of the server, some of which the plugin does not know.
func TestDiscovery(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the plugin")
	}
	binary := filepath.Join(t.TempDir(), "velero-plugin-blockmover")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, string(out))

	args := os.Args
	t.Cleanup(func() { os.Args = args })
	os.Args = []string{
		binary, "server", "--features=EnableCSI", "--namespace", "backup", "--uploader-type=kopia",
		"--global-backup-volume-policies-configmap=everywhere", "--flag-of-the-future=yes",
	}
	log, _ := logrustest.NewNullLogger()
	// Velero lists the actions of its own command, which is the first argument, and of every
	// command in a directory.
	registry := process.NewRegistry(t.TempDir(), log, logrus.InfoLevel)
	require.NoError(t, registry.DiscoverPlugins())
	want := map[common.PluginKind][]string{
		common.PluginKindBackupItemActionV2:  {"blockmover.io/pvc-backup", "blockmover.io/virtualmachine-backup", "blockmover.io/volumegroupsnapshot-backup"},
		common.PluginKindRestoreItemActionV2: {"blockmover.io/pv-restore", "blockmover.io/pvc-restore", "blockmover.io/virtualmachine-pod-restore", "blockmover.io/virtualmachine-restore", "blockmover.io/volumegroupsnapshot-restore"},
		common.PluginKindDeleteItemAction:    {"blockmover.io/dataupload-delete"},
	}
	for _, kind := range []common.PluginKind{
		common.PluginKindObjectStore, common.PluginKindVolumeSnapshotter, common.PluginKindItemBlockAction,
		common.PluginKindBackupItemAction, common.PluginKindBackupItemActionV2,
		common.PluginKindRestoreItemAction, common.PluginKindRestoreItemActionV2, common.PluginKindDeleteItemAction,
	} {
		var got []string
		for _, id := range registry.List(kind) {
			require.Equal(t, framework.PluginIdentifier{Command: binary, Kind: kind, Name: id.Name}, id)
			got = append(got, id.Name)
		}
		require.ElementsMatch(t, want[kind], got, kind)
	}
}
