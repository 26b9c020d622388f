package kube

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

var key = client.ObjectKey{Namespace: "velero", Name: "a"}

func pod(uid string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, UID: types.UID(uid)}}
}

func TestFind(t *testing.T) {
	broken := errors.New("no route to host")
	var fault error
	c := fake.NewClientBuilder().WithObjects(pod("1")).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, o ...client.GetOption) error {
			if fault != nil {
				return fault
			}
			return c.Get(ctx, key, obj, o...)
		},
	}).Build()

	found, err := Find(t.Context(), c, key, &corev1.Pod{})
	require.NoError(t, err)
	require.Equal(t, types.UID("1"), found.UID)

	found, err = Find(t.Context(), c, client.ObjectKey{Name: "b"}, &corev1.Pod{})
	require.NoError(t, err)
	require.Nil(t, found)

	fault = broken
	_, err = Find(t.Context(), c, key, &corev1.Pod{})
	require.ErrorIs(t, err, broken)
	require.EqualError(t, err, "get Pod velero/a: no route to host")
}

func TestFindNamesTheKindOfUnstructuredObjects(t *testing.T) {
	c := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New("no")
		},
	}).Build()
	object := &unstructured.Unstructured{}
	object.SetKind("VolumeGroupSnapshot")
	_, err := Find(t.Context(), c, client.ObjectKey{Name: "g"}, object)
	require.EqualError(t, err, "get VolumeGroupSnapshot g: no")
}

func TestCreateOrAdopt(t *testing.T) {
	accept := func(*corev1.Pod) error { return nil }
	c := fake.NewClientBuilder().Build()
	created, err := CreateOrAdopt(t.Context(), c, pod("1"), accept)
	require.NoError(t, err)
	require.Equal(t, "a", created.Name)

	adopted, err := CreateOrAdopt(t.Context(), c, pod("2"), accept)
	require.NoError(t, err)
	require.Equal(t, types.UID("1"), adopted.UID)

	foreign := errors.New("it belongs to somebody else")
	_, err = CreateOrAdopt(t.Context(), c, pod("2"), func(*corev1.Pod) error { return foreign })
	require.ErrorIs(t, err, foreign)
	require.ErrorContains(t, err, "adopt Pod velero/a")
}

func TestCreateOrAdoptReportsTheErrorOfTheCreation(t *testing.T) {
	refused := errors.New("denied by a webhook")
	c := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return refused },
	}).Build()
	_, err := CreateOrAdopt(t.Context(), c, pod("1"), func(*corev1.Pod) error { return nil })
	require.ErrorIs(t, err, refused)
	require.EqualError(t, err, "create Pod velero/a: denied by a webhook")
}

func TestDelete(t *testing.T) {
	var preconditions []*metav1.Preconditions
	c := fake.NewClientBuilder().WithObjects(pod("1")).WithInterceptorFuncs(interceptor.Funcs{
		Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
			o := client.DeleteOptions{}
			o.ApplyOptions(options)
			preconditions = append(preconditions, o.Preconditions)
			return c.Delete(ctx, object, options...)
		},
	}).Build()
	require.NoError(t, Delete(t.Context(), c, pod("1")))
	require.NoError(t, Delete(t.Context(), c, pod("1")), "it is gone")
	uid := types.UID("1")
	require.Equal(t, []*metav1.Preconditions{{UID: &uid}, {UID: &uid}}, preconditions)
	found, err := Find(t.Context(), c, key, &corev1.Pod{})
	require.NoError(t, err)
	require.Nil(t, found)

	going := pod("3")
	going.DeletionTimestamp = &metav1.Time{}
	require.NoError(t, Delete(t.Context(), c, going))
	require.Len(t, preconditions, 2, "what is being deleted is left alone")
}

func TestEnsure(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	require.NoError(t, Ensure(t.Context(), c, pod("1")))
	require.NoError(t, Ensure(t.Context(), c, pod("2")), "it exists")
	found, err := Find(t.Context(), c, key, &corev1.Pod{})
	require.NoError(t, err)
	require.Equal(t, types.UID("1"), found.UID)

	broken := errors.New("no route to host")
	c = fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return broken },
	}).Build()
	err = Ensure(t.Context(), c, pod("1"))
	require.ErrorIs(t, err, broken)
	require.EqualError(t, err, "create Pod velero/a: no route to host")
}

func TestSetLabelAndAnnotation(t *testing.T) {
	p := pod("1")
	SetLabel(p, "a", "1")
	SetLabel(p, "b", "2")
	SetAnnotation(p, "c", "3")
	require.Equal(t, map[string]string{"a": "1", "b": "2"}, p.Labels)
	require.Equal(t, map[string]string{"c": "3"}, p.Annotations)
}

// TestPaged lists three pages.
func TestPaged(t *testing.T) {
	var asked []string
	c := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		List: func(_ context.Context, _ client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			o := client.ListOptions{}
			o.ApplyOptions(options)
			asked = append(asked, o.Continue)
			require.Equal(t, "velero", o.Namespace)
			require.NotZero(t, o.Limit)
			pods, ok := list.(*corev1.PodList)
			require.True(t, ok)
			require.Empty(t, pods.Items)
			next := map[string]string{"": "b", "b": "c", "c": ""}
			pods.Items = []corev1.Pod{*pod("uid" + o.Continue)}
			pods.Continue = next[o.Continue]
			return nil
		},
	}).Build()
	pods := &corev1.PodList{}
	require.NoError(t, Paged(c).List(t.Context(), pods, client.InNamespace("velero")))
	require.Equal(t, []string{"", "b", "c"}, asked)
	var uids []string
	for _, p := range pods.Items {
		uids = append(uids, string(p.UID))
	}
	require.Equal(t, []string{"uid", "uidb", "uidc"}, uids)
}
