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
	"k8s.io/apimachinery/pkg/api/meta"
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
	for _, list := range []client.ObjectList{kubevirt.NewList(kubevirt.Backup), &corev1.PersistentVolumeClaimList{}, &corev1.PersistentVolumeList{}} {
		err := m.Reader.List(ctx, list, labelled)
		if _, ofKubeVirt := list.(*unstructured.UnstructuredList); ofKubeVirt && (notServed(err) || apierrors.IsForbidden(err)) {
			continue // without KubeVirt, or without the rights on its objects, there is none of ours
		}
		if err != nil {
			return nil, fmt.Errorf("list %T of VM backups: %w", list, err)
		}
		err = meta.EachListItem(list, func(item runtime.Object) error {
			if object, ok := item.(client.Object); ok {
				m.note(found, object)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read %T of VM backups: %w", list, err)
		}
	}
	return found, nil
}

// note adds an object to those of its VM backup, if it is one.
func (m *Maker) note(found map[string]objects, object client.Object) {
	name, key := object.GetLabels()[identity.LabelVMBackup], client.ObjectKeyFromObject(object)
	if !identity.IsVMBackupName(name) {
		return
	}
	o := found[name]
	pv, isVolume := object.(*corev1.PersistentVolume)
	switch {
	case isVolume:
		o.volumes = append(o.volumes, pv)
	case !strings.HasPrefix(key.Name, name+"-") && (key.Name != name || key.Namespace != m.Namespace):
		return
	case !slices.Contains(o.claims, key):
		o.claims = append(o.claims, key)
	}
	found[name] = o
}
