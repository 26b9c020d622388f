package exposer

import (
	"fmt"
	"slices"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// jobComponent is the label of pods that only read the repository.
	jobComponent = "reader"
	// jobKeptSeconds is how long a Job stays after its end, if nobody deletes it.
	jobKeptSeconds = 600
)

// Reader builds a Job that runs a local command of blockmover on a repository of the cluster. Its pod
// is a mover pod without a volume. Nothing stays of it, also if nobody deletes it.
func (p PodPlan) Reader(namespace, prefix string, args []string) (*batchv1.Job, error) {
	pod, err := p.Pod()
	if err != nil {
		return nil, fmt.Errorf("plan job: %w", err)
	}
	spec := pod.Spec
	container := &spec.Containers[0]
	container.Command, container.Args = []string{"/blockmover"}, args
	container.VolumeDevices = nil
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == volumeName })
	spec.TopologySpreadConstraints = nil
	labels := map[string]string{labelAppName: appName, labelComponent: jobComponent}
	kept, tries := int32(jobKeptSeconds), int32(0)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: prefix, Labels: labels},
		Spec: batchv1.JobSpec{
			BackoffLimit: &tries, TTLSecondsAfterFinished: &kept, ActiveDeadlineSeconds: spec.ActiveDeadlineSeconds,
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}, nil
}

// Containers of a RestoreTest.
const (
	RestoreContainer = "restore"
	CheckContainer   = "check"
)

// RestoreTest is a restore onto a scratch volume, whose file system is checked.
type RestoreTest struct {
	// Restore are the arguments of blockmover, which writes DevicePath.
	Restore []string
	// Check is the command that looks at DevicePath, in the image ToolsImage.
	Check      []string
	ToolsImage string
	// Class is the storage class of the scratch volume; "" is the default of the cluster. Size is in
	// bytes.
	Class string
	Size  int64
}

// RestoreTest builds a Job that restores an image and then checks it. The scratch volume is made and
// deleted with the pod. Both containers are as little privileged as a mover pod. What checks reads bytes
// of a tenant with programs in C, so it has nothing but the volume: no credential, and no token of the API
// server.
func (p PodPlan) RestoreTest(namespace, prefix string, t RestoreTest) (*batchv1.Job, error) {
	job, err := p.Reader(namespace, prefix, t.Restore)
	if err != nil {
		return nil, err
	}
	spec := &job.Spec.Template.Spec
	devices := []corev1.VolumeDevice{{Name: volumeName, DevicePath: DevicePath}}
	restore := spec.Containers[0]
	restore.Name, restore.VolumeDevices = RestoreContainer, devices
	check := corev1.Container{
		Name: CheckContainer, Image: t.ToolsImage, ImagePullPolicy: restore.ImagePullPolicy, Command: t.Check,
		VolumeDevices: devices, Resources: restore.Resources, SecurityContext: restore.SecurityContext,
		TerminationMessagePolicy: restore.TerminationMessagePolicy,
	}
	no := false
	spec.AutomountServiceAccountToken = &no
	restore.VolumeMounts = append(restore.VolumeMounts, corev1.VolumeMount{Name: apiAccess, MountPath: apiAccessPath, ReadOnly: true})
	spec.InitContainers, spec.Containers = []corev1.Container{restore}, []corev1.Container{check}
	spec.Volumes = append(spec.Volumes, scratchDevice(t.Class, t.Size), apiAccessVolume())
	return job, nil
}

const (
	apiAccess = "api-access"
	// apiAccessPath is where clients look for the access to the API server from within a pod.
	apiAccessPath = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// apiAccessVolume has what Kubernetes otherwise mounts into each container of a pod.
func apiAccessVolume() corev1.Volume {
	seconds := int64(tokenSeconds)
	return corev1.Volume{Name: apiAccess, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}},
			}}},
		},
	}}}
}

// Keeps reports whether the volume of a PVC of a class stays when the PVC is deleted. Such a class is
// not for a volume that is made and deleted with a pod.
func Keeps(class *storagev1.StorageClass) bool {
	return class.ReclaimPolicy != nil && *class.ReclaimPolicy != corev1.PersistentVolumeReclaimDelete
}

// scratchDevice is a Block volume of the pod.
func scratchDevice(class string, size int64) corev1.Volume {
	mode := corev1.PersistentVolumeBlock
	claim := corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		VolumeMode:  &mode, Resources: requestStorage(*resource.NewQuantity(size, resource.BinarySI)),
	}
	if class != "" {
		claim.StorageClassName = &class
	}
	return corev1.Volume{Name: volumeName, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
		VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{velerov1.ExcludeFromBackupLabel: "true"}}, Spec: claim,
		},
	}}}
}
