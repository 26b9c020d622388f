package exposer

import (
	"context"
	"fmt"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
)

// Handover is how far the hand-over of a restored volume has come.
type Handover struct {
	// Committed is set once the volume belongs to the target PVC. It is never taken back.
	Committed bool
	// Delivered is set once the target PVC is bound to the volume.
	Delivered bool
	// Waiting is what the hand-over waits for until then.
	Waiting string
}

// Rebind gives the restored volume to the target PVC, step by step:
//
//	protect  the restored PV is set to Retain
//	park     the rebind PV is created: the same volume, reserved for nobody, Retain
//	retire   pod, PVC and restored PV are deleted, and gone
//	commit   the rebind PV is reserved for the target PVC
//	settle   once bound, the rebind PV gets the reclaim policy of its class
//
// From park on, an object always holds the volume's handle, so no crash orphans the volume.
// The two PVs never serve pods at the same time: the restored one, and its attachment to the
// node, are gone before the target's pod can start. The reclaim policy comes last: a
// provisioner that sees Delete on an unbound PV might act on it.
func (e *Exposer) Rebind(ctx context.Context, op identity.Operation, targetKey client.ObjectKey, mount Mount) (Handover, error) {
	target, err := findClaim(ctx, e.Reader, targetKey)
	if err != nil {
		return Handover{}, err
	}
	rebind, err := findVolume(ctx, e.Reader, op.RebindVolumeName())
	if err != nil {
		return Handover{}, err
	}
	if rebind != nil && !isParked(rebind, e.Namespace) {
		if rebind.Spec.ClaimRef == nil && target != nil {
			if err := commit(ctx, e.Client, rebind, target); err != nil {
				return Handover{Committed: true}, err
			}
		}
		return settle(ctx, e.Client, rebind, targetKey, target)
	}
	if err := wantsVolume(targetKey, target); err != nil {
		return Handover{}, err
	}
	if rebind == nil {
		if rebind, err = e.park(ctx, op, target, mount); err != nil {
			return Handover{}, err
		}
	}
	waiting, err := e.retire(ctx, op, rebind.Annotations[identity.AnnotationRestoredVolume])
	if err != nil || waiting != "" {
		return Handover{Waiting: waiting}, err
	}
	if err := commit(ctx, e.Client, rebind, target); err != nil {
		return Handover{}, err
	}
	return settle(ctx, e.Client, rebind, targetKey, target)
}

// wantsVolume checks that the target can still take the volume.
func wantsVolume(key client.ObjectKey, target *corev1.PersistentVolumeClaim) error {
	switch {
	case target == nil || target.DeletionTimestamp != nil:
		return fmt.Errorf("%w: target PVC %s was deleted during the restore", phase.ErrBroken, key)
	case target.Spec.VolumeName != "":
		return fmt.Errorf("%w: target PVC %s is bound to PV %s already", phase.ErrBroken, key, target.Spec.VolumeName)
	}
	return nil
}

// park creates the rebind PV.
func (e *Exposer) park(ctx context.Context, op identity.Operation, target *corev1.PersistentVolumeClaim, mount Mount) (*corev1.PersistentVolume, error) {
	claim, err := findClaim(ctx, e.Reader, e.keyOf(op))
	if err != nil {
		return nil, err
	}
	if claim == nil || claim.Spec.VolumeName == "" {
		return nil, fmt.Errorf("%w: PVC %s, which the restore wrote, is gone", phase.ErrBroken, e.keyOf(op))
	}
	restored, err := findVolume(ctx, e.Reader, claim.Spec.VolumeName)
	if err != nil {
		return nil, err
	}
	if restored == nil || restored.DeletionTimestamp != nil {
		return nil, fmt.Errorf("%w: PV %s, which the restore wrote, is gone", phase.ErrBroken, claim.Spec.VolumeName)
	}
	if err := takeCharge(ctx, e.Client, op, restored, corev1.PersistentVolumeReclaimRetain); err != nil {
		return nil, err
	}
	rebind, err := PlanRebind(op, e.Namespace, restored, target, mount)
	if err != nil {
		return nil, err
	}
	if err := e.Client.Create(ctx, rebind); err != nil {
		return nil, fmt.Errorf("create rebind PV %s: %w", rebind.Name, err)
	}
	return rebind, nil
}

// retire deletes the pod, the PVC and the restored PV one after the other, and returns what
// it waits for.
func (e *Exposer) retire(ctx context.Context, op identity.Operation, restoredName string) (string, error) {
	if left, err := e.releasePod(ctx, op); err != nil || left != "" {
		return left, err
	}
	restored, err := findVolume(ctx, e.Reader, restoredName)
	if err != nil {
		return "", err
	}
	if restored != nil && restored.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		return "", fmt.Errorf("retire PV %s: its reclaim policy is %s again, want %s",
			restoredName, restored.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	}
	if left, err := e.releaseClaim(ctx, op); err != nil || left != "" {
		return left, err
	}
	if restored == nil {
		return "", nil
	}
	return "PV " + restoredName + " is being detached and deleted" + heldBy(restored), kube.Delete(ctx, e.Client, restored)
}

// heldBy names the finalizers of an object that is being deleted: their owners have not let go
// of it yet.
func heldBy(object client.Object) string {
	if object.GetDeletionTimestamp() == nil || len(object.GetFinalizers()) == 0 {
		return ""
	}
	return " (held by " + strings.Join(object.GetFinalizers(), ", ") + ")"
}

// commit reserves the rebind PV for the target, including its UID. If the target is deleted,
// the reclaim policy applies to the volume; it is not bound to another PVC of the same name.
func commit(ctx context.Context, c client.Writer, rebind *corev1.PersistentVolume, target *corev1.PersistentVolumeClaim) error {
	before := rebind.DeepCopy()
	rebind.Spec.ClaimRef = &corev1.ObjectReference{
		APIVersion: "v1",
		Kind:       "PersistentVolumeClaim",
		Namespace:  target.Namespace,
		Name:       target.Name,
		UID:        target.UID,
	}
	delete(rebind.Annotations, identity.AnnotationRestoredVolume) // it is not parked any more
	if err := c.Patch(ctx, rebind, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("reserve PV %s for PVC %s/%s: %w", rebind.Name, target.Namespace, target.Name, err)
	}
	return nil
}

// settle lets go of a committed PV once it is bound, or once it is clear that it never will
// be.
func settle(ctx context.Context, c client.Writer, rebind *corev1.PersistentVolume, targetKey client.ObjectKey, target *corev1.PersistentVolumeClaim) (Handover, error) {
	if target == nil || target.UID != rebind.Spec.ClaimRef.UID {
		if err := letGo(ctx, c, rebind); err != nil {
			return Handover{Committed: true}, err
		}
		return Handover{Committed: true}, fmt.Errorf("%w: target PVC %s was deleted while it was bound to the restored volume",
			phase.ErrBroken, targetKey)
	}
	if target.Spec.VolumeName != rebind.Name || target.Status.Phase != corev1.ClaimBound || rebind.Status.Phase != corev1.VolumeBound {
		return Handover{
			Committed: true,
			Waiting:   fmt.Sprintf("PVC %s/%s is being bound to PV %s", target.Namespace, target.Name, rebind.Name),
		}, nil
	}
	if err := letGo(ctx, c, rebind); err != nil {
		return Handover{Committed: true}, err
	}
	return Handover{Committed: true, Delivered: true}, nil
}

// letGo gives a committed PV the reclaim policy of its class, and removes the labels and
// annotations of the operation.
func letGo(ctx context.Context, c client.Writer, rebind *corev1.PersistentVolume) error {
	if _, ours := rebind.Labels[identity.LabelOperation]; !ours {
		return nil
	}
	before := rebind.DeepCopy()
	if policy := rebind.Annotations[identity.AnnotationReclaimPolicy]; policy != "" {
		rebind.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimPolicy(policy)
	}
	delete(rebind.Labels, identity.LabelOperation)
	delete(rebind.Labels, velerov1.ExcludeFromBackupLabel)
	for _, mark := range []string{identity.AnnotationReclaimPolicy, identity.AnnotationRestoredVolume, identity.AnnotationOperation} {
		delete(rebind.Annotations, mark)
	}
	err := c.Patch(ctx, rebind, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("give PV %s its reclaim policy: %w", rebind.Name, err)
	}
	return nil
}

// Release deletes the objects of the operation: the pod, the PVC with its volume, and the
// rebind PV unless it is committed, or the alias PV without its volume. It returns what still
// exists. It never touches a volume that was committed to a user's PVC.
func (e *Exposer) Release(ctx context.Context, op identity.Operation) ([]string, error) {
	if left, err := e.releasePod(ctx, op); err != nil || left != "" {
		return nonEmpty(left), err
	}
	alias, err := findVolume(ctx, e.Reader, op.AliasVolumeName())
	if err != nil {
		return nil, err
	}
	if alias != nil {
		return e.releaseAlias(ctx, op, alias)
	}
	claim, err := findClaim(ctx, e.Reader, e.keyOf(op))
	if err != nil {
		return nil, err
	}
	if claim != nil {
		if err := e.adopt(ctx, op, claim.Spec.VolumeName); err != nil {
			return nil, err
		}
	}
	rebind, own, err := e.volumesOf(ctx, op)
	if err != nil {
		return nil, err
	}
	if rebind != nil {
		if left, err := e.releaseRebind(ctx, op, rebind, own); err != nil || left != "" {
			return nonEmpty(left), err
		}
	}
	var left []string
	for _, pv := range own {
		left = append(left, "PV "+pv.Name)
		if pv.DeletionTimestamp != nil {
			continue
		}
		err := takeCharge(ctx, e.Client, op, pv, corev1.PersistentVolumeReclaimDelete)
		if client.IgnoreNotFound(err) != nil {
			return nil, err
		}
	}
	still, err := e.releaseClaim(ctx, op)
	if err != nil {
		return nil, err
	}
	return append(left, nonEmpty(still)...), nil
}

// volumesOf returns the PVs of the operation: the rebind PV, or nil, and the others.
func (e *Exposer) volumesOf(ctx context.Context, op identity.Operation) (rebind *corev1.PersistentVolume, own []*corev1.PersistentVolume, err error) {
	volumes := &corev1.PersistentVolumeList{}
	if err := e.Reader.List(ctx, volumes, client.MatchingLabels{identity.LabelOperation: op.UID}); err != nil {
		return nil, nil, fmt.Errorf("list PVs of operation %s: %w", op.UID, err)
	}
	for i := range volumes.Items {
		if pv := &volumes.Items[i]; pv.Name == op.RebindVolumeName() {
			rebind = pv
		} else {
			own = append(own, pv)
		}
	}
	return rebind, own, nil
}

// releaseRebind undoes a hand-over that is not committed. It lets go of a committed PV.
func (e *Exposer) releaseRebind(ctx context.Context, op identity.Operation, rebind *corev1.PersistentVolume, restored []*corev1.PersistentVolume) (string, error) {
	if !isParked(rebind, e.Namespace) {
		return "", letGo(ctx, e.Client, rebind)
	}
	for _, pv := range restored {
		if pv.DeletionTimestamp != nil {
			return "PV " + pv.Name, nil // from now on, only the rebind PV can delete the volume
		}
	}
	if rebind.DeletionTimestamp != nil {
		return "PV " + rebind.Name, nil
	}
	if len(restored) > 0 {
		// The restored PV still holds the volume, so the rebind PV can be deleted.
		return "PV " + rebind.Name, kube.Delete(ctx, e.Client, rebind)
	}
	// Only the rebind PV holds the volume. With a claim that does not exist it becomes
	// Released, and its provisioner deletes it.
	before := rebind.DeepCopy()
	rebind.Spec.ClaimRef = parking(op, e.Namespace)
	rebind.Spec.ClaimRef.UID = types.UID(op.UID)
	rebind.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	err := e.Client.Patch(ctx, rebind, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("release PV %s: %w", rebind.Name, err)
	}
	return "PV " + rebind.Name, nil
}

// releasePod deletes the mover pod and names it until it is gone.
func (e *Exposer) releasePod(ctx context.Context, op identity.Operation) (string, error) {
	pod, err := kube.Find(ctx, e.Reader, e.keyOf(op), &corev1.Pod{})
	if err != nil || pod == nil {
		return "", err
	}
	return "pod " + e.keyOf(op).String() + heldBy(pod), e.DeletePod(ctx, pod)
}

// releaseClaim deletes the PVC and names it until it is gone.
func (e *Exposer) releaseClaim(ctx context.Context, op identity.Operation) (string, error) {
	claim, err := findClaim(ctx, e.Reader, e.keyOf(op))
	if err != nil || claim == nil {
		return "", err
	}
	return "PVC " + e.keyOf(op).String() + heldBy(claim), kube.Delete(ctx, e.Client, claim)
}

func nonEmpty(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
}
