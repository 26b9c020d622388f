package worker

import (
	"testing"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/task"
)

// A nil pointer in an interface would be closed. require.Nil does not see the difference.
func TestPodReturnsNilWithAnError(t *testing.T) {
	scheme := runtime.NewScheme()
	require.NoError(t, velerov1.AddToScheme(scheme))
	p := &pod{
		request: task.Request{
			Namespace: "velero", BackupRepository: "missing", Device: t.TempDir(),
			Backup: &task.Backup{DiskFile: &task.DiskFile{Instance: "vm", Backup: "b", Volume: "v"}, Metadata: &task.MetadataService{}},
		},
		client: fake.NewClientBuilder().WithScheme(scheme).Build(),
		log:    logr.Discard(),
	}
	dev, err := p.OpenReader(t.Context())
	require.ErrorContains(t, err, "KubeVirt has not written it")
	require.True(t, dev == nil)
	source, err := p.Source()
	require.ErrorContains(t, err, "address is missing")
	require.True(t, source == nil)
	store, err := p.OpenStore(t.Context())
	require.ErrorContains(t, err, "missing")
	require.True(t, store == nil)
}
