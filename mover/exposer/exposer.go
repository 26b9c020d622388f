// Package exposer presents a volume as a block device to a mover pod. Afterwards it deletes
// the volume of a backup, and hands the volume of a restore over to its PVC.
//
// An operation (a DataUpload or DataDownload) has these objects in Velero's namespace, all
// with the name that is derived from its UID:
//
//	volume   a Block-mode PVC, created from the re-homed VolumeSnapshot, or empty
//	pod      the mover pod, which has the volume as DevicePath
//
// and, while a restored volume changes hands, the rebind PV (see Rebind). An in-place restore
// writes the volume of a live PVC, which it has through an alias PV (see EnsureAlias).
//
// Each Ensure creates what is missing. Each Release deletes what exists, and returns what
// still does. Neither waits: the caller calls again when something changes. All objects have
// the label of the operation, so Release needs only its UID. The PV of the volume has the
// label as well, and is deleted with its PVC whatever its class says: only the operation
// uses it. An alias has another label, and its volume is never deleted.
package exposer

import (
	"context"
	"fmt"
	"strconv"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// Exposer creates and releases the objects of operations. All fields are required.
type Exposer struct {
	// Client writes, and reads from a cache that has the objects with the label of an
	// operation.
	Client client.Client
	// Reader reads from the API server. It is used if a stale answer could lose or leak a
	// volume.
	Reader client.Reader
	// Logs reads the logs of mover pods.
	Logs Logs
	// Namespace is Velero's.
	Namespace string
}

// metaOf is the metadata of an object of the operation. Release and the sweep delete the
// object; the owner reference is there in case neither can.
func metaOf(op identity.Operation) metav1.ObjectMeta {
	controls := true
	meta := metav1.ObjectMeta{
		Namespace:   op.Namespace,
		Name:        op.ObjectName(),
		Labels:      op.Labels(),
		Annotations: op.Annotations(),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: velerov2alpha1.SchemeGroupVersion.String(),
			Kind:       op.Kind,
			Name:       op.Name,
			UID:        types.UID(op.UID),
			Controller: &controls,
		}},
	}
	meta.Labels[velerov1.ExcludeFromBackupLabel] = "true"
	return meta
}

// EnsureVolume creates the planned PVC of the operation if it does not exist, and adopts
// its PV once it is bound.
func (e *Exposer) EnsureVolume(ctx context.Context, op identity.Operation, plan func() (*corev1.PersistentVolumeClaim, error)) error {
	pvc, err := kube.Find(ctx, e.Client, e.keyOf(op), &corev1.PersistentVolumeClaim{})
	if err != nil {
		return err
	}
	if pvc != nil {
		return e.adopt(ctx, op, pvc.Spec.VolumeName)
	}
	if pvc, err = plan(); err != nil {
		return err
	}
	return kube.Ensure(ctx, e.Client, pvc)
}

// AdoptVolume adopts the PV of the operation's PVC once it is bound. With a
// WaitForFirstConsumer class, that is after the pod was scheduled.
func (e *Exposer) AdoptVolume(ctx context.Context, op identity.Operation) error {
	pvc, err := kube.Find(ctx, e.Client, e.keyOf(op), &corev1.PersistentVolumeClaim{})
	if err != nil || pvc == nil {
		return err
	}
	return e.adopt(ctx, op, pvc.Spec.VolumeName)
}

// adopt labels a PV as the operation's, and lets it be deleted with its PVC. It does nothing
// for a PVC that is not bound, whose PV is "", and for an alias, whose volume is a user's.
func (e *Exposer) adopt(ctx context.Context, op identity.Operation, name string) error {
	if name == "" || identity.IsAliasVolumeName(name) {
		return nil
	}
	pv := &corev1.PersistentVolume{}
	if err := e.Client.Get(ctx, client.ObjectKey{Name: name}, pv); err == nil && pv.Labels[identity.LabelOperation] == op.UID {
		return nil
	}
	pv, err := findVolume(ctx, e.Reader, name)
	if err != nil || pv == nil {
		return err
	}
	return takeCharge(ctx, e.Client, op, pv, corev1.PersistentVolumeReclaimDelete)
}

// takeCharge sets the reclaim policy of a PV of the operation, and records the original
// one.
func takeCharge(ctx context.Context, c client.Writer, op identity.Operation, pv *corev1.PersistentVolume, policy corev1.PersistentVolumeReclaimPolicy) error {
	if identity.IsAliasVolumeName(pv.Name) {
		return fmt.Errorf("set reclaim policy of PV %s to %s: its volume belongs to a user", pv.Name, policy)
	}
	if pv.Spec.PersistentVolumeReclaimPolicy == policy && pv.Labels[identity.LabelOperation] == op.UID {
		return nil
	}
	before := pv.DeepCopy()
	if pv.Annotations[identity.AnnotationReclaimPolicy] == "" {
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, identity.AnnotationReclaimPolicy, string(pv.Spec.PersistentVolumeReclaimPolicy))
	}
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, identity.AnnotationOperation, op.Reference())
	metav1.SetMetaDataLabel(&pv.ObjectMeta, identity.LabelOperation, op.UID)
	metav1.SetMetaDataLabel(&pv.ObjectMeta, velerov1.ExcludeFromBackupLabel, "true")
	pv.Spec.PersistentVolumeReclaimPolicy = policy
	if err := c.Patch(ctx, pv, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("set reclaim policy of PV %s to %s: %w", pv.Name, policy, err)
	}
	return nil
}

// FindPod returns the mover pod of the operation, or nil if it does not exist. It may be
// the pod of an earlier attempt; see AttemptOf.
func (e *Exposer) FindPod(ctx context.Context, op identity.Operation) (*corev1.Pod, error) {
	return kube.Find(ctx, e.Client, e.keyOf(op), &corev1.Pod{})
}

// AttemptOf returns the number of the attempt that a mover pod was created for, or 0 if
// the pod does not say.
func AttemptOf(pod *corev1.Pod) int {
	n, err := strconv.Atoi(pod.Annotations[identity.AnnotationAttemptNumber])
	if err != nil {
		return 0
	}
	return n
}

// CreatePod creates the mover pod. It is no error if the pod exists: the cache may be late.
func (e *Exposer) CreatePod(ctx context.Context, pod *corev1.Pod) error {
	return kube.Ensure(ctx, e.Client, pod)
}

// podGraceSeconds is the time that a deleted mover pod has to close what it has open. Its
// report is not needed any more.
const podGraceSeconds = 5

// DeletePod deletes a mover pod. It does not wait until the pod is gone.
func (e *Exposer) DeletePod(ctx context.Context, pod *corev1.Pod) error {
	return kube.Delete(ctx, e.Client, pod, client.GracePeriodSeconds(podGraceSeconds))
}

// findVolume returns nil if the PV does not exist.
func findVolume(ctx context.Context, r client.Reader, name string) (*corev1.PersistentVolume, error) {
	return kube.Find(ctx, r, client.ObjectKey{Name: name}, &corev1.PersistentVolume{})
}

// findClaim returns nil if the PVC does not exist.
func findClaim(ctx context.Context, r client.Reader, key client.ObjectKey) (*corev1.PersistentVolumeClaim, error) {
	return kube.Find(ctx, r, key, &corev1.PersistentVolumeClaim{})
}

// keyOf is the key of the operation's objects.
func (e *Exposer) keyOf(op identity.Operation) client.ObjectKey {
	return client.ObjectKey{Namespace: e.Namespace, Name: op.ObjectName()}
}
