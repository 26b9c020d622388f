package exposer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
)

// EnsureAlias presents the volume of a live PVC to the mover pod, without touching the PVC or
// its PersistentVolume. It returns what it waits for.
//
// It makes an alias: a second PersistentVolume with the same volume handle, as a block device,
// and the PVC of the operation, each of which names the other. live is the PersistentVolume of
// the user.
//
// The volume belongs to the user, and may be the only copy of the data. So the reclaim policy
// of an alias is Retain from the first moment to the last, no code changes it, and an alias has
// neither the label of an operation, by which the volumes are found that are deleted with it,
// nor the annotation by which a provisioner knows its volumes.
func (e *Exposer) EnsureAlias(ctx context.Context, op identity.Operation, live *corev1.PersistentVolume) (waiting string, err error) {
	alias, err := findVolume(ctx, e.Reader, op.AliasVolumeName())
	if err != nil {
		return "", err
	}
	if alias == nil {
		if alias, err = planAlias(op, e.Namespace, live); err != nil {
			return "", err
		}
		if err := e.Client.Create(ctx, alias); err != nil {
			return "", fmt.Errorf("create alias PV %s: %w", alias.Name, err)
		}
	}
	if err := checkAlias(alias, live); err != nil {
		return "", err
	}
	claim, err := findClaim(ctx, e.Reader, e.keyOf(op))
	if err != nil {
		return "", err
	}
	if claim == nil {
		claim = planAliasClaim(op, alias)
		if err := kube.Ensure(ctx, e.Client, claim); err != nil {
			return "", err
		}
	}
	switch {
	case claim.DeletionTimestamp != nil:
		return "PVC " + e.keyOf(op).String() + " is being deleted", nil
	case claim.Spec.VolumeName != alias.Name:
		return "", fmt.Errorf("%w: PVC %s names PV %q, want %s", phase.ErrBroken, e.keyOf(op), claim.Spec.VolumeName, alias.Name)
	case claim.Status.Phase != corev1.ClaimBound:
		return fmt.Sprintf("PVC %s is being bound to PV %s", e.keyOf(op), alias.Name), nil
	}
	return "", nil
}

// RivalOf returns the operation that has an alias of a volume and goes before op, or nil: two
// restores must not write one volume at once. The one whose alias is older goes first.
func (e *Exposer) RivalOf(ctx context.Context, op identity.Operation, live *corev1.PersistentVolume) (*identity.Operation, error) {
	aliases := &corev1.PersistentVolumeList{}
	if err := e.Reader.List(ctx, aliases, client.HasLabels{identity.LabelAlias}); err != nil {
		return nil, fmt.Errorf("list alias PVs: %w", err)
	}
	same := slices.DeleteFunc(aliases.Items, func(pv corev1.PersistentVolume) bool {
		csi := pv.Spec.CSI
		return csi == nil || csi.Driver != live.Spec.CSI.Driver || csi.VolumeHandle != live.Spec.CSI.VolumeHandle
	})
	slices.SortFunc(same, func(a, b corev1.PersistentVolume) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	for i := range same {
		if same[i].Name == op.AliasVolumeName() {
			return nil, nil
		}
		if rival, ok := identity.AliasOperationOf(same[i].Name, same[i].Labels, same[i].Annotations); ok {
			return &rival, nil
		}
	}
	return nil, nil
}

// checkAlias refuses an alias that somebody has changed.
func checkAlias(alias, live *corev1.PersistentVolume) error {
	csi := alias.Spec.CSI
	switch {
	case alias.DeletionTimestamp != nil:
		return fmt.Errorf("%w: alias PV %s is being deleted", phase.ErrBroken, alias.Name)
	case csi == nil || csi.Driver != live.Spec.CSI.Driver || csi.VolumeHandle != live.Spec.CSI.VolumeHandle:
		return fmt.Errorf("%w: alias PV %s is not of the volume of PV %s", phase.ErrBroken, alias.Name, live.Name)
	}
	return isRetained(alias)
}

// isRetained returns an error unless the alias keeps its volume.
func isRetained(alias *corev1.PersistentVolume) error {
	if policy := alias.Spec.PersistentVolumeReclaimPolicy; policy != corev1.PersistentVolumeReclaimRetain {
		return fmt.Errorf("the reclaim policy of alias PV %s is %s, want %s: set it back, since its volume is in use by an application",
			alias.Name, policy, corev1.PersistentVolumeReclaimRetain)
	}
	return nil
}

// planAlias returns a second PV of the volume of a live one, as a block device, for the PVC of
// the operation. See EnsureAlias.
func planAlias(op identity.Operation, namespace string, live *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	if live.Spec.CSI == nil {
		return nil, fmt.Errorf("plan alias PV: %w: PV %s is not a CSI volume", phase.ErrBroken, live.Name)
	}
	csi := live.Spec.CSI.DeepCopy()
	csi.FSType = ""
	mode := corev1.PersistentVolumeBlock
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        op.AliasVolumeName(),
			Labels:      map[string]string{identity.LabelAlias: op.UID, velerov1.ExcludeFromBackupLabel: "true"},
			Annotations: op.Annotations(),
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      live.Spec.Capacity.DeepCopy(),
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			VolumeMode:                    &mode,
			NodeAffinity:                  live.Spec.NodeAffinity.DeepCopy(),
			PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: csi},
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: op.ObjectName(),
			},
		},
	}, nil
}

// planAliasClaim returns the PVC of the operation for its alias. It has no class, so no
// provisioner looks at it, and no quota of a class counts it.
func planAliasClaim(op identity.Operation, alias *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	none, mode := "", corev1.PersistentVolumeBlock
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metaOf(op),
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
			StorageClassName: &none,
			VolumeMode:       &mode,
			VolumeName:       alias.Name,
			Resources:        requestStorage(alias.Spec.Capacity[corev1.ResourceStorage]),
		},
	}
}

// releaseAlias deletes the PVC and the alias, and never the volume. It returns what still
// exists.
func (e *Exposer) releaseAlias(ctx context.Context, op identity.Operation, alias *corev1.PersistentVolume) ([]string, error) {
	if err := isRetained(alias); err != nil {
		return nil, err
	}
	if left, err := e.releaseClaim(ctx, op); err != nil || left != "" {
		return nonEmpty(left), err
	}
	if err := kube.Delete(ctx, e.Client, alias); err != nil {
		return nil, err
	}
	alias, err := findVolume(ctx, e.Reader, op.AliasVolumeName())
	if err != nil || alias == nil {
		return nil, err
	}
	return []string{"PV " + alias.Name + heldBy(alias)}, nil
}
