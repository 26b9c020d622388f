package vmbackup

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/phase"
)

// The size of the volume for the files. Even an incremental backup of a disk that was written
// everywhere is as large as the disk. ext4 keeps 5 % for root, which QEMU is not.
const (
	scratchPercent = 115
	scratchLeast   = 128 << 20
)

// planScratch returns the PVC that QEMU writes into.
func (m *Maker) planScratch(ctx context.Context, r Request, s *State, vm *unstructured.Unstructured) (*corev1.PersistentVolumeClaim, error) {
	class, size := r.StorageClass, int64(0)
	for _, d := range kubevirt.Disks(vm) {
		disk, err := kube.Find(ctx, m.Reader, client.ObjectKey{Namespace: r.Namespace, Name: d.Claim}, &corev1.PersistentVolumeClaim{})
		if err != nil {
			return nil, err
		}
		if disk == nil {
			continue
		}
		capacity := disk.Status.Capacity[corev1.ResourceStorage]
		size += capacity.Value()
		if class == "" && disk.Spec.StorageClassName != nil {
			class = *disk.Spec.StorageClassName
		}
	}
	size = size/100*scratchPercent + scratchLeast
	for range s.NoSpace {
		size *= scratchGrowth
	}
	return planClaim(identity.VMAttemptName(r.Name, s.Attempt), r.Namespace, r, class, *resource.NewQuantity(size, resource.BinarySI)), nil
}

func planClaim(name, namespace string, r Request, class string, size resource.Quantity) *corev1.PersistentVolumeClaim {
	mode := corev1.PersistentVolumeFilesystem
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels(r.Name), Annotations: r.Operation.Annotations()},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			VolumeMode:  &mode,
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}},
		},
	}
	if class != "" {
		claim.Spec.StorageClassName = &class
	}
	return claim
}

// rehome gives the volume with the files to a PVC in Velero's namespace. The VM cannot write to it
// any more.
func (m *Maker) rehome(ctx context.Context, r Request, s *State) (Progress, error) {
	pv, err := kube.Find(ctx, m.Reader, client.ObjectKey{Name: s.Files.Volume}, &corev1.PersistentVolume{})
	switch {
	case err != nil:
		return Progress{}, err
	case pv == nil || pv.DeletionTimestamp != nil:
		return Progress{}, fmt.Errorf("%w: somebody deleted PersistentVolume %s, which has the files of VM %s/%s", phase.ErrBroken, s.Files.Volume, r.Namespace, r.VM)
	}
	key := client.ObjectKey{Namespace: m.Namespace, Name: r.Name}
	claimRef := pv.Spec.ClaimRef
	if claimRef == nil || claimRef.Namespace != m.Namespace || claimRef.Name != r.Name {
		if err := m.mark(ctx, r, pv, corev1.PersistentVolumeReclaimRetain, claimRef); err != nil {
			return Progress{}, err
		}
		if left, err := m.releaseAttempt(ctx, client.ObjectKey{Namespace: r.Namespace, Name: s.Files.Backup}); err != nil || left != "" {
			return Progress{Waiting: left + " is being deleted"}, err
		}
		ours := &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: key.Namespace, Name: key.Name}
		if err := m.mark(ctx, r, pv, corev1.PersistentVolumeReclaimRetain, ours); err != nil {
			return Progress{}, err
		}
	}
	claim, err := kube.Find(ctx, m.Reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return Progress{}, err
	}
	if claim == nil {
		claim = planClaim(key.Name, key.Namespace, r, pv.Spec.StorageClassName, pv.Spec.Capacity[corev1.ResourceStorage])
		claim.Spec.AccessModes, claim.Spec.VolumeName = pv.Spec.AccessModes, pv.Name
		claim.Spec.StorageClassName = &pv.Spec.StorageClassName
		if err := kube.Ensure(ctx, m.Client, claim); err != nil {
			return Progress{}, err
		}
	}
	if claim.Status.Phase != corev1.ClaimBound {
		return Progress{Waiting: fmt.Sprintf("PVC %s is being bound to PV %s", key, pv.Name)}, nil
	}
	if err := m.mark(ctx, r, pv, corev1.PersistentVolumeReclaimDelete, pv.Spec.ClaimRef); err != nil {
		return Progress{}, err
	}
	s.Ready = true
	return Progress{}, nil
}

// mark sets the reclaim policy and the claim of a PV, and labels it as the backup's.
func (m *Maker) mark(ctx context.Context, r Request, pv *corev1.PersistentVolume, policy corev1.PersistentVolumeReclaimPolicy, claim *corev1.ObjectReference) error {
	before := pv.DeepCopy()
	for key, value := range labels(r.Name) {
		kube.SetLabel(pv, key, value)
	}
	for key, value := range r.Operation.Annotations() {
		kube.SetAnnotation(pv, key, value)
	}
	pv.Spec.PersistentVolumeReclaimPolicy, pv.Spec.ClaimRef = policy, claim
	if equality.Semantic.DeepEqual(before, pv) {
		return nil
	}
	diff := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := m.Client.Patch(ctx, pv, diff); err != nil {
		return fmt.Errorf("set reclaim policy of PV %s to %s: %w", pv.Name, policy, err)
	}
	return nil
}
