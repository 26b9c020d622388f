package kubectl

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCheckMovers(t *testing.T) {
	upload := func(name, mover string, phase velerov2alpha1.DataUploadPhase, age time.Duration) *velerov2alpha1.DataUpload {
		return &velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name, CreationTimestamp: metav1.NewTime(time.Now().Add(-age))},
			Spec:       velerov2alpha1.DataUploadSpec{DataMover: mover}, Status: velerov2alpha1.DataUploadStatus{Phase: phase},
		}
	}
	c := newCall(t,
		upload("misspelled", "blockmove", "", time.Hour),
		upload("young", "blockmove", "", time.Minute),
		upload("taken", "other", velerov2alpha1.DataUploadPhaseInProgress, time.Hour),
		upload("ours", "blockmover", velerov2alpha1.DataUploadPhaseNew, time.Hour),
		upload("velero", "velero", "", time.Hour), upload("default", "", "", time.Hour),
	)
	found, err := c.checkMovers(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "DataUpload velero/misspelled", found[0].Object)
	require.Equal(t, Worse, found[0].Verdict)
	require.Equal(t, "data mover blockmove has not taken it for 60m: is there one of that name? Ours is blockmover", found[0].What)
	require.Contains(t, found[0].Do, "patch dataupload misspelled")
}
