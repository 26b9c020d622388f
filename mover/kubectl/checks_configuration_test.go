package kubectl

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

func TestCheckConfiguration(t *testing.T) {
	keep := corev1.PersistentVolumeReclaimRetain
	check := func(document string) []Finding {
		c := newCall(t,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "blockmover-config"}, Data: map[string]string{"config.yaml": document}},
			&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}},
			&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "keeps"}, ReclaimPolicy: &keep},
		)
		fake, ok := c.Client.(client.WithWatch)
		require.True(t, ok)
		c.Client = interceptor.NewClient(fake, interceptor.Funcs{
			Create: func(ctx context.Context, under client.WithWatch, o client.Object, options ...client.CreateOption) error {
				review, ok := o.(*authorizationv1.SubjectAccessReview)
				if !ok {
					return under.Create(ctx, o, options...)
				}
				require.Equal(t, "system:serviceaccount:velero:blockmover-manager", review.Spec.User)
				require.Empty(t, review.Spec.ResourceAttributes.Namespace)
				review.Status.Allowed = review.Spec.ResourceAttributes.Name == "granted"
				return nil
			},
		})
		found, err := c.checkConfiguration(t.Context())
		require.NoError(t, err)
		return found
	}
	for document, want := range map[string]struct {
		verdict Verdict
		what    string
	}{
		"attempts: 2":                                {Fine, "it can be read"},
		"attempts: many":                             {Broken, "attempts"},
		"unknown: 1":                                 {Broken, `unknown field "unknown"`},
		"privilegedFsBackup: true":                   {Worse, "it has fields that have no meaning here: privilegedFsBackup"},
		"cachePVC: {storageClass: fast}":             {Fine, "it can be read"},
		"cachePVC: {storageClass: gone}":             {Worse, "cachePVC names it, and it does not exist"},
		"cachePVC: {storageClass: keeps}":            {Worse, "its reclaim policy is Retain, want Delete"},
		"restorePVC: {secretNames: [granted]}":       {Fine, "it can be read"},
		"restorePVC: {secretNames: [token]}":         {Broken, "it may not get secrets named token"},
		"backupPVC: {gold: {configMapNames: [kms]}}": {Broken, "it may not get configmaps named kms"},
	} {
		found := check(document)
		last := found[len(found)-1]
		require.Equal(t, want.verdict, last.Verdict, document)
		require.Contains(t, last.What, want.what, document)
	}
}
