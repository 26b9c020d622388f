package kubectl

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// server is Velero's Deployment, with the plugin of its object store.
func server(change func(*appsv1.Deployment)) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "velero"}}
	d.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "plugins"}}
	d.Spec.Template.Spec.InitContainers = []corev1.Container{{Name: "aws", Image: "velero/velero-plugin-for-aws:v1"}}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "velero", Image: "velero/velero:v1"}}
	d.Status = appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1}
	if change != nil {
		change(d)
	}
	return d
}

func TestPlugin(t *testing.T) {
	c := newCall(t, server(nil))
	o := pluginOptions{session: c.session, deployment: "velero", pullPolicy: "IfNotPresent", timeout: 10 * time.Second}
	have := func() map[string]string {
		d := &appsv1.Deployment{}
		require.NoError(t, c.Client.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: "velero"}, d))
		images := map[string]string{}
		for _, container := range d.Spec.Template.Spec.InitContainers {
			images[container.Name] = container.Image
		}
		return images
	}
	const aws = "velero/velero-plugin-for-aws:v1"
	for _, image := range []string{"registry:5000/blockmover:v1", "registry:5000/blockmover:v1", "registry:5000/blockmover:v2"} {
		require.NoError(t, o.apply(t.Context(), image))
		require.Equal(t, map[string]string{"aws": aws, "velero-plugin-blockmover": image}, have())
	}
	for range 2 {
		require.NoError(t, o.apply(t.Context(), ""))
		require.Equal(t, map[string]string{"aws": aws}, have())
	}
}

func TestPluginRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*appsv1.Deployment)
		want   string
	}{
		"another name": {func(d *appsv1.Deployment) { d.Name = "other" }, "Deployment velero/velero does not exist"},
		"not Velero":   {func(d *appsv1.Deployment) { d.Spec.Template.Spec.Volumes = nil }, `has no volume "plugins"`},
		"added by velero": {func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.InitContainers[0].Image = "registry:5000/blockmover@sha256:abc"
		}, "velero plugin remove registry:5000/blockmover@sha256:abc first"},
		"does not start": {func(d *appsv1.Deployment) { d.Status.AvailableReplicas = 0 }, "1 of its 1 pods are new, and 0 are available"},
	} {
		t.Run(name, func(t *testing.T) {
			o := pluginOptions{session: newCall(t, server(tc.change)).session, deployment: "velero", pullPolicy: "IfNotPresent", timeout: 2 * time.Second}
			require.ErrorContains(t, o.apply(t.Context(), "registry:5000/blockmover:v1"), tc.want)
		})
	}
	gone := pluginOptions{session: newCall(t).session, deployment: "velero", timeout: time.Second}
	require.NoError(t, gone.apply(t.Context(), ""), "with Velero, its plugins have gone")
}

func TestImageRepository(t *testing.T) {
	for image, want := range map[string]string{
		"a": "a", "a:1": "a", "r:5000/a": "r:5000/a", "r:5000/a:1": "r:5000/a", "r/a@sha256:0": "r/a", "r:5000/a:1@sha256:0": "r:5000/a",
	} {
		require.Equal(t, want, imageRepository(image), image)
	}
}
