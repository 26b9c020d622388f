package exposer

import (
	"cmp"
	"slices"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/task"
)

// volumes are the device, the scratch space, the credentials, and the variables with the task and
// where all that is.
func (p PodPlan) volumes(request []task.Variable) ([]corev1.Volume, []corev1.VolumeMount, []corev1.EnvVar) {
	claim := p.Operation.ObjectName()
	if p.Directory != nil {
		claim = cmp.Or(p.Directory.Claim, claim)
	}
	volumes := []corev1.Volume{
		{Name: volumeName, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
			ClaimName: claim, ReadOnly: p.ReadOnly,
		}}},
		p.home(),
		scratch("tmp", resource.MustParse(tmpSize)),
		inMemory("connection", resource.MustParse(connectionSize)),
		secret("repository", repositorySecret, repositoryKey),
	}
	mounts := []corev1.VolumeMount{
		{Name: "home", MountPath: HomePath},
		{Name: "tmp", MountPath: "/tmp"},
		{Name: "connection", MountPath: ConnectionPath},
		{Name: "repository", MountPath: RepositoryPath, ReadOnly: true},
	}
	if d := p.Directory; d != nil {
		mounts = append(mounts, corev1.VolumeMount{Name: volumeName, MountPath: DirectoryPath, ReadOnly: !d.Write})
	}
	var env []corev1.EnvVar
	for _, v := range request {
		env = append(env, corev1.EnvVar{Name: v.Name, Value: v.Value})
	}
	env = append(env, corev1.EnvVar{Name: "HOME", Value: HomePath})
	if len(p.LocationSecrets) > 0 {
		volumes = append(volumes, secrets("location", p.LocationSecrets))
		mounts = append(mounts, corev1.VolumeMount{Name: "location", MountPath: LocationPath, ReadOnly: true})
	}
	if c := p.Inherited.Credential; c != nil {
		volumes = append(volumes, secret("cloud", c.Name, c.Key))
		mounts = append(mounts, corev1.VolumeMount{Name: "cloud", MountPath: CloudPath, ReadOnly: true})
		for _, name := range []string{"AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CREDENTIALS_FILE"} {
			env = append(env, corev1.EnvVar{Name: name, Value: CloudPath + "/" + c.Key})
		}
	}
	for _, other := range slices.Concat(p.Config.Env, p.Inherited.Env) {
		if !slices.ContainsFunc(env, func(ours corev1.EnvVar) bool { return ours.Name == other.Name }) {
			env = append(env, other)
		}
	}
	volumes, mounts = append(volumes, p.Inherited.Volumes...), append(mounts, p.Inherited.Mounts...)
	if p.Audience != "" {
		volumes = append(volumes, token("metadata-token", p.Audience))
		mounts = append(mounts, corev1.VolumeMount{Name: "metadata-token", MountPath: tokenDirectory, ReadOnly: true})
	}
	return volumes, mounts, env
}

// home is the volume of HomePath: disk of the node, or a volume that is made and deleted with the pod.
func (p PodPlan) home() corev1.Volume {
	const name = "home"
	if p.CacheClass == "" {
		return scratch(name, p.Config.ScratchSize)
	}
	mode := corev1.PersistentVolumeFilesystem
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
		VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{velerov1.ExcludeFromBackupLabel: "true"}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				StorageClassName: &p.CacheClass,
				VolumeMode:       &mode,
				Resources:        requestStorage(cacheSize(p.Config.ScratchSize)),
			},
		},
	}}}
}

// cacheSize is the size of a volume whose file system has room for a scratch directory: a fifth more,
// in whole GiB, as Velero's node-agent has it.
func cacheSize(scratchSize resource.Quantity) resource.Quantity {
	const gibi = 1 << 30
	bytes := scratchSize.Value() / 10 * 12
	return *resource.NewQuantity((bytes+gibi-1)/gibi*gibi, resource.BinarySI)
}

// volumeName is the name of the volume in the pod.
const volumeName = "device"

// devices are the block devices of the pod.
func (p PodPlan) devices() []corev1.VolumeDevice {
	if p.Directory != nil {
		return nil
	}
	return []corev1.VolumeDevice{{Name: volumeName, DevicePath: DevicePath}}
}

const (
	// tmpSize is for what libraries put there; the mover itself uses its home.
	tmpSize = "256Mi"
	// connectionSize is for a few files of some KiB.
	connectionSize = "8Mi"
	// tokenSeconds is how long a token lives; the kubelet renews it at 80 % of that.
	tokenSeconds = 3600
)

func scratch(name string, size resource.Quantity) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}}
}

func inMemory(name string, size resource.Quantity) corev1.Volume {
	volume := scratch(name, size)
	volume.EmptyDir.Medium = corev1.StorageMediumMemory
	return volume
}

func secret(volume, name, key string) corev1.Volume {
	return corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: name, Items: []corev1.KeyToPath{{Key: key, Path: key}},
	}}}
}

// secrets is a volume with <secret>/<key> for each selector.
func secrets(volume string, selectors []corev1.SecretKeySelector) corev1.Volume {
	sources := make([]corev1.VolumeProjection, len(selectors))
	for i, s := range selectors {
		sources[i].Secret = &corev1.SecretProjection{
			LocalObjectReference: s.LocalObjectReference,
			Items:                []corev1.KeyToPath{{Key: s.Key, Path: s.Name + "/" + s.Key}},
		}
	}
	return corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}}
}

func token(volume, audience string) corev1.Volume {
	seconds := int64(tokenSeconds)
	return corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: audience, ExpirationSeconds: &seconds, Path: tokenFile,
		}}},
	}}}
}
