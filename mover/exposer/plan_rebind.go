package exposer

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
)

// SelectedNode returns the node that the scheduler chose for a PVC, or "".
func SelectedNode(pvc *corev1.PersistentVolumeClaim) string {
	return pvc.Annotations[annotationSelectedNode]
}

// targetLabels are the labels that the selector of a target PVC requires of its PV. Velero's
// restore sets a selector with velero.io/dynamic-pv-restore, so that no other volume is
// provisioned in the meantime. A tenant who writes the selector must not write our labels.
func targetLabels(target *corev1.PersistentVolumeClaim) (map[string]string, error) {
	if target.Spec.Selector == nil {
		return nil, nil
	}
	for key := range target.Spec.Selector.MatchLabels {
		if strings.HasPrefix(key, identity.Domain) {
			return nil, fmt.Errorf("%w: the selector of target PVC %s/%s asks for label %s, which is Blockmover's own: remove it from the PVC",
				phase.ErrBroken, target.Namespace, target.Name, key)
		}
	}
	return target.Spec.Selector.MatchLabels, nil
}

// PlanRebind returns the PV that gives the restored volume to the target PVC: the same
// volume with the mode of the target. It is parked until Rebind commits it: it is retained,
// and reserved for a PVC that never exists.
//
// Finalizers are not copied. Each controller sets its own again (the provisioner once the PV
// is bound and has the policy Delete), and a finalizer without its controller would keep the
// PV forever.
func PlanRebind(op identity.Operation, namespace string, restored *corev1.PersistentVolume, target *corev1.PersistentVolumeClaim, mount Mount) (*corev1.PersistentVolume, error) {
	if restored.Spec.CSI == nil {
		return nil, fmt.Errorf("plan rebind PV: %w: PV %s is not a CSI volume", phase.ErrBroken, restored.Name)
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        op.RebindVolumeName(),
			Labels:      map[string]string{},
			Annotations: map[string]string{},
		},
		Spec: *restored.Spec.DeepCopy(),
	}
	maps.Copy(pv.Labels, restored.Labels)
	selected, err := targetLabels(target)
	if err != nil {
		return nil, fmt.Errorf("plan rebind PV: %w", err)
	}
	maps.Copy(pv.Labels, selected)
	maps.Copy(pv.Annotations, restored.Annotations)
	delete(pv.Annotations, "pv.kubernetes.io/bound-by-controller")
	pv.Annotations[identity.AnnotationRestoredVolume] = restored.Name
	mode := corev1.PersistentVolumeFilesystem
	if target.Spec.VolumeMode != nil {
		mode = *target.Spec.VolumeMode
	}
	pv.Spec.VolumeMode = &mode
	if restored.Spec.VolumeMode == nil || *restored.Spec.VolumeMode != corev1.PersistentVolumeFilesystem {
		pv.Spec.CSI.FSType = "" // it was restored as a block device
	}
	if mode == corev1.PersistentVolumeFilesystem && pv.Spec.CSI.FSType == "" {
		pv.Spec.CSI.FSType = mount.Filesystem
		if mount.Filesystem == "xfs" && !slices.Contains(pv.Spec.MountOptions, noUUID) {
			pv.Spec.MountOptions = append(pv.Spec.MountOptions, noUUID)
		}
	}
	mount.resolveSecrets(pv.Spec.CSI, target, restored.Name)
	if target.Spec.StorageClassName != nil {
		pv.Spec.StorageClassName = *target.Spec.StorageClassName
	}
	pv.Spec.AccessModes = slices.Clone(target.Spec.AccessModes)
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	pv.Spec.ClaimRef = parking(op, namespace)
	return pv, nil
}

// noUUID lets XFS mount a volume beside another one with the same UUID. A restored volume has
// the UUID of its original.
const noUUID = "nouuid"

// parking is a claim that never exists.
func parking(op identity.Operation, namespace string) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: "v1",
		Kind:       "PersistentVolumeClaim",
		Namespace:  namespace,
		Name:       op.RebindVolumeName(),
	}
}

// isParked reports whether a rebind PV is reserved for nobody. If somebody has removed its
// claimRef, its annotation says whether it was committed.
func isParked(pv *corev1.PersistentVolume, namespace string) bool {
	ref := pv.Spec.ClaimRef
	if ref == nil {
		return pv.Annotations[identity.AnnotationRestoredVolume] != ""
	}
	return ref.Namespace == namespace && ref.Name == pv.Name
}

// FilesystemOf returns what the external provisioner would write into the PV of a Filesystem
// volume of the class. For classes without a value this is ext4, which nearly all drivers
// set as the provisioner's default. Without any value Kubernetes would not apply fsGroup.
func FilesystemOf(parameters map[string]string) string {
	for key, value := range parameters {
		if value != "" && (strings.EqualFold(key, "fstype") || key == "csi.storage.k8s.io/fstype") {
			return value
		}
	}
	return "ext4"
}
