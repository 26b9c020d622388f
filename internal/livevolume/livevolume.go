// Package livevolume reads what the cluster says about the volume of a PVC that is in use, or
// may be, for an in-place restore. It changes nothing. Package inplace decides.
package livevolume

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/kube"
)

// Look reads a PVC and what belongs to it from the API server. The PersistentVolume is nil if
// the PVC has none. The Volume names no nodes; see Nodes.
func Look(ctx context.Context, reader client.Reader, claim *corev1.PersistentVolumeClaim) (inplace.Volume, *corev1.PersistentVolume, error) {
	key := client.ObjectKeyFromObject(claim)
	v := inplace.Volume{Claim: key.String(), UID: string(claim.UID), Deleting: claim.DeletionTimestamp != nil, Name: claim.Spec.VolumeName}
	var err error
	if v.Pods, err = Users(ctx, reader, key); err != nil || v.Name == "" {
		return v, nil, err
	}
	pv, err := kube.Find(ctx, reader, client.ObjectKey{Name: v.Name}, &corev1.PersistentVolume{})
	if err != nil || pv == nil {
		return v, nil, err
	}
	ref := pv.Spec.ClaimRef
	v.Bound = claim.Status.Phase == corev1.ClaimBound && ref != nil && ref.UID == claim.UID
	v.Deleting = v.Deleting || pv.DeletionTimestamp != nil
	if pv.Spec.CSI != nil {
		v.Driver, v.Handle = pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle
	}
	v.Capacity = pv.Spec.Capacity.Storage().Value()
	if op, ok := identity.OperationOf(pv.Labels, pv.Annotations); ok {
		v.Operation = op.Reference()
	}
	return v, pv, nil
}

// Users returns the names of the pods that use a PVC and have not ended, by name.
func Users(ctx context.Context, reader client.Reader, claim client.ObjectKey) ([]string, error) {
	pods := &corev1.PodList{}
	if err := reader.List(ctx, pods, client.InNamespace(claim.Namespace)); err != nil {
		return nil, fmt.Errorf("list pods of namespace %s: %w", claim.Namespace, err)
	}
	var users []string
	for i := range pods.Items {
		if pod := &pods.Items[i]; uses(pod, claim.Name) && !hasEnded(pod) {
			users = append(users, pod.Name)
		}
	}
	slices.Sort(users)
	return users, nil
}

func uses(pod *corev1.Pod, claim string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		switch {
		case v.PersistentVolumeClaim != nil:
			return v.PersistentVolumeClaim.ClaimName == claim
		case v.Ephemeral != nil:
			return pod.Name+"-"+v.Name == claim
		}
		return false
	})
}

func hasEnded(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// Nodes returns the nodes that a PersistentVolume is attached to, by name. After its last pod
// is gone, a volume is being detached for a while. Drivers without attachment have none.
func Nodes(ctx context.Context, reader client.Reader, volume string) ([]string, error) {
	attachments := &storagev1.VolumeAttachmentList{}
	if err := reader.List(ctx, attachments); err != nil {
		return nil, fmt.Errorf("list VolumeAttachments: %w", err)
	}
	var nodes []string
	for i := range attachments.Items {
		if name := attachments.Items[i].Spec.Source.PersistentVolumeName; name != nil && *name == volume {
			nodes = append(nodes, attachments.Items[i].Spec.NodeName)
		}
	}
	slices.Sort(nodes)
	return nodes, nil
}
