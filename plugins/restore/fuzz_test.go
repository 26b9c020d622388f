package restore

import (
	"testing"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/fuzztest"
	"github.com/blockmover/blockmover/internal/identity"
)

// FuzzResult takes any text for the result of a DataUpload, which comes out of the backup. What is restored from is ours, and has an image.
func FuzzResult(f *testing.F) {
	f.Add(`{"backupStorageLocation":"default","datamover":"blockmover","snapshotID":"k1","sourceNamespace":"app","dataMoverResult":{"volumeHandle":"v"}}`)
	f.Add(`{"datamover":"velero","snapshotID":"k1"}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, text string) {
		restore := &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
		config := &corev1.ConfigMap{Data: map[string]string{"u": text}}
		fuzztest.Document(t, len(text), func() {
			result, err := decodeResult(config, restore)
			if err == nil && checkResult(result, "velero/du") == nil {
				require.NotEmpty(t, result.SnapshotID)
				require.Equal(t, identity.DataMover, result.DataMover)
			}
		})
	})
}
