package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/mover/exposer"
)

// server is Velero's Deployment as its Helm chart makes it, with a Secret of another name.
func server(name string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: name},
		Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"azure.workload.identity/use": "true", "name": "velero"}},
			Spec: corev1.PodSpec{
				Containers: []corev1.Container{{
					Name: "velero", Command: []string{"/velero"}, Args: []string{"server"},
					Env: []corev1.EnvVar{
						{Name: "AWS_SHARED_CREDENTIALS_FILE", Value: "/credentials/aws"},
						{Name: "VELERO_NAMESPACE", Value: "velero"},
						{Name: "LD_LIBRARY_PATH", Value: "/plugins"},
						{Name: "HTTPS_PROXY", Value: "http://proxy:3128"},
						{Name: "SSL_CERT_FILE", Value: "/etc/ca/ca.pem"},
						{Name: "SSL_CERT_DIR", Value: "/etc/ca"},
						{Name: "PLUGIN", Value: "/plugins/p"},
						{Name: "SCRATCH", Value: "/home/blockmover/x/y"},
						{Name: "PREFIX", Value: "/etc/california"},
					},
					VolumeMounts: []corev1.VolumeMount{
						{Name: "plugins", MountPath: "/plugins"},
						{Name: "c", MountPath: "/credentials"},
						{Name: "ca", MountPath: "/etc/ca"},
						{Name: "ca", MountPath: "/home/blockmover/x"},
						{Name: "ca", MountPath: "/unused"},
					},
				}},
				Volumes: []corev1.Volume{
					{Name: "plugins"},
					{Name: "ca", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
					{Name: "c", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "velero-aws"}}},
				},
			},
		}},
	}
}

func (w *world) surroundings() *surroundings {
	w.t.Helper()
	flow, ok := w.uploads.flow.(byVolume)
	require.True(w.t, ok)
	return &flow.snapshots.surroundings
}

func TestInherited(t *testing.T) {
	credential := func(name, key string) *corev1.SecretKeySelector {
		return &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key}
	}
	other := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "a-blockmover"}}
	for _, name := range []string{"velero", "backup-velero"} {
		w := newWorld(t, other.DeepCopy(), server(name))
		got, err := w.surroundings().inherited(w.ctx)
		require.NoError(t, err)
		require.Equal(t, exposer.Inherited{
			Credential: credential("velero-aws", "aws"),
			Env: []corev1.EnvVar{
				{Name: "HTTPS_PROXY", Value: "http://proxy:3128"},
				{Name: "SSL_CERT_FILE", Value: "/etc/ca/ca.pem"},
				{Name: "SSL_CERT_DIR", Value: "/etc/ca"},
				{Name: "PLUGIN", Value: "/plugins/p"},
				{Name: "SCRATCH", Value: "/home/blockmover/x/y"},
				{Name: "PREFIX", Value: "/etc/california"},
			},
			// Of its volumes, the one that a variable names, once.
			Volumes: []corev1.Volume{{Name: "inherited-0", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}}},
			Mounts:  []corev1.VolumeMount{{Name: "inherited-0", MountPath: "/etc/ca", ReadOnly: true}},
			Labels:  map[string]string{"azure.workload.identity/use": "true"},
		}, got)
	}

	w := newWorld(t)
	got, err := w.surroundings().inherited(w.ctx)
	require.NoError(t, err)
	require.Equal(t, exposer.Inherited{}, got, "no server")

	bare := server("velero")
	bare.Spec.Template.Spec.Volumes = nil
	w = newWorld(t, bare)
	got, err = w.surroundings().inherited(w.ctx)
	require.NoError(t, err)
	require.Nil(t, got.Credential)

	s := newWorld(t, server("velero")).surroundings()
	s.live = edited(s.live, func(c *config.Config) { c.DefaultCredential = credential("mine", "key") })
	got, err = s.inherited(w.ctx)
	require.NoError(t, err)
	require.Equal(t, credential("mine", "key"), got.Credential)
}
