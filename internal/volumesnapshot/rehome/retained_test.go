package rehome_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
)

// What becomes of a retained pair over time, under every fault, is tested in
// mover/controller; here is what it looks like.

var keeping = rehome.Keeping{
	Retention: policy.RetentionAuto, Namespace: "app", PVC: "data", Location: "default", Backup: "nightly", BackupUID: "backup-uid",
}

func retainedMember(t *testing.T) (rehomer, rehome.Retained) {
	t.Helper()
	r := member().rehomer(t)
	_, err := r.Ensure(t.Context(), operation, origin)
	require.NoError(t, err)
	retained, err := r.Keep(t.Context(), operation, keeping)
	require.NoError(t, err)
	require.NotNil(t, retained)
	return r, *retained
}

func contentOf(t *testing.T, r rehomer, name string) *snapshotv1.VolumeSnapshotContent {
	t.Helper()
	content := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, r.api.Get(t.Context(), client.ObjectKey{Name: name}, content))
	return content
}

func TestKeep(t *testing.T) {
	r, retained := retainedMember(t)
	require.Equal(t, rehome.Retained{
		Name: "blockmover-op-uid", Keeping: keeping, Driver: "driver", VolumeHandle: "volume-1", SnapshotHandle: "snapshot-1",
		SnapshotTime: time.Date(2026, 3, 1, 12, 0, 0, 7, time.UTC), Class: "b", SecretName: "secret", SecretNamespace: "secrets",
	}, retained)
	text, err := json.Marshal(retained)
	require.NoError(t, err)
	var back rehome.Retained
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, retained, back, "the note on the DataUpload says all of it")

	pair, err := r.Pair(t.Context(), operation)
	require.NoError(t, err)
	require.Equal(t, &rehome.Pair{Driver: "driver", Retained: true}, pair)

	again, err := r.Keep(t.Context(), operation, rehome.Keeping{Retention: policy.RetentionAlways})
	require.NoError(t, err)
	require.Equal(t, retained, *again, "the first word counts")

	_, err = r.Release(t.Context(), operation)
	require.NoError(t, err)
	require.Nil(t, contentOf(t, r, retained.Name).DeletionTimestamp)

	none, err := r.Keep(t.Context(), identity.Operation{UID: "other"}, keeping)
	require.NoError(t, err)
	require.Nil(t, none)
}

// TestReleaseCompletesKeep: a crash after the content was marked leaves a
// VolumeSnapshot that looks like the operation's.
func TestReleaseCompletesKeep(t *testing.T) {
	r, retained := retainedMember(t)
	vs := &snapshotv1.VolumeSnapshot{}
	key := client.ObjectKey{Namespace: "velero", Name: retained.Name}
	require.NoError(t, r.api.Get(t.Context(), key, vs))
	want := vs.Labels
	require.Equal(t, "auto", want[identity.LabelRetained])
	vs.Labels = map[string]string{identity.LabelOperation: "op-uid", "foreign": "stays"}
	require.NoError(t, r.api.Update(t.Context(), vs))

	left, err := r.Release(t.Context(), operation)
	require.NoError(t, err)
	require.NotContains(t, left, "VolumeSnapshot velero/"+retained.Name)
	require.NoError(t, r.api.Get(t.Context(), key, vs))
	require.Equal(t, "stays", vs.Labels["foreign"])
	delete(vs.Labels, "foreign")
	delete(want, "velero.io/exclude-from-backup") // the operation's pair has it too
	require.Equal(t, want, vs.Labels)
}

// TestKeepLongNames: labels are cut, annotations are not, and two volumes whose
// labels begin alike are told apart.
func TestKeepLongNames(t *testing.T) {
	r := member().rehomer(t)
	_, err := r.Ensure(t.Context(), operation, origin)
	require.NoError(t, err)
	long := keeping
	long.PVC, long.Backup = strings.Repeat("data.", 50)+"0", strings.Repeat("nightly-", 30)+"0"
	retained, err := r.Keep(t.Context(), operation, long)
	require.NoError(t, err)
	require.Equal(t, long, retained.Keeping)
	for _, value := range contentOf(t, r, retained.Name).Labels {
		require.LessOrEqual(t, len(value), 63)
	}
	for pvc, n := range map[string]int{long.PVC: 1, strings.Repeat("data.", 50) + "1": 0, "data": 0} {
		found, err := r.ListRetainedOf(t.Context(), "app", pvc)
		require.NoError(t, err)
		require.Len(t, found, n)
	}
}

func TestListRetained(t *testing.T) {
	r, retained := retainedMember(t)
	all, err := r.ListRetained(t.Context())
	require.NoError(t, err)
	require.Equal(t, []rehome.Retained{retained}, all)

	elsewhere := rehome.New(r.api, r.api, "velero-2")
	all, err = elsewhere.ListRetained(t.Context())
	require.NoError(t, err)
	require.Empty(t, all, "that of another Velero in the cluster")
}

// TestReleaseRetained: nothing may keep the sidecar from deleting the storage
// snapshot, whatever the pair was when it is released.
func TestReleaseRetained(t *testing.T) {
	handle, group := "snapshot-1", "group-1"
	for name, change := range map[string]func(content *snapshotv1.VolumeSnapshotContent){
		"not bound, no status": func(*snapshotv1.VolumeSnapshotContent) {},
		"policy Retain": func(c *snapshotv1.VolumeSnapshotContent) {
			c.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
		},
		"member of a lost group": func(c *snapshotv1.VolumeSnapshotContent) { c.Status.VolumeGroupSnapshotHandle = &group },
	} {
		t.Run(name, func(t *testing.T) {
			r, retained := retainedMember(t)
			content := contentOf(t, r, retained.Name)
			content.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle}
			change(content)
			status := content.Status
			require.NoError(t, r.api.Update(t.Context(), content))
			content.Status = status
			require.NoError(t, r.api.Status().Update(t.Context(), content))

			left, err := r.ReleaseRetained(t.Context(), retained.Name)
			require.NoError(t, err)
			require.Equal(t, []string{"VolumeSnapshotContent blockmover-op-uid", "VolumeSnapshot velero/blockmover-op-uid"}, left)
			content = contentOf(t, r, retained.Name)
			requireCondemned(t, content)
			require.NotNil(t, content.DeletionTimestamp)

			left, err = r.ReleaseRetained(t.Context(), retained.Name)
			require.NoError(t, err)
			require.Equal(t, []string{"VolumeSnapshotContent blockmover-op-uid"}, left)
		})
	}
}

// requireCondemned checks all that the sidecar looks at.
func requireCondemned(t *testing.T, content *snapshotv1.VolumeSnapshotContent) {
	t.Helper()
	require.Equal(t, snapshotv1.VolumeSnapshotContentDelete, content.Spec.DeletionPolicy)
	require.Equal(t, "snapshot-1", *content.Status.SnapshotHandle)
	require.Nil(t, content.Status.VolumeGroupSnapshotHandle)
	require.Contains(t, content.Annotations, "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted")
	require.Contains(t, content.Finalizers, "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection")
}

// TestReleaseRetainedBound: the snapshot controller deletes what it has bound,
// when nobody makes a volume from it.
func TestReleaseRetainedBound(t *testing.T) {
	r, retained := retainedMember(t)
	content := contentOf(t, r, retained.Name)
	content.Spec.VolumeSnapshotRef.UID = "vs-uid"
	require.NoError(t, r.api.Update(t.Context(), content))
	vs := &snapshotv1.VolumeSnapshot{}
	require.NoError(t, r.api.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: retained.Name}, vs))
	vs.UID = "vs-uid"
	vs.Finalizers = []string{"snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"}
	vs.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &retained.Name}
	require.NoError(t, r.api.Update(t.Context(), vs))

	left, err := r.ReleaseRetained(t.Context(), retained.Name)
	require.NoError(t, err)
	require.Len(t, left, 2)
	content = contentOf(t, r, retained.Name)
	requireCondemned(t, content)
	require.Nil(t, content.DeletionTimestamp)
	require.NoError(t, r.api.Get(t.Context(), client.ObjectKeyFromObject(vs), vs))
	require.NotNil(t, vs.DeletionTimestamp)
}

// TestReleaseRetainedLeavesOperations: a pair that an upload works with is not
// retained.
func TestReleaseRetainedLeavesOperations(t *testing.T) {
	r := member().rehomer(t)
	pair, err := r.Ensure(t.Context(), operation, origin)
	require.NoError(t, err)
	left, err := r.ReleaseRetained(t.Context(), pair.Name)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Nil(t, contentOf(t, r, pair.Name).DeletionTimestamp)
}

func TestRebuild(t *testing.T) {
	r, retained := retainedMember(t)
	before := contentOf(t, r, retained.Name)
	require.NoError(t, r.Rebuild(t.Context(), retained))
	require.Equal(t, before, contentOf(t, r, retained.Name), "it is there")

	require.NoError(t, r.api.Delete(t.Context(), before))
	require.NoError(t, r.api.Delete(t.Context(), &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: retained.Name}}))
	require.NoError(t, r.Rebuild(t.Context(), retained))
	rebuilt, err := r.ListRetained(t.Context())
	require.NoError(t, err)
	require.Equal(t, []rehome.Retained{retained}, rebuilt)
	left, err := r.ReleaseRetained(t.Context(), retained.Name)
	require.NoError(t, err)
	require.Equal(t, []string{"VolumeSnapshotContent blockmover-op-uid"}, left)
	content := contentOf(t, r, retained.Name)
	requireCondemned(t, content)
	require.NotNil(t, content.DeletionTimestamp)
}

// TestRebuildLeavesOthers: a storage snapshot that somebody else has a name for
// is not ours to delete.
func TestRebuildLeavesOthers(t *testing.T) {
	r, retained := retainedMember(t)
	content := contentOf(t, r, retained.Name)
	require.NoError(t, r.api.Delete(t.Context(), content))
	require.NoError(t, r.api.Create(t.Context(), &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "imported"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: "driver", Source: snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &retained.SnapshotHandle},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: "app", Name: "imported"},
		},
	}))
	require.NoError(t, r.Rebuild(t.Context(), retained))
	err := r.api.Get(t.Context(), client.ObjectKey{Name: retained.Name}, content)
	require.NoError(t, client.IgnoreNotFound(err))
	require.Error(t, err)
}
