package controller

import (
	"context"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
)

// withoutSnapshots is a client of a cluster that has no CRDs of snapshots.
func withoutSnapshots(c client.WithWatch) client.WithWatch {
	missing := func(of any) error {
		switch of.(type) {
		case *snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotList, *snapshotv1.VolumeSnapshotContent, *snapshotv1.VolumeSnapshotContentList:
			return &meta.NoKindMatchError{GroupKind: schema.GroupKind{Group: snapshotv1.GroupName, Kind: "VolumeSnapshot"}}
		}
		return nil
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if err := missing(obj); err != nil {
				return err
			}
			return c.Get(ctx, key, obj, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if err := missing(list); err != nil {
				return err
			}
			return c.List(ctx, list, opts...)
		},
	})
}

// TestClusterWithoutSnapshots: it restores, and the sweep cleans up. An upload says what is
// missing, and begins when it is there.
func TestClusterWithoutSnapshots(t *testing.T) {
	w := downloadWorld(t)
	bare := withoutSnapshots(w.c)
	w.sweep.reader, w.sweep.rehomer, w.sweep.groups = bare, rehome.New(bare, bare, veleroNamespace), groupsnapshot.New(bare, bare)
	require.Equal(t, phase.Completed, w.run(w.downs, "dd").Status.Phase)
	_, err := w.sweep.sweep(w.ctx)
	require.NoError(t, err)
	requireRestored(t, w)

	w = uploadWorld(t)
	*w.mapper = *meta.NewDefaultRESTMapper(nil)
	op := w.drive(w.uploads, "du", time.Minute)
	require.Equal(t, phase.New, op.Status.Phase)
	require.True(t, strings.HasPrefix(op.Status.Message, "the cluster does not serve VolumeSnapshots"), op.Status.Message)
	w.mapper.Add(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), meta.RESTScopeNamespace)
	require.Equal(t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
}

// TestCacheKnowsSnapshots: the options of the cache name kinds that the cluster may not serve.
func TestCacheKnowsSnapshots(t *testing.T) {
	served := meta.NewDefaultRESTMapper(nil)
	served.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	mapper := withSnapshots(served)
	for gvk, scope := range map[schema.GroupVersionKind]meta.RESTScope{
		corev1.SchemeGroupVersion.WithKind("Pod"):                       meta.RESTScopeNamespace,
		snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"):        meta.RESTScopeNamespace,
		snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshotContent"): meta.RESTScopeRoot,
	} {
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		require.NoError(t, err)
		require.Equal(t, scope, mapping.Scope, gvk)
	}
	_, err := mapper.RESTMapping(schema.GroupKind{Kind: "Other"}, "v1")
	require.True(t, meta.IsNoMatchError(err))
}
