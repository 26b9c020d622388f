package exposer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
)

const (
	// serverName is the usual name of the Deployment of Velero's server, and that of its
	// container.
	serverName = "velero"
	// credentialsPath is where Velero's server has its default credential.
	credentialsPath = "/credentials"
	defaultKey      = "cloud"
	// labelWorkloadIdentity makes Azure's webhook give a pod the identity of its service
	// account.
	labelWorkloadIdentity = "azure.workload.identity/use"
)

// FindInherited returns what mover pods take over from Velero's server, so that they reach the
// object store as it does: the default credential, proxies and other variables. There may be
// no server, for example while it is being installed again. The configuration may name another
// credential.
func FindInherited(ctx context.Context, reader client.Reader, namespace string, settings config.Config) (found Inherited, err error) {
	list := &appsv1.DeploymentList{}
	if err := reader.List(ctx, list, client.InNamespace(namespace)); err != nil {
		return Inherited{}, fmt.Errorf("list Deployments of namespace %s: %w", namespace, err)
	}
	slices.SortStableFunc(list.Items, func(a, b appsv1.Deployment) int { return cmp.Compare(rankServer(&a), rankServer(&b)) })
	for i := range list.Items {
		template := &list.Items[i].Spec.Template
		if c := serverContainer(&template.Spec); c != nil {
			found = inheritedFrom(template, c)
			break
		}
	}
	if settings.DefaultCredential != nil {
		found.Credential = settings.DefaultCredential
	}
	return found, nil
}

func rankServer(d *appsv1.Deployment) int {
	if d.Name == serverName {
		return 0
	}
	return 1
}

// serverContainer returns the container that runs `velero server`, or nil.
func serverContainer(spec *corev1.PodSpec) *corev1.Container {
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if slices.Contains(slices.Concat(c.Command, c.Args), "server") && (c.Name == serverName || slices.Contains(c.Command, "/velero")) {
			return c
		}
	}
	return nil
}

func inheritedFrom(template *corev1.PodTemplateSpec, c *corev1.Container) Inherited {
	found := Inherited{Credential: credentialOf(&template.Spec, c), EnvFrom: c.EnvFrom, Labels: map[string]string{}}
	if value, ok := template.Labels[labelWorkloadIdentity]; ok {
		found.Labels[labelWorkloadIdentity] = value
	}
	for _, env := range c.Env {
		// What names a file in the server's pod, or is about the server itself, is not for
		// others.
		if strings.HasPrefix(env.Name, "VELERO_") || env.Name == "LD_LIBRARY_PATH" || strings.HasPrefix(env.Value, credentialsPath+"/") {
			continue
		}
		found.Env = append(found.Env, env)
		found.addFile(&template.Spec, c, env.Value)
	}
	return found
}

// addFile takes over the volume that has a file which a variable names: the CA of a proxy, for example.
// Only volumes that are the same in every pod count, and those that are not in the way of ours.
func (i *Inherited) addFile(spec *corev1.PodSpec, c *corev1.Container, file string) {
	for _, mount := range c.VolumeMounts {
		within := file == mount.MountPath || strings.HasPrefix(file, strings.TrimSuffix(mount.MountPath, "/")+"/")
		taken := slices.ContainsFunc(append(slices.Clone(ownPaths), pathsOf(i.Mounts)...), func(path string) bool {
			return strings.HasPrefix(path+"/", mount.MountPath+"/") || strings.HasPrefix(mount.MountPath+"/", path+"/")
		})
		v := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name })
		if !within || taken || v < 0 {
			continue
		}
		volume := *spec.Volumes[v].DeepCopy()
		if volume.Secret == nil && volume.ConfigMap == nil && volume.Projected == nil {
			continue
		}
		mount.Name = fmt.Sprintf("inherited-%d", len(i.Mounts))
		volume.Name, mount.ReadOnly = mount.Name, true
		i.Volumes, i.Mounts = append(i.Volumes, volume), append(i.Mounts, mount)
	}
}

// ownPaths are where a mover pod has what is its own.
var ownPaths = []string{HomePath, "/tmp", "/dev", DirectoryPath, credentialsPath, tokenDirectory, "/blockmover"}

func pathsOf(mounts []corev1.VolumeMount) (paths []string) {
	for _, m := range mounts {
		paths = append(paths, m.MountPath)
	}
	return paths
}

// credentialOf returns the Secret that the container has mounted as its default credential, or
// nil.
func credentialOf(spec *corev1.PodSpec, c *corev1.Container) *corev1.SecretKeySelector {
	mount := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == credentialsPath })
	if mount < 0 {
		return nil
	}
	volume := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == c.VolumeMounts[mount].Name })
	if volume < 0 || spec.Volumes[volume].Secret == nil {
		return nil
	}
	key := defaultKey
	for _, env := range c.Env {
		if file, ok := strings.CutPrefix(env.Value, credentialsPath+"/"); ok && !strings.Contains(file, "/") {
			key = file
		}
	}
	return &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: spec.Volumes[volume].Secret.SecretName}, Key: key}
}

// SecretsOf returns the Secrets that a location refers to, each once.
func SecretsOf(location *velerov1.BackupStorageLocation) []corev1.SecretKeySelector {
	var secrets []corev1.SecretKeySelector
	if s := location.Spec.Credential; s != nil {
		secrets = append(secrets, *s)
	}
	if o := location.Spec.ObjectStorage; o != nil && o.CACertRef != nil && !slices.Contains(secrets, *o.CACertRef) {
		secrets = append(secrets, *o.CACertRef)
	}
	return secrets
}
