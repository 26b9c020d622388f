package vmbackup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
)

// releaseAttempt deletes the VirtualMachineBackup and then the PVC of an attempt, and names what
// is still there.
func (m *Maker) releaseAttempt(ctx context.Context, key client.ObjectKey) (string, error) {
	vmb, err := m.find(ctx, kubevirt.Backup, key)
	if err != nil && !notServed(err) {
		return "", err
	}
	if vmb != nil {
		return kubevirt.Backup.Kind + " " + key.String(), kube.Delete(ctx, m.Client, vmb)
	}
	claim, err := kube.Find(ctx, m.Reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil || claim == nil {
		return "", err
	}
	return "PVC " + key.String(), kube.Delete(ctx, m.Client, claim)
}

// Release deletes all objects of a VM backup but the tracker, and returns what is still there. It
// finds them by name and label.
func (m *Maker) Release(ctx context.Context, name string) ([]string, error) {
	found, err := m.list(ctx, client.MatchingLabels{identity.LabelVMBackup: name})
	if err != nil {
		return nil, fmt.Errorf("release VM backup %s: %w", name, err)
	}
	var left []string
	var errs []error
	for _, key := range found[name].claims {
		still, err := m.releaseAttempt(ctx, key)
		errs = append(errs, err)
		if still != "" {
			left = append(left, still)
		}
	}
	if err := errors.Join(errs...); err != nil || len(left) > 0 {
		return left, err
	}
	// A PV whose PVC does not exist becomes Released, and is deleted by its policy.
	for _, pv := range found[name].volumes {
		left = append(left, "PV "+pv.Name)
		if pv.DeletionTimestamp != nil || pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			continue
		}
		before := pv.DeepCopy()
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		if pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.UID == "" {
			pv.Spec.ClaimRef.UID = pv.UID // of no PVC
		}
		err := m.Client.Patch(ctx, pv, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if client.IgnoreNotFound(err) != nil {
			return left, fmt.Errorf("release PV %s: %w", pv.Name, err)
		}
	}
	return left, nil
}

// Names returns the VM backups that have objects in the cluster.
func (m *Maker) Names(ctx context.Context) ([]string, error) {
	found, err := m.list(ctx, client.HasLabels{identity.LabelVMBackup})
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// objects are those of a VM backup: what has the name of an attempt or, in Velero's namespace, of
// the backup, and PVs.
type objects struct {
	claims  []client.ObjectKey
	volumes []*corev1.PersistentVolume
}

// list finds the objects of VM backups. The label is a hint, because tenants can write it. The name
// is what counts.
func (m *Maker) list(ctx context.Context, labelled client.ListOption) (map[string]objects, error) {
	found := map[string]objects{}
	add := func(object client.Object) {
		name, key := object.GetLabels()[identity.LabelVMBackup], client.ObjectKeyFromObject(object)
		ours := identity.IsVMBackupName(name) &&
			(strings.HasPrefix(key.Name, name+"-") || key.Name == name && key.Namespace == m.Namespace)
		o := found[name]
		if pv, ok := object.(*corev1.PersistentVolume); ok && identity.IsVMBackupName(name) {
			o.volumes = append(o.volumes, pv)
		} else if ours && !slices.Contains(o.claims, key) {
			o.claims = append(o.claims, key)
		} else {
			return
		}
		found[name] = o
	}
	backups := kubevirt.NewList(kubevirt.Backup)
	// Without KubeVirt, or without the rights on its objects, there is none of ours.
	if err := m.Reader.List(ctx, backups, labelled); err != nil && !notServed(err) && !apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("list %ss: %w", kubevirt.Backup.Kind, err)
	}
	err := backups.EachListItem(func(item runtime.Object) error {
		if u, ok := item.(*unstructured.Unstructured); ok {
			add(u)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read list of %ss: %w", kubevirt.Backup.Kind, err)
	}
	claims := &corev1.PersistentVolumeClaimList{}
	if err := m.Reader.List(ctx, claims, labelled); err != nil {
		return nil, fmt.Errorf("list PVCs of VM backups: %w", err)
	}
	for i := range claims.Items {
		add(&claims.Items[i])
	}
	volumes := &corev1.PersistentVolumeList{}
	if err := m.Reader.List(ctx, volumes, labelled); err != nil {
		return nil, fmt.Errorf("list PVs of VM backups: %w", err)
	}
	for i := range volumes.Items {
		add(&volumes.Items[i])
	}
	return found, nil
}
