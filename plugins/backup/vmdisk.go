package backup

import (
	"context"
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/policy"
)

// Reasons why the storage takes a snapshot of a volume that KubeVirt should back up, besides those
// of package kubevirt. They are in the DataUpload's spec.dataMoverConfig and
// status.dataMoverResult.
const (
	// NotADisk: no VM has the PVC as a disk.
	NotADisk kubevirt.Reason = "NotAVMDisk"
	// SharedDisk: several VMs have it.
	SharedDisk kubevirt.Reason = "SharedVMDisk"
)

// labelPersistentState is KubeVirt's label of the PVC that has the state of a VM besides its disks:
// the overlays with the bitmaps of changed blocks, and what a TPM and an EFI keep.
const labelPersistentState = "persistent-state-for"

// vms finds the disks of VMs.
type vms struct {
	log      logrus.FieldLogger
	api      client.Client
	policies policies
}

// vmDisk is a disk that KubeVirt can back up.
type vmDisk struct {
	kubevirt.Disk
	VM *unstructured.Unstructured
}

// find returns the disk that a PVC is. If KubeVirt cannot back it up now, it returns nil and why.
// It is an error if the backup would have disks of one VM of different instants without saying
// so.
func (v vms) find(ctx context.Context, pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup) (*vmDisk, kubevirt.Reason, string, error) {
	if served, err := v.served(); err != nil || !served {
		return nil, kubevirt.NotServed, "the cluster does not serve " + kubevirt.Backup.Kind + "s: KubeVirt is not installed, or too old", err
	}
	list := kubevirt.NewList(kubevirt.VirtualMachine)
	if err := v.api.List(ctx, list, client.InNamespace(pvc.Namespace)); err != nil {
		return nil, "", "", fmt.Errorf("list VirtualMachines: %w", err)
	}
	var found []vmDisk
	for i := range list.Items {
		if disk, ok := kubevirt.DiskOf(&list.Items[i], pvc.Name); ok {
			found = append(found, vmDisk{disk, &list.Items[i]})
		}
	}
	switch len(found) {
	case 0:
		return nil, NotADisk, fmt.Sprintf("no VM has PVC %s/%s as a disk", pvc.Namespace, pvc.Name), nil
	case 1:
	default:
		return nil, SharedDisk, fmt.Sprintf("%d VMs have PVC %s/%s as a disk", len(found), pvc.Namespace, pvc.Name), nil
	}
	disk := found[0]
	if ready, reason, detail := kubevirt.Ready(disk.VM); !ready {
		return nil, reason, detail, nil
	}
	return &disk, "", "", v.checkOthers(ctx, disk, backup)
}

// served reports whether the cluster has the backup API of KubeVirt.
func (v vms) served() (bool, error) {
	_, err := v.api.RESTMapper().RESTMapping(kubevirt.Backup.GroupKind(), kubevirt.Backup.Version)
	if meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("discover %s: %w", kubevirt.Backup.GroupVersion(), err)
	}
	return true, nil
}

// checkOthers fails if another disk of the VM has a policy that neither leaves it to a plugin nor
// skips it: Velero would snapshot it at another instant.
func (v vms) checkOthers(ctx context.Context, disk vmDisk, backup *velerov1.Backup) error {
	for _, other := range kubevirt.Disks(disk.VM) {
		if other.Claim == disk.Claim {
			continue
		}
		key := client.ObjectKey{Namespace: disk.VM.GetNamespace(), Name: other.Claim}
		pvc, err := kube.Find(ctx, v.api, key, &corev1.PersistentVolumeClaim{})
		if err != nil {
			return err
		}
		if pvc == nil {
			continue
		}
		decided, err := v.policies.decideClaim(pvc, backup)
		if err != nil {
			return err
		}
		if action := decided.action; action != actionCustom && action != actionSkip {
			return fmt.Errorf("disk %s of VM %s, PVC %s, has the volume policy action %q, want %s or %s: "+
				"Velero would not back it up at the same instant as PVC %s", other.Volume, disk.VM.GetName(), key, action, actionCustom, actionSkip, disk.Claim)
		}
	}
	return nil
}

// newDiskUpload renders the DataUpload of a disk. Velero reads the part about a snapshot from every
// DataUpload.
func newDiskUpload(disk *vmDisk, pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup, settings policy.Settings) *velerov2alpha1.DataUpload {
	upload := newDataUpload(pvc, kubevirt.Driver, backup, "", "", settings)
	vmUID := string(disk.VM.GetUID())
	config := upload.Spec.DataMoverConfig
	config[identity.ConfigVM], config[identity.ConfigVMUID] = disk.VM.GetName(), vmUID
	config[identity.ConfigVMVolume] = disk.Volume
	config[identity.ConfigVMBackup] = identity.VMBackupName(string(backup.UID), vmUID)
	return upload
}

// isPersistentState reports whether a PVC has the state of a VM, which is not backed up.
func isPersistentState(pvc *corev1.PersistentVolumeClaim) bool {
	return pvc.Labels[labelPersistentState] != "" && strings.HasPrefix(pvc.Name, "persistent-state-for-")
}
