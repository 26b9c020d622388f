package exposer_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/mover/exposer"
)

func token(namespace, value string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "token", Labels: map[string]string{"velero.io/plugin-config": ""}},
		Data:       map[string][]byte{"key": []byte(value)}, Type: corev1.SecretTypeOpaque,
	}
}

func copier(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) (*exposer.Exposer, func(name string) *corev1.Secret) {
	t.Helper()
	c := fake.NewClientBuilder().WithObjects(objects...).WithInterceptorFuncs(funcs).Build()
	return &exposer.Exposer{Client: c, Reader: c, Namespace: "velero"}, func(name string) *corev1.Secret {
		s := &corev1.Secret{}
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: name}, s); apierrors.IsNotFound(err) {
			return nil
		}
		return s
	}
}

func TestCopiesOf(t *testing.T) {
	require.Empty(t, exposer.CopiesOf(nil, nil))
	one := exposer.CopiesOf([]string{"b", "a", "b"}, []string{"z"})
	require.EqualValues(t, "ConfigMap/z,Secret/a,Secret/b", one)
	require.Equal(t, one, one.With(""))
	require.EqualValues(t, "ConfigMap/z,Secret/a,Secret/b,Secret/c", exposer.CopiesOf([]string{"c"}, nil).With(one))
}

// Operations of one namespace share a copy, and the last of them deletes it.
func TestCopiesAreShared(t *testing.T) {
	second := identity.Operation{Kind: "DataDownload", Namespace: "velero", Name: "dd", UID: "uid-2"}
	kms := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "kms"}, Data: map[string]string{"a": "b"}, BinaryData: map[string][]byte{"c": {1}}}
	e, get := copier(t, interceptor.Funcs{}, token("shop", "1"), kms)
	names := exposer.CopiesOf([]string{"token"}, []string{"kms"})
	ensure := func(o identity.Operation) {
		waiting, err := e.EnsureCopies(t.Context(), o, "shop", names)
		require.NoError(t, err)
		require.Empty(t, waiting)
	}
	ensure(op)
	ensure(op)
	found := get("token")
	require.Equal(t, map[string]string{"blockmover.io/copy": "true", "velero.io/exclude-from-backup": "true"}, found.Labels, "labels of a tenant stay behind")
	require.Equal(t, "shop/token", found.Annotations["blockmover.io/copy-of"])
	require.Equal(t, "1", string(found.Data["key"]))
	require.Len(t, found.OwnerReferences, 1)
	copied := &corev1.ConfigMap{}
	require.NoError(t, e.Reader.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: "kms"}, copied))
	require.Equal(t, kms.Data, copied.Data)
	require.Equal(t, kms.BinaryData, copied.BinaryData)

	original := &corev1.Secret{}
	require.NoError(t, e.Reader.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "token"}, original))
	original.Data["key"] = []byte("2")
	require.NoError(t, e.Client.Update(t.Context(), original))
	ensure(second)
	require.Equal(t, "2", string(get("token").Data["key"]))
	require.Len(t, get("token").OwnerReferences, 2)

	require.NoError(t, e.ReleaseCopies(t.Context(), op, names))
	require.NoError(t, e.ReleaseCopies(t.Context(), op, names))
	require.EqualValues(t, "uid-2", get("token").OwnerReferences[0].UID)
	require.NoError(t, e.ReleaseCopies(t.Context(), second, names))
	require.Nil(t, get("token"))
	require.NoError(t, e.ReleaseCopies(t.Context(), second, names))
}

func TestCopiesRefuse(t *testing.T) {
	names := exposer.CopiesOf([]string{"token"}, nil)
	ensure := func(e *exposer.Exposer, namespace string) (string, error) {
		return e.EnsureCopies(t.Context(), op, namespace, names)
	}
	t.Run("what is not ours stays", func(t *testing.T) {
		e, get := copier(t, interceptor.Funcs{}, token("shop", "tenant"), token("velero", "ours"))
		_, err := ensure(e, "shop")
		require.ErrorIs(t, err, phase.ErrBroken)
		require.ErrorContains(t, err, "Secret/token exists in namespace velero and is no copy of ours")
		require.NoError(t, e.ReleaseCopies(t.Context(), op, names))
		require.Equal(t, "ours", string(get("token").Data["key"]))
		waiting, err := ensure(e, "velero")
		require.NoError(t, err)
		require.Empty(t, waiting, "a volume of Velero's namespace has its Secrets there")
	})
	t.Run("an original that does not exist", func(t *testing.T) {
		e, _ := copier(t, interceptor.Funcs{})
		_, err := ensure(e, "shop")
		require.ErrorIs(t, err, exposer.ErrNoOriginal)
		require.ErrorContains(t, err, "there is no Secret/token in namespace shop")
	})
	t.Run("another namespace waits", func(t *testing.T) {
		e, get := copier(t, interceptor.Funcs{}, token("shop", "1"), token("bank", "2"))
		_, err := ensure(e, "shop")
		require.NoError(t, err)
		other := identity.Operation{Kind: "DataUpload", Namespace: "velero", Name: "du2", UID: "uid-2"}
		waiting, err := e.EnsureCopies(t.Context(), other, "bank", names)
		require.NoError(t, err)
		require.Contains(t, waiting, "is a copy of shop/token, which another operation needs")
		require.NoError(t, e.ReleaseCopies(t.Context(), other, names))
		require.Equal(t, "1", string(get("token").Data["key"]))
		require.NoError(t, e.ReleaseCopies(t.Context(), op, names))
		waiting, err = e.EnsureCopies(t.Context(), other, "bank", names)
		require.NoError(t, err)
		require.Empty(t, waiting)
		require.Equal(t, "2", string(get("token").Data["key"]))
	})
	t.Run("a right that is missing", func(t *testing.T) {
		for text, final := range map[string]bool{"no": true, "exceeded quota: secrets": false} {
			refused := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "token", errors.New(text))
			e, _ := copier(t, interceptor.Funcs{Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return refused }}, token("shop", "1"))
			_, err := ensure(e, "shop")
			require.True(t, apierrors.IsForbidden(err), err)
			require.Equal(t, final, errors.Is(err, phase.ErrBroken))
			if final {
				require.ErrorContains(t, err, "grant it with the component deploy/copies")
			}
		}
		refused := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "token", errors.New("no"))
		e, _ := copier(t, interceptor.Funcs{Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return refused
		}})
		require.NoError(t, e.ReleaseCopies(t.Context(), op, names), "an operation that was refused ends")
	})
}
