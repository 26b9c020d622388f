package rehome_test

import (
	"testing"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
)

// The whole way of a pair, under every fault, is tested in mover/controller;
// here is what the pair looks like.

var (
	operation = identity.Operation{Kind: "DataUpload", Namespace: "velero", Name: "du", UID: "op-uid"}
	origin    = rehome.Origin{Namespace: "app", VolumeSnapshot: "snap", PVC: "data"}
)

type fixture struct {
	vs      *snapshotv1.VolumeSnapshot
	content *snapshotv1.VolumeSnapshotContent
	pvc     *corev1.PersistentVolumeClaim
	pv      *corev1.PersistentVolume
	classes []client.Object
	// group is the content of the group, or nil in a cluster without groups.
	group *groupsnapshotv1.VolumeGroupSnapshotContent
}

// member is a member of a group: it has no class and no restore size
// (external-snapshotter#1271).
func member() fixture {
	name, handle, volume, ready := "content-1", "snapshot-1", "volume-1", true
	created := time.Date(2026, 3, 1, 12, 0, 0, 7, time.UTC).UnixNano()
	return fixture{
		vs: &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "snap"},
			Status:     &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &name, ReadyToUse: &ready},
		},
		content: &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{
				Name: name,
				Annotations: map[string]string{
					"groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle":      "group-1",
					"snapshot.storage.kubernetes.io/deletion-secret-name":         "secret",
					"snapshot.storage.kubernetes.io/deletion-secret-namespace":    "secrets",
					"snapshot.storage.kubernetes.io/volumesnapshot-being-deleted": "yes",
				},
				Labels: map[string]string{"snapshot.storage.kubernetes.io/managed-by": "node-1"},
			},
			Spec: snapshotv1.VolumeSnapshotContentSpec{
				Driver: "driver", DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
				Source: snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volume},
			},
			Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, CreationTime: &created, ReadyToUse: &ready},
		},
		pvc: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "data"},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-data"},
		},
		pv: &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-data"},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Gi")},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "driver", VolumeHandle: "volume-1"}},
			},
		},
		classes: []client.Object{
			&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Driver: "driver"},
			&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: "b", Labels: map[string]string{"velero.io/csi-volumesnapshot-class": "true"}}, Driver: "driver"},
			&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: "c", Annotations: map[string]string{"snapshot.storage.kubernetes.io/is-default-class": "true"}}, Driver: "other"},
		},
	}
}

// rehomer is a Rehomer and the API that it works with.
type rehomer struct {
	rehome.Rehomer
	api client.Client
}

func (f fixture) rehomer(t *testing.T) rehomer {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, snapshotv1.AddToScheme(scheme))
	require.NoError(t, corev1.AddToScheme(scheme))
	require.NoError(t, groupsnapshotv1.AddToScheme(scheme))
	objects := append(f.classes, f.vs, f.content, f.pvc, f.pv)
	mapper := meta.NewDefaultRESTMapper(nil)
	if f.group != nil {
		objects = append(objects, f.group)
		for _, kind := range []string{"VolumeGroupSnapshot", "VolumeGroupSnapshotContent"} {
			mapper.Add(groupsnapshotv1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
		}
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).
		WithStatusSubresource(&snapshotv1.VolumeSnapshotContent{}).WithObjects(objects...).Build()
	return rehomer{rehome.New(c, c, "velero"), c}
}

func TestRehomeMember(t *testing.T) {
	r := member().rehomer(t)
	pair, err := r.Ensure(t.Context(), operation, origin)
	require.NoError(t, err)
	require.Equal(t, rehome.Rehomed{
		Name: "blockmover-op-uid", Driver: "driver", VolumeHandle: "volume-1", SnapshotHandle: "snapshot-1",
		SnapshotTime: time.Date(2026, 3, 1, 12, 0, 0, 7, time.UTC), Size: 5 << 30, Capacity: 5 << 30, Secured: true,
		Waiting: "re-homed VolumeSnapshot velero/blockmover-op-uid is not ready to use yet",
	}, pair)

	content := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, r.api.Get(t.Context(), client.ObjectKey{Name: pair.Name}, content))
	require.Equal(t, snapshotv1.VolumeSnapshotContentDelete, content.Spec.DeletionPolicy)
	require.Equal(t, "snapshot-1", *content.Spec.Source.SnapshotHandle)
	require.Equal(t, "b", *content.Spec.VolumeSnapshotClassName, "the class that Velero uses for the driver")
	require.Equal(t, "secret", content.Annotations["snapshot.storage.kubernetes.io/deletion-secret-name"])
	require.Equal(t, "true", content.Annotations["snapshot.storage.kubernetes.io/allow-volume-mode-change"])
	require.NotContains(t, content.Annotations, "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle")
	require.NotContains(t, content.Annotations, "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted")
	require.Equal(t, "node-1", content.Labels["snapshot.storage.kubernetes.io/managed-by"])
	require.Equal(t, "op-uid", content.Labels[identity.LabelOperation])

	// The SnapshotMetadata service looks for the class at the VolumeSnapshot.
	vs := &snapshotv1.VolumeSnapshot{}
	require.NoError(t, r.api.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: pair.Name}, vs))
	require.Equal(t, "b", *vs.Spec.VolumeSnapshotClassName)
	require.Equal(t, "op-uid", vs.Labels[identity.LabelOperation])

	again, err := r.Ensure(t.Context(), operation, origin)
	require.NoError(t, err)
	require.Equal(t, pair, again)
}

func TestRehomeWaitsAndRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(f *fixture)
		waiting string
		err     string
	}{
		"not bound": {
			change:  func(f *fixture) { f.vs.Status = nil },
			waiting: "VolumeSnapshot app/snap has no content yet",
		},
		"error of the storage": {
			change: func(f *fixture) {
				text := "quota exceeded"
				f.vs.Status = &snapshotv1.VolumeSnapshotStatus{Error: &snapshotv1.VolumeSnapshotError{Message: &text}}
			},
			waiting: "has no content yet: quota exceeded",
		},
		"no handle": {
			change:  func(f *fixture) { f.content.Status = nil },
			waiting: "is not ready to use yet",
		},
		"another name": {
			change: func(f *fixture) { f.vs.Name = "other" },
			err:    "VolumeSnapshot app/snap has vanished",
		},
		"unknown size": {
			change: func(f *fixture) { f.pv.Name = "other" },
			err:    "says how large the volume is",
		},
		"unknown volume": {
			change: func(f *fixture) {
				size := int64(1)
				f.content.Status.RestoreSize, f.content.Spec.Source.VolumeHandle, f.pvc.Spec.VolumeName = &size, nil, ""
			},
			err: "says which volume it is of",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := member()
			tc.change(&f)
			pair, err := f.rehomer(t).Ensure(t.Context(), operation, origin)
			if tc.err != "" {
				require.ErrorIs(t, err, phase.ErrBroken)
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.False(t, pair.Secured)
			require.Contains(t, pair.Waiting, tc.waiting)
		})
	}
}

// TestSizeOfTheSnapshot: the storage knows best, where it says anything.
func TestSizeOfTheSnapshot(t *testing.T) {
	for restoreSize, want := range map[int64]int64{0: 5 << 30, 3<<30 + 512: 3<<30 + 512, 7 << 30: 7 << 30} {
		f := member()
		f.content.Status.RestoreSize = &restoreSize
		pair, err := f.rehomer(t).Ensure(t.Context(), operation, origin)
		require.NoError(t, err)
		require.Equal(t, want, pair.Size)
	}
}

// TestProtectComesFirst: the storage snapshot is safe before it is ready.
func TestProtectComesFirst(t *testing.T) {
	f := member()
	no := false
	f.content.Status.ReadyToUse = &no
	r := f.rehomer(t)
	_, err := r.Ensure(t.Context(), operation, origin)
	require.NoError(t, err)
	content := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, r.api.Get(t.Context(), client.ObjectKey{Name: "content-1"}, content))
	require.Equal(t, snapshotv1.VolumeSnapshotContentRetain, content.Spec.DeletionPolicy)
	require.Equal(t, "op-uid", content.Labels[identity.LabelOperation])
}

// TestMemberOfExistingGroup: the snapshot controller keeps a member until its group
// is gone, which an upload does not wait for.
func TestMemberOfExistingGroup(t *testing.T) {
	f := member()
	f.vs.Finalizers = []string{"snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"}
	f.content.Finalizers = []string{"snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"}
	const beingDeleted = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	delete(f.content.Annotations, beingDeleted)
	r := f.rehomer(t)
	_, err := r.Ensure(t.Context(), operation, origin)
	require.NoError(t, err)

	content := contentOf(t, r, f.content.Name)
	require.NotNil(t, content.DeletionTimestamp)
	require.Contains(t, content.Annotations, beingDeleted, "the sidecar does not let go of it otherwise")
	require.Equal(t, snapshotv1.VolumeSnapshotContentRetain, content.Spec.DeletionPolicy)
	vs := &snapshotv1.VolumeSnapshot{}
	require.NoError(t, r.api.Get(t.Context(), client.ObjectKeyFromObject(f.vs), vs))
	require.NotNil(t, vs.DeletionTimestamp)
	left, err := volumesnapshot.Release(t.Context(), r.api, r.api, client.ObjectKeyFromObject(f.vs))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestReleaseBeforeThePair: an upload that ends between protecting its origin and making the
// pair has only the origin. A group of ours takes the storage snapshot along; without one,
// nobody else would delete it.
func TestReleaseBeforeThePair(t *testing.T) {
	for name, tc := range map[string]struct {
		group string
		want  snapshotv1.DeletionPolicy
	}{
		"group of ours":          {identity.GroupName("backup-uid", "app", "db", "driver"), snapshotv1.VolumeSnapshotContentRetain},
		"group of somebody else": {"nightly", snapshotv1.VolumeSnapshotContentDelete},
		"group is gone":          {"", snapshotv1.VolumeSnapshotContentDelete},
	} {
		t.Run(name, func(t *testing.T) {
			f := member()
			f.content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
			f.content.Labels[identity.LabelOperation] = operation.UID
			f.content.Finalizers = []string{"example.com/look"}
			handle := "group-1"
			if tc.group != "" {
				f.group = &groupsnapshotv1.VolumeGroupSnapshotContent{
					ObjectMeta: metav1.ObjectMeta{Name: "group-content"},
					Spec: groupsnapshotv1.VolumeGroupSnapshotContentSpec{
						Driver: "driver", DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
						VolumeGroupSnapshotRef: corev1.ObjectReference{Namespace: "app", Name: tc.group},
					},
					Status: &groupsnapshotv1.VolumeGroupSnapshotContentStatus{VolumeGroupSnapshotHandle: &handle},
				}
			}
			r := f.rehomer(t)
			left, err := r.Release(t.Context(), operation)
			require.NoError(t, err)
			require.Equal(t, []string{"VolumeSnapshotContent content-1"}, left)
			content := contentOf(t, r, "content-1")
			require.Equal(t, tc.want, content.Spec.DeletionPolicy)
			require.NotNil(t, content.DeletionTimestamp)
			if f.group != nil {
				group := &groupsnapshotv1.VolumeGroupSnapshotContent{}
				require.NoError(t, r.api.Get(t.Context(), client.ObjectKeyFromObject(f.group), group))
				require.Equal(t, snapshotv1.VolumeSnapshotContentDelete, group.Spec.DeletionPolicy, "a release takes no charge of a group")
			}
		})
	}
}
