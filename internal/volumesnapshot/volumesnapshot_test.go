package volumesnapshot

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/blockmover/blockmover/internal/identity"
)

func newFake(t *testing.T, objects ...client.Object) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, snapshotv1.AddToScheme(scheme))
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
}

var (
	source = Source{Namespace: "app", PVC: "data", PVCUID: "pvc-uid", Class: "snap", BackupUID: "backup-uid"}
	vsKey  = client.ObjectKey{Namespace: "app", Name: identity.VolumeSnapshotName("backup-uid", "pvc-uid")}
)

func TestEnsureIsIdempotent(t *testing.T) {
	c := newFake(t)
	first, err := Ensure(t.Context(), c, source)
	require.NoError(t, err)
	require.Equal(t, vsKey, client.ObjectKeyFromObject(first))
	second, err := Ensure(t.Context(), c, source)
	require.NoError(t, err)
	require.Equal(t, first.UID, second.UID)
	require.Equal(t, first.ResourceVersion, second.ResourceVersion)
}

func TestEnsureDoesNotAdopt(t *testing.T) {
	now := metav1.Now()
	other := "other"
	ours := func() *snapshotv1.VolumeSnapshot {
		pvc := "data"
		return &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: vsKey.Namespace, Name: vsKey.Name, Labels: map[string]string{identity.LabelBackupUID: "backup-uid"}},
			Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &pvc}},
		}
	}
	tests := map[string]struct {
		change func(vs *snapshotv1.VolumeSnapshot)
		want   string
	}{
		"being deleted": {func(vs *snapshotv1.VolumeSnapshot) {
			vs.DeletionTimestamp, vs.Finalizers = &now, []string{"example.com/wait"}
		}, "it is being deleted"},
		"other backup": {func(vs *snapshotv1.VolumeSnapshot) { vs.Labels = nil }, `is "", want "backup-uid"`},
		"other PVC":    {func(vs *snapshotv1.VolumeSnapshot) { vs.Spec.Source.PersistentVolumeClaimName = &other }, "not a snapshot of PVC data"},
		"of a content": {func(vs *snapshotv1.VolumeSnapshot) { vs.Spec.Source.PersistentVolumeClaimName = nil }, "not a snapshot of PVC data"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			vs := ours()
			test.change(vs)
			_, err := Ensure(t.Context(), newFake(t, vs), source)
			require.ErrorContains(t, err, test.want)
		})
	}
}

// pair is a VolumeSnapshot and its content in some state.
func pair(change func(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent)) []client.Object {
	name, handle := "content-1", "handle-1"
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: vsKey.Namespace, Name: vsKey.Name},
		Status:     &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &name},
	}
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       snapshotv1.VolumeSnapshotContentSpec{Driver: "test.csi", DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
		Status:     &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle},
	}
	change(vs, content)
	return []client.Object{vs, content}
}

func TestWaitForHandle(t *testing.T) {
	c := newFake(t, pair(func(*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotContent) {})...)
	content, err := WaitForHandle(t.Context(), c, vsKey)
	require.NoError(t, err)
	require.Equal(t, "handle-1", *content.Status.SnapshotHandle, "whether it is ready to use does not matter")
}

func TestWaitForHandleThatComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFake(t, pair(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) { content.Status = nil })...)
		go func() {
			time.Sleep(150 * time.Millisecond)
			handle := "late"
			content := &snapshotv1.VolumeSnapshotContent{}
			if c.Get(t.Context(), client.ObjectKey{Name: "content-1"}, content) != nil {
				return
			}
			content.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle}
			_ = c.Update(t.Context(), content)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		content, err := WaitForHandle(ctx, c, vsKey)
		require.NoError(t, err)
		require.Equal(t, "late", *content.Status.SnapshotHandle)
	})
}

// When the wait times out, the error says what was missing last.
func TestWaitForHandleTimesOut(t *testing.T) {
	message := "pool is full"
	failure := &snapshotv1.VolumeSnapshotError{Message: &message}
	tests := map[string]struct {
		change func(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent)
		want   string
	}{
		"nobody answers": {func(vs *snapshotv1.VolumeSnapshot, _ *snapshotv1.VolumeSnapshotContent) { vs.Status = nil }, "is the snapshot controller running?"},
		"not bound": {func(vs *snapshotv1.VolumeSnapshot, _ *snapshotv1.VolumeSnapshotContent) {
			vs.Status.BoundVolumeSnapshotContentName = nil
		}, "not bound"},
		"controller fails": {func(vs *snapshotv1.VolumeSnapshot, _ *snapshotv1.VolumeSnapshotContent) {
			vs.Status = &snapshotv1.VolumeSnapshotStatus{Error: failure}
		}, message},
		"content is missing": {func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) { content.Name = "other" }, `"content-1" not found`},
		"sidecar is missing": {func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) { content.Status = nil }, "sidecar of driver test.csi"},
		"storage fails": {func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
			content.Status = &snapshotv1.VolumeSnapshotContentStatus{Error: failure}
		}, "VolumeSnapshotContent content-1: pool is full"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
				defer cancel()
				_, err := WaitForHandle(ctx, newFake(t, pair(test.change)...), vsKey)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, test.want)
				require.NotErrorIs(t, err, ErrExhausted)
			})
		})
	}
}

// TestWaitForHandleWhenCallsFail: the error keeps what the storage said when calls
// fail after that, such as those that the client's rate limiter refuses shortly before
// the end.
func TestWaitForHandleWhenCallsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		message := "pool is full"
		c := newFake(t, pair(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
			content.Status = &snapshotv1.VolumeSnapshotContentStatus{Error: &snapshotv1.VolumeSnapshotError{Message: &message}}
		})...)
		calls := 0
		failing := interceptor.NewClient(c, interceptor.Funcs{
			Get: func(ctx context.Context, inner client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
				if calls++; calls > 2 {
					return errors.New("client rate limiter Wait returned an error: rate: Wait(n=1) would exceed context deadline")
				}
				return inner.Get(ctx, key, obj, opts...)
			},
		})
		ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
		defer cancel()
		_, err := WaitForHandle(ctx, failing, vsKey)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "VolumeSnapshotContent content-1: pool is full; then: get VolumeSnapshot "+vsKey.String()+": client rate limiter")
	})
}

func TestWaitForHandleExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		message := `failed to take snapshot of the volume v1: "rpc error: code = ResourceExhausted desc = the maximum is 3"`
		c := newFake(t, pair(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
			content.Status = &snapshotv1.VolumeSnapshotContentStatus{Error: &snapshotv1.VolumeSnapshotError{Message: &message}}
		})...)
		ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
		defer cancel()
		_, err := WaitForHandle(ctx, c, vsKey)
		require.ErrorIs(t, err, ErrExhausted)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "the maximum is 3")
	})
}

func TestWaitForHandleOfDeleted(t *testing.T) {
	now := metav1.Now()
	for name, c := range map[string]client.Client{
		"gone": newFake(t),
		"being deleted": newFake(t, pair(func(vs *snapshotv1.VolumeSnapshot, _ *snapshotv1.VolumeSnapshotContent) {
			vs.DeletionTimestamp, vs.Finalizers = &now, []string{"example.com/wait"}
		})...),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := WaitForHandle(t.Context(), c, vsKey)
			require.ErrorContains(t, err, "it was deleted meanwhile")
		})
	}
}

func TestRelease(t *testing.T) {
	c := newFake(t, pair(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
		content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
	})...)
	left, err := Release(t.Context(), c, c, vsKey)
	require.NoError(t, err)
	require.Equal(t, []string{"VolumeSnapshot " + vsKey.String()}, left)
	left, err = Release(t.Context(), c, c, vsKey)
	require.NoError(t, err)
	require.Empty(t, left, "the second time there is nothing to do")
	require.True(t, client.IgnoreNotFound(c.Get(t.Context(), vsKey, &snapshotv1.VolumeSnapshot{})) == nil)
	content := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, c.Get(t.Context(), client.ObjectKey{Name: "content-1"}, content))
	require.Equal(t, snapshotv1.VolumeSnapshotContentDelete, content.Spec.DeletionPolicy, "or the snapshot stays in the storage")
}

func TestReleaseLeavesToOperations(t *testing.T) {
	c := newFake(t, pair(func(_ *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
		content.Labels = map[string]string{identity.LabelOperation: "op-uid"}
	})...)
	left, err := Release(t.Context(), c, c, vsKey)
	require.NoError(t, err)
	require.Equal(t, []string{"VolumeSnapshot " + vsKey.String()}, left)
	require.NoError(t, c.Get(t.Context(), vsKey, &snapshotv1.VolumeSnapshot{}))
}
