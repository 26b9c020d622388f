package groupapi_test

import (
	"encoding/json"
	"testing"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

const driver = "csi.example.com"

var groupName = identity.GroupName("backup-uid", "app", "db", driver)

func newClient(t *testing.T, served bool, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, snapshotv1.AddToScheme(scheme))
	require.NoError(t, groupsnapshotv1.AddToScheme(scheme))
	mapper := meta.NewDefaultRESTMapper(nil)
	if served {
		for _, kind := range []string{"VolumeGroupSnapshot", "VolumeGroupSnapshotContent"} {
			mapper.Add(schema.GroupVersionKind{Group: groupapi.APIGroup, Version: "v1", Kind: kind}, meta.RESTScopeNamespace)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).WithObjects(objects...).
		WithStatusSubresource(&groupsnapshotv1.VolumeGroupSnapshotContent{}).Build()
}

// groupContent is what the snapshot controller makes of a group of a class that says Delete.
func groupContent(name string) *groupsnapshotv1.VolumeGroupSnapshotContent {
	handle, class := "group-1", "groups"
	return &groupsnapshotv1.VolumeGroupSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "groupsnapcontent-1", Annotations: map[string]string{
			"groupsnapshot.storage.kubernetes.io/deletion-secret-name":      "secret",
			"groupsnapshot.storage.kubernetes.io/deletion-secret-namespace": "kube-system",
		}},
		Spec: groupsnapshotv1.VolumeGroupSnapshotContentSpec{
			Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, VolumeGroupSnapshotClassName: &class,
			VolumeGroupSnapshotRef: corev1.ObjectReference{Namespace: "app", Name: name},
			Source:                 groupsnapshotv1.VolumeGroupSnapshotContentSource{VolumeHandles: []string{"v1", "v2"}},
		},
		Status: &groupsnapshotv1.VolumeGroupSnapshotContentStatus{
			VolumeGroupSnapshotHandle: &handle,
			VolumeSnapshotInfoList:    []groupsnapshotv1.VolumeSnapshotInfo{{VolumeHandle: "v1", SnapshotHandle: "s1"}, {VolumeHandle: "v2", SnapshotHandle: "s2"}},
		},
	}
}

func member() *snapshotv1.VolumeSnapshotContent {
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "member", Annotations: map[string]string{content.AnnotationGroupHandle: "group-1"}},
		Spec:       snapshotv1.VolumeSnapshotContentSpec{Driver: driver},
	}
}

func rehomed(record string) *snapshotv1.VolumeSnapshotContent {
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "pair", Annotations: map[string]string{identity.AnnotationGroupSnapshot: record}},
	}
}

func TestProtectAndSecure(t *testing.T) {
	vgs := &groupsnapshotv1.VolumeGroupSnapshot{ObjectMeta: metav1.ObjectMeta{
		Namespace: "app", Name: groupName, Labels: map[string]string{identity.LabelBackupUID: "backup-uid"},
	}}
	c := newClient(t, true, groupContent(groupName), vgs)
	keeper := groupapi.NewKeeper(c, c)
	text, err := keeper.Protect(t.Context(), member())
	require.NoError(t, err)
	var record groupapi.Record
	require.NoError(t, json.Unmarshal([]byte(text), &record))
	require.Equal(t, groupapi.Record{
		Handle: "group-1", Members: []string{"s1", "s2"}, Driver: driver, Class: "groups", Content: "groupsnapcontent-1",
		Namespace: "app", Name: groupName, BackupUID: "backup-uid",
		Secrets: map[string]string{
			"groupsnapshot.storage.kubernetes.io/deletion-secret-name":      "secret",
			"groupsnapshot.storage.kubernetes.io/deletion-secret-namespace": "kube-system",
		},
	}, record)
	found := &groupsnapshotv1.VolumeGroupSnapshotContent{}
	key := client.ObjectKey{Name: "groupsnapcontent-1"}
	require.NoError(t, c.Get(t.Context(), key, found))
	require.Equal(t, snapshotv1.VolumeSnapshotContentRetain, found.Spec.DeletionPolicy, "it survives its VolumeGroupSnapshot")
	require.Equal(t, "backup-uid", found.Labels[identity.LabelBackupUID])

	isMember, err := keeper.Secure(t.Context(), rehomed(text))
	require.NoError(t, err)
	require.True(t, isMember)

	// Somebody has deleted the content.
	require.NoError(t, c.Delete(t.Context(), found))
	isMember, err = keeper.Secure(t.Context(), rehomed(text))
	require.NoError(t, err)
	require.True(t, isMember)
	require.NoError(t, c.Get(t.Context(), key, found))
	require.Equal(t, "group-1", *found.Status.VolumeGroupSnapshotHandle, "the sidecar looks at the status")
	require.Equal(t, []string{"s1", "s2"}, found.Spec.Source.GroupSnapshotHandles.VolumeSnapshotHandles)
	require.Contains(t, found.Finalizers, "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection")
	require.Equal(t, "secret", found.Annotations["groupsnapshot.storage.kubernetes.io/deletion-secret-name"])
	require.Equal(t, "backup-uid", found.Labels[identity.LabelBackupUID])
}

// TestProtectLeavesOthersAlone: groups of somebody else, and snapshots of no group.
func TestProtectLeavesOthersAlone(t *testing.T) {
	alone := member()
	alone.Annotations = nil
	for name, tc := range map[string]struct {
		served bool
		member *snapshotv1.VolumeSnapshotContent
		group  string
	}{
		"alone":            {true, alone, groupName},
		"of somebody else": {true, member(), "nightly"},
		"no API":           {false, member(), groupName},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, tc.served, groupContent(tc.group))
			keeper := groupapi.NewKeeper(c, c)
			record, err := keeper.Protect(t.Context(), tc.member)
			require.NoError(t, err)
			require.Empty(t, record)
			found := &groupsnapshotv1.VolumeGroupSnapshotContent{}
			require.NoError(t, c.Get(t.Context(), client.ObjectKey{Name: "groupsnapcontent-1"}, found))
			require.Equal(t, snapshotv1.VolumeSnapshotContentDelete, found.Spec.DeletionPolicy)
			isMember, err := keeper.Secure(t.Context(), tc.member)
			require.NoError(t, err)
			require.False(t, isMember)
		})
	}
}

func TestProtectWaitsForTheHandles(t *testing.T) {
	group := groupContent(groupName)
	group.Status.VolumeSnapshotInfoList = nil
	c := newClient(t, true, group)
	_, err := groupapi.NewKeeper(c, c).Protect(t.Context(), member())
	require.ErrorContains(t, err, "does not tell the handles")
}

func TestSecureReadsItsRecord(t *testing.T) {
	c := newClient(t, true)
	for _, record := range []string{
		"garbage", "null", "{}", `{"handle":"group-1","driver":"csi.example.com","content":"c","namespace":"app","name":"g"}`,
		`{"handle":"","members":["m"],"driver":"csi.example.com","content":"c","namespace":"app","name":"g"}`,
	} {
		_, err := groupapi.NewKeeper(c, c).Secure(t.Context(), rehomed(record))
		require.ErrorContains(t, err, identity.AnnotationGroupSnapshot, record)
	}
}

// TestSecureWaitsForTheAPI: the CRDs of groups are gone. The storage may refuse to delete a member
// alone, so it waits.
func TestSecureWaitsForTheAPI(t *testing.T) {
	c := newClient(t, false)
	record, err := json.Marshal(groupapi.Record{Handle: "group-1", Members: []string{"s"}, Driver: driver, Content: "c", Namespace: "app", Name: "g"})
	require.NoError(t, err)
	_, err = groupapi.NewKeeper(c, c).Secure(t.Context(), rehomed(string(record)))
	require.ErrorIs(t, err, groupapi.ErrNotServed)
}
