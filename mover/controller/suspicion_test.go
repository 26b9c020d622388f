package controller

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
)

// TestSuspect: only complete increments of the same volume are compared with.
func TestSuspect(t *testing.T) {
	upload := func(n int, kind, changed, random string) *velerov2alpha1.DataUpload {
		du := &velerov2alpha1.DataUpload{ObjectMeta: metav1.ObjectMeta{
			Namespace: veleroNamespace, Name: fmt.Sprintf("u%d", n), UID: "uid", CreationTimestamp: metav1.NewTime(time.Unix(int64(n), 0)),
		}}
		du.Spec.DataMover, du.Spec.SourceNamespace, du.Spec.SourcePVC = identity.DataMover, appNamespace, "data"
		du.Status.Phase = velerov2alpha1.DataUploadPhaseCompleted
		du.Status.DataMoverResult = &map[string]string{
			"kind": kind, "volumeSize": "1000", "bytesRead": changed, "bytesUploaded": changed, "incompressibleBytes": random,
		}
		return du
	}
	for name, tc := range map[string]struct {
		edit func(n int, du *velerov2alpha1.DataUpload)
		want bool
	}{
		"quiet before":      {func(int, *velerov2alpha1.DataUpload) {}, true},
		"of another volume": {func(_ int, du *velerov2alpha1.DataUpload) { du.Spec.SourcePVC = "other" }, false},
		"failed":            {func(_ int, du *velerov2alpha1.DataUpload) { du.Status.Phase = velerov2alpha1.DataUploadPhaseFailed }, false},
		"full":              {func(_ int, du *velerov2alpha1.DataUpload) { (*du.Status.DataMoverResult)["kind"] = "Full" }, false},
		"without a result":  {func(_ int, du *velerov2alpha1.DataUpload) { du.Status.DataMoverResult = nil }, false},
	} {
		var objects []client.Object
		for n := range 4 {
			du := upload(n, "Incremental", "10", "1")
			tc.edit(n, du)
			du.UID = "before"
			objects = append(objects, du)
		}
		scheme := runtime.NewScheme()
		require.NoError(t, AddToScheme(scheme))
		u := &uploads{surroundings: surroundings{client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()}}
		op := operation.Of(upload(9, "Incremental", "500", "499"))
		suspicion, err := u.suspect(t.Context(), op)
		require.NoError(t, err)
		require.Equal(t, tc.want, suspicion != "", name)
		(*op.Upload.Status.DataMoverResult)[resultSuspicion] = suspicion
		require.Equal(t, suspicion, suspicionOf(op))
		op.Upload.Status.DataMoverResult = &map[string]string{"kind": "Full", "volumeSize": "1000", "bytesRead": "500", "bytesUploaded": "500", "incompressibleBytes": "500"}
		suspicion, err = u.suspect(t.Context(), op)
		require.NoError(t, err)
		require.Empty(t, suspicion, "a full image has everything")
	}
}
