package kubevirt

import (
	"cmp"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The kinds of KubeVirt.
var (
	VirtualMachine         = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachine"}
	VirtualMachineInstance = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachineInstance"}
	Backup                 = schema.GroupVersionKind{Group: "backup.kubevirt.io", Version: "v1alpha1", Kind: "VirtualMachineBackup"}
	Tracker                = schema.GroupVersionKind{Group: "backup.kubevirt.io", Version: "v1alpha1", Kind: "VirtualMachineBackupTracker"}
)

// Driver is what an image names as the driver of a disk that KubeVirt has backed up.
const Driver = "kubevirt.io"

// UserID is the user that KubeVirt runs QEMU as. It owns the files of a backup, mode 0600, and the
// file of a disk in a Filesystem volume.
const UserID = 107

// New returns an empty object of a kind.
func New(kind schema.GroupVersionKind) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kind)
	return u
}

// NewList returns an empty list of a kind.
func NewList(kind schema.GroupVersionKind) *unstructured.UnstructuredList {
	l := &unstructured.UnstructuredList{}
	kind.Kind += "List"
	l.SetGroupVersionKind(kind)
	return l
}

// Disk is a volume of a VM that a PVC holds.
type Disk struct {
	// Volume is its name in the VM, Claim that of the PVC.
	Volume, Claim string
}

// Disks returns the disks of a VM, in its own order. The PVC of a DataVolume has its name.
func Disks(vm *unstructured.Unstructured) []Disk {
	volumes, _, _ := unstructured.NestedSlice(vm.Object, "spec", "template", "spec", "volumes")
	var disks []Disk
	for _, v := range volumes {
		volume, _ := v.(map[string]any)
		name, _, _ := unstructured.NestedString(volume, "name")
		claim, _, _ := unstructured.NestedString(volume, "persistentVolumeClaim", "claimName")
		if claim == "" {
			claim, _, _ = unstructured.NestedString(volume, "dataVolume", "name")
		}
		if name != "" && claim != "" {
			disks = append(disks, Disk{name, claim})
		}
	}
	return disks
}

// DiskOf returns the disk that a PVC holds.
func DiskOf(vm *unstructured.Unstructured, claim string) (Disk, bool) {
	for _, d := range Disks(vm) {
		if d.Claim == claim {
			return d, true
		}
	}
	return Disk{}, false
}

// Reason is why KubeVirt cannot back up the disks of a VM. It is part of the result of a
// DataUpload. A Reason is never renamed.
type Reason string

// The reasons.
const (
	// NotServed: the cluster does not serve VirtualMachineBackups.
	NotServed Reason = "VMBackupNotServed"
	// NotRunning: the VM is stopped.
	NotRunning Reason = "VMNotRunning"
	// NotTracked: QEMU does not track what changes on the disks.
	NotTracked Reason = "VMNotTracked"
)

// unknown stands for a state that KubeVirt has not written yet.
const unknown = "of unknown state"

// Ready reports whether KubeVirt can back up the disks of a VM now. If not, it says why.
func Ready(vm *unstructured.Unstructured) (ok bool, reason Reason, detail string) {
	status, _, _ := unstructured.NestedString(vm.Object, "status", "printableStatus")
	ready, _, _ := unstructured.NestedBool(vm.Object, "status", "created")
	if !ready || status != "Running" {
		return false, NotRunning, fmt.Sprintf("VM %s/%s is %s, want Running", vm.GetNamespace(), vm.GetName(), cmp.Or(status, unknown))
	}
	state, _, _ := unstructured.NestedString(vm.Object, "status", "changedBlockTracking", "state")
	if state != "Enabled" {
		return false, NotTracked, fmt.Sprintf("changed block tracking of VM %s/%s is %s, want Enabled: "+
			"give the VM the label that KubeVirt's changedBlockTrackingLabelSelectors select, and restart it", vm.GetNamespace(), vm.GetName(), cmp.Or(state, unknown))
	}
	return true, "", ""
}
