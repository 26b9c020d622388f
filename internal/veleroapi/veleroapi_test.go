package veleroapi

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// object has the new fields. The fake API server keeps what its scheme has no types for.
func object(apiVersion, kind, name string, content map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: content}
	u.SetAPIVersion(apiVersion)
	u.SetKind(kind)
	u.SetNamespace("velero")
	u.SetName(name)
	return u
}

func backup(spec map[string]any, schedule, annotation string) *unstructured.Unstructured {
	b := object("velero.io/v1", "Backup", "nightly", map[string]any{"spec": spec})
	if schedule != "" {
		b.SetLabels(map[string]string{"velero.io/schedule-name": schedule})
	}
	if annotation != "" {
		b.SetAnnotations(map[string]string{"blockmover.io/backup-type": annotation})
	}
	return b
}

func TestGetBackup(t *testing.T) {
	full := map[string]any{"backupType": "Full"}
	schedule := object("velero.io/v1", "Schedule", "weekly", map[string]any{"spec": map[string]any{"template": map[string]any{"backupType": "fULL"}}})
	for name, test := range map[string]struct {
		backup *unstructured.Unstructured
		want   string
	}{
		"nothing":                         {backup(map[string]any{}, "", ""), ""},
		"field":                           {backup(full, "", ""), "Full"},
		"annotation":                      {backup(map[string]any{}, "", "full"), ""},
		"both":                            {backup(full, "", "incremental"), "Full"},
		"field of the Schedule":           {backup(map[string]any{}, "weekly", "incremental"), "fULL"},
		"field before the Schedule's":     {backup(map[string]any{"backupType": "Incremental"}, "weekly", ""), "Incremental"},
		"Schedule is gone":                {backup(map[string]any{}, "gone", ""), ""},
		"no string, and no silent answer": {backup(map[string]any{"backupType": int64(7)}, "", ""), "7"},
	} {
		t.Run(name, func(t *testing.T) {
			c := fake.NewClientBuilder().WithScheme(runtime.NewScheme()).WithObjects(test.backup, schedule).Build()
			got, err := GetBackup(t.Context(), c, client.ObjectKeyFromObject(test.backup))
			require.NoError(t, err)
			require.Equal(t, Backup{Type: test.want, Annotations: test.backup.GetAnnotations()}, got)
		})
	}
}

func TestGetBackupErrors(t *testing.T) {
	broken := errors.New("connection refused")
	c := fake.NewClientBuilder().WithScheme(runtime.NewScheme()).WithObjects(backup(map[string]any{}, "weekly", "")).
		WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
				if key.Name == "weekly" {
					return broken
				}
				return c.Get(ctx, key, o, opts...)
			},
		}).Build()
	_, err := GetBackup(t.Context(), c, client.ObjectKey{Namespace: "velero", Name: "other"})
	require.True(t, apierrors.IsNotFound(err), err)
	_, err = GetBackup(t.Context(), c, client.ObjectKey{Namespace: "velero", Name: "nightly"})
	require.ErrorIs(t, err, broken)
}

func TestDataUpload(t *testing.T) {
	du := func() *velerov2alpha1.DataUpload {
		return &velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "du"},
			Spec:       velerov2alpha1.DataUploadSpec{SourcePVC: "data", DataMoverConfig: map[string]string{"parentSnapshot": "none"}},
		}
	}
	typed := runtime.NewScheme()
	require.NoError(t, velerov2alpha1.AddToScheme(typed))
	for name, test := range map[string]struct {
		scheme *runtime.Scheme
		want   string
	}{
		"the CRD has the field":     {runtime.NewScheme(), "none"},
		"the CRD has not the field": {typed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := fake.NewClientBuilder().WithScheme(test.scheme).Build()
			created := du()
			require.NoError(t, CreateDataUpload(t.Context(), c, created, "none"))
			require.NotEmpty(t, created.ResourceVersion)
			require.Equal(t, du().Spec, created.Spec)
			got, err := ParentSnapshot(t.Context(), c, client.ObjectKeyFromObject(created))
			require.NoError(t, err)
			require.Equal(t, test.want, got)
			require.True(t, apierrors.IsAlreadyExists(CreateDataUpload(t.Context(), c, du(), "none")))
		})
	}
	_, err := ParentSnapshot(t.Context(), fake.NewClientBuilder().WithScheme(runtime.NewScheme()).Build(), client.ObjectKey{Namespace: "velero", Name: "gone"})
	require.True(t, apierrors.IsNotFound(err), err)
}
