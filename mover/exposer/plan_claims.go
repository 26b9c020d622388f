package exposer

import (
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
)

// PlanBackupVolume returns the PVC that a backup reads. It has the content of the re-homed
// VolumeSnapshot, as a block device whatever the mode of the source.
func PlanBackupVolume(op identity.Operation, snapshot, class string, size int64, pvcConfig config.BackupPVC) *corev1.PersistentVolumeClaim {
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metaOf(op)}
	for key, value := range pvcConfig.Annotations {
		if _, taken := pvc.Annotations[key]; !taken {
			pvc.Annotations[key] = value
		}
	}
	if pvcConfig.StorageClass != "" {
		class = pvcConfig.StorageClass
	}
	mode, access := corev1.PersistentVolumeBlock, corev1.ReadWriteOnce
	switch {
	case pvcConfig.ReadOnly:
		access = corev1.ReadOnlyMany
	case pvcConfig.ReadWriteOncePod:
		access = corev1.ReadWriteOncePod
	}
	pvc.Spec = corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{access},
		VolumeMode:  &mode,
		DataSource: &corev1.TypedLocalObjectReference{
			APIGroup: &snapshotv1.SchemeGroupVersion.Group,
			Kind:     "VolumeSnapshot",
			Name:     snapshot,
		},
		Resources: requestStorage(*resource.NewQuantity(size, resource.BinarySI)),
	}
	if class != "" {
		pvc.Spec.StorageClassName = &class
	}
	return pvc
}

// RestoreVolume is what a restore writes.
type RestoreVolume struct {
	Target *corev1.PersistentVolumeClaim
	// Class replaces that of the target; "" does not.
	Class string
	// Size of the image in bytes. The target may ask for less: a volume may be larger than its
	// PVC requested.
	Size int64
	// Node is where the target's first pod was scheduled, or "".
	Node string
	// Filesystem makes it a Filesystem volume, for a disk of a VM in a file.
	Filesystem bool
}

// PlanRestoreVolume returns the empty PVC that a restore writes. It is what the target asks
// for, but as a block device unless Filesystem is set, and for one pod alone: a mover pod that
// is cut off with its node must not write beside the next one.
func PlanRestoreVolume(op identity.Operation, v RestoreVolume) *corev1.PersistentVolumeClaim {
	target, class := v.Target, v.Target.Spec.StorageClassName
	if v.Class != "" {
		class = &v.Class
	}
	size := target.Spec.Resources.Requests[corev1.ResourceStorage]
	if image := resource.NewQuantity(v.Size, resource.BinarySI); size.Cmp(*image) < 0 {
		size = *image
	}
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metaOf(op)}
	for key, value := range target.Annotations {
		if isForDriver(key) {
			pvc.Annotations[key] = value
		}
	}
	if v.Node != "" {
		pvc.Annotations[annotationSelectedNode] = v.Node
	}
	mode := corev1.PersistentVolumeBlock
	if v.Filesystem {
		mode = corev1.PersistentVolumeFilesystem
	}
	pvc.Spec = corev1.PersistentVolumeClaimSpec{
		AccessModes:               []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
		StorageClassName:          class,
		VolumeAttributesClassName: target.Spec.VolumeAttributesClassName,
		VolumeMode:                &mode,
		Resources:                 requestStorage(size),
	}
	return pvc
}

// isForDriver reports whether an annotation of a PVC may be for its storage driver. Those
// of Kubernetes, Velero and Blockmover record state.
func isForDriver(key string) bool {
	domain, _, _ := strings.Cut(key, "/")
	for _, other := range []string{"kubernetes.io", "k8s.io", "velero.io", "blockmover.io"} {
		if domain == other || strings.HasSuffix(domain, "."+other) {
			return false
		}
	}
	return true
}

func requestStorage(size resource.Quantity) corev1.VolumeResourceRequirements {
	return corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}}
}
