package livevolume_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/livevolume"
)

func claim() *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "data", UID: "uid"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-1"},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
}

func volume() *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-1"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{"storage": resource.MustParse("1Gi")},
			ClaimRef:               &corev1.ObjectReference{Namespace: "app", Name: "data", UID: "uid"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "driver", VolumeHandle: "volume-1"}},
		},
	}
}

func pod(name, claim string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name},
		Spec: corev1.PodSpec{Volumes: []corev1.Volume{
			{Name: "cache", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}},
		}},
		Status: corev1.PodStatus{Phase: phase},
	}
}

func TestLook(t *testing.T) {
	good := inplace.Volume{Claim: "app/data", UID: "uid", Name: "pv-1", Bound: true, Driver: "driver", Handle: "volume-1", Capacity: 1 << 30}
	for name, tc := range map[string]struct {
		objects []client.Object
		claim   func(*corev1.PersistentVolumeClaim)
		want    func(*inplace.Volume)
	}{
		"bound":      {objects: []client.Object{volume()}},
		"not bound":  {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "" }, want: func(v *inplace.Volume) { *v = inplace.Volume{Claim: v.Claim, UID: v.UID} }},
		"lost":       {want: func(v *inplace.Volume) { *v = inplace.Volume{Claim: v.Claim, UID: v.UID, Name: v.Name} }},
		"pending":    {objects: []client.Object{volume()}, claim: func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimPending }, want: func(v *inplace.Volume) { v.Bound = false }},
		"a stranger": {objects: []client.Object{volume()}, claim: func(c *corev1.PersistentVolumeClaim) { c.UID = "other" }, want: func(v *inplace.Volume) { v.Bound, v.UID = false, "other" }},
		"in charge of an operation": {
			objects: []client.Object{func() client.Object {
				pv := volume()
				op := identity.Operation{Kind: "DataDownload", Namespace: "velero", Name: "dd", UID: "1"}
				pv.Labels, pv.Annotations = op.Labels(), op.Annotations()
				return pv
			}()},
			want: func(v *inplace.Volume) { v.Operation = "DataDownload/velero/dd" },
		},
		"in use": {
			objects: []client.Object{volume(), pod("b", "data", corev1.PodRunning), pod("a", "data", corev1.PodPending), pod("c", "data", corev1.PodFailed), pod("d", "other", corev1.PodRunning)},
			want:    func(v *inplace.Volume) { v.Pods = []string{"a", "b"} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := claim()
			if tc.claim != nil {
				tc.claim(c)
			}
			want := good
			if tc.want != nil {
				tc.want(&want)
			}
			found, pv, err := livevolume.Look(t.Context(), fake.NewClientBuilder().WithObjects(tc.objects...).Build(), c)
			require.NoError(t, err)
			require.Equal(t, want, found)
			require.Equal(t, len(tc.objects) > 0, pv != nil)
		})
	}
}

func TestEphemeralVolumesAreUsed(t *testing.T) {
	p := pod("app-0", "other", corev1.PodRunning)
	p.Spec.Volumes[1] = corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}
	users, err := livevolume.Users(t.Context(), fake.NewClientBuilder().WithObjects(p).Build(), client.ObjectKey{Namespace: "app", Name: "app-0-data"})
	require.NoError(t, err)
	require.Equal(t, []string{"app-0"}, users)
}

func TestNodes(t *testing.T) {
	attachment := func(name, volume, node string) client.Object {
		return &storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       storagev1.VolumeAttachmentSpec{NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume}},
		}
	}
	reader := fake.NewClientBuilder().WithObjects(attachment("1", "pv-1", "node-2"), attachment("2", "pv-1", "node-1"), attachment("3", "pv-2", "node-3")).Build()
	nodes, err := livevolume.Nodes(t.Context(), reader, "pv-1")
	require.NoError(t, err)
	require.Equal(t, []string{"node-1", "node-2"}, nodes)
}
