package kubevirt

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// FuzzObjects takes any object for one of KubeVirt's, whose versions differ, and which its user may write. A success has its evidence.
func FuzzObjects(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"b"},"status":{"type":"Full","checkpointName":"b-1","includedVolumes":[{"volumeName":"z"},{"volumeName":"a"}],
"conditions":[{"type":"Done","status":"True","reason":"Successfully completed VirtualMachineBackup"}]}}`))
	f.Add([]byte(`{"status":{"conditions":[{"type":"Failed","status":"True","message":"no space left on device"},7,null],"includedVolumes":{}}}`))
	f.Add([]byte(`{"spec":{"template":{"spec":{"domain":{"devices":{"disks":[{"name":"d"}]}},"volumes":[{"name":"d","persistentVolumeClaim":{"claimName":"c"}}]}}},
"status":{"latestCheckpoint":{"name":"c","volumes":[{"volumeName":"d"}]},"changedBlockTracking":{"state":"Enabled"}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		object := &unstructured.Unstructured{}
		if json.Unmarshal(text, &object.Object) != nil || object.Object == nil {
			return
		}
		// An accessor copies the list that it reads.
		fuzztest.Document(t, 16*len(text), func() {
			s := StateOf(object)
			require.True(t, slices.IsSorted(s.Volumes))
			if s.Stage == Succeeded {
				require.NotEmpty(t, s.Volumes)
				require.Contains(t, []string{Full, Incremental}, s.Type)
				require.True(t, strings.HasPrefix(s.Checkpoint, object.GetName()+"-"))
				require.True(t, IsOver(object))
			}
			require.True(t, slices.IsSorted(CheckpointOf(object).Volumes))
			_ = IsRedefining(object)
			_, _ = SourceOf(object)
			_, _, _ = Ready(object)
			for _, d := range Disks(object) {
				require.NotEmpty(t, d.Volume)
				require.NotEmpty(t, d.Claim)
			}
		})
	})
}
