package restore

import (
	"testing"

	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestGroupSnapshotsAreNotRestored(t *testing.T) {
	log, _ := logrustest.NewNullLogger()
	action := NewGroupSnapshotAction(log)
	for _, kind := range []string{"VolumeGroupSnapshot", "VolumeGroupSnapshotContent"} {
		item := &unstructured.Unstructured{Object: map[string]any{"kind": kind, "metadata": map[string]any{"name": "nightly"}}}
		output, err := action.Execute(&velero.RestoreItemActionExecuteInput{Item: item})
		require.NoError(t, err)
		require.True(t, output.SkipRestore)
	}
	require.Equal(t, "blockmover.io/volumegroupsnapshot-restore", action.Name())
	selector, err := action.AppliesTo()
	require.NoError(t, err)
	require.Equal(t, []string{
		"volumegroupsnapshots.groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents.groupsnapshot.storage.k8s.io",
	}, selector.IncludedResources)
	_, err = action.Progress("", nil)
	require.Error(t, err)
	require.Error(t, action.Cancel("", nil))
	ready, err := action.AreAdditionalItemsReady(nil, nil)
	require.NoError(t, err)
	require.True(t, ready)
}
