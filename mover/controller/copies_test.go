package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
)

// copyingWorld is an upload whose driver needs a Secret of the application.
func copyingWorld(t *testing.T, more ...client.Object) *world {
	t.Helper()
	w := uploadWorld(t, append(more, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: "token"}, Data: map[string][]byte{"key": []byte("tenant")},
	})...)
	flow, ok := w.uploads.flow.(byVolume)
	require.True(t, ok)
	flow.snapshots.live = edited(flow.snapshots.live, func(c *config.Config) {
		c.BackupPVC = map[string]config.BackupPVC{"fast": {SecretNames: []string{"token"}}}
	})
	return w
}

func (w *world) requireNoCopy() {
	w.t.Helper()
	require.Nil(w.t, get[corev1.Secret](w, veleroNamespace, "token"))
	require.Empty(w.t, get[velerov2alpha1.DataUpload](w, veleroNamespace, "du").Annotations[identity.AnnotationCopies])
}

// The copy is there while the mover pod runs, and gone afterwards, whatever call fails.
func TestUploadCopies(t *testing.T) {
	eachFault(t, copyingWorld, func(w *world) {
		seen := false
		w.podEnds = func(*corev1.Pod) bool {
			copied := get[corev1.Secret](w, veleroNamespace, "token")
			require.NotNil(w.t, copied)
			seen = string(copied.Data["key"]) == "tenant"
			return true
		}
		w.run(w.uploads, "du")
		require.True(w.t, seen)
		w.requireNoCopy()
	})
}

// What an operation could not release in time, the sweep releases.
func TestSweepReleasesCopies(t *testing.T) {
	w := copyingWorld(t)
	w.podEnds = func(*corev1.Pod) bool { return false }
	for get[corev1.Secret](w, veleroNamespace, "token") == nil {
		_, err := w.uploads.Reconcile(w.ctx, requestFor("du"))
		require.NoError(t, err)
		w.step()
	}
	du := get[velerov2alpha1.DataUpload](w, veleroNamespace, "du")
	require.Equal(t, "Secret/token", du.Annotations[identity.AnnotationCopies])
	du.Status.Phase = velerov2alpha1.DataUploadPhaseFailed
	w.update(du)
	w.sweepUp()
	w.requireNoCopy()
}

func TestUploadDoesNotReplaceASecret(t *testing.T) {
	w := copyingWorld(t, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "token"}, Data: map[string][]byte{"key": []byte("velero")},
	})
	op := w.run(w.uploads, "du")
	require.Equal(t, phase.Failed, op.Status.Phase)
	require.Contains(t, op.Status.Message, "is no copy of ours")
	require.Equal(t, "velero", string(get[corev1.Secret](w, veleroNamespace, "token").Data["key"]))
}

// A restore waits for what it may still make, and hands the volume over without the copy.
func TestDownloadCopies(t *testing.T) {
	w := downloadWorld(t)
	flow, ok := w.downs.flow.(*downloads)
	require.True(t, ok)
	flow.live = edited(flow.live, func(c *config.Config) { c.RestorePVC.ConfigMapNames = []string{"kms"} })
	for range 10 {
		_, err := w.downs.Reconcile(w.ctx, requestFor("dd"))
		require.NoError(t, err)
		w.step()
	}
	op := w.operation(w.downs, "dd")
	require.False(t, op.Status.Phase.Terminal())
	require.Contains(t, op.Status.Message, "there is no ConfigMap/kms in namespace app")
	require.Empty(t, list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items)

	require.NoError(t, w.c.Create(w.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: "kms"}, Data: map[string]string{"a": "b"}}))
	seen := false
	w.podEnds = func(*corev1.Pod) bool {
		seen = get[corev1.ConfigMap](w, veleroNamespace, "kms").Data["a"] == "b"
		return true
	}
	w.run(w.downs, "dd")
	require.True(t, seen)
	requireRestored(t, w)
	require.Nil(t, get[corev1.ConfigMap](w, veleroNamespace, "kms"))
}

// A class that does not exist, or that keeps its volumes, is no reason to fail a restore.
func TestCacheClass(t *testing.T) {
	keep := corev1.PersistentVolumeReclaimRetain
	for class, want := range map[string]string{"fast": "fast", "missing": "", "keeping": ""} {
		w := downloadWorld(t)
		require.NoError(t, w.c.Create(w.ctx, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "keeping"}, ReclaimPolicy: &keep}))
		flow, ok := w.downs.flow.(*downloads)
		require.True(t, ok)
		flow.live = edited(flow.live, func(c *config.Config) { c.CachePVC = &config.CachePVC{StorageClass: class} })
		found := "no pod"
		w.podEnds = func(pod *corev1.Pod) bool {
			found = ""
			if home := pod.Spec.Volumes[1]; home.Ephemeral != nil {
				found = *home.Ephemeral.VolumeClaimTemplate.Spec.StorageClassName
			}
			return true
		}
		w.run(w.downs, "dd")
		require.Equal(t, want, found, class)
		requireRestored(t, w)
	}
}
