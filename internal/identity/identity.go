// Package identity derives the names, labels and annotations of everything that
// Blockmover creates, and has the table of all their keys. Names are functions of
// UIDs only, so that any number of retries, and a new process after a crash, arrive
// at the same object.
//
// The package is pure.
package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// DataMover is the value of DataUpload.spec.datamover and
// DataDownload.spec.datamover that Blockmover answers to.
const DataMover = "blockmover"

// MoverKubeVirt is the mover that a volume policy names for the disks of a VM that KubeVirt shall
// back up. Their DataUploads are DataMover's, as any other.
const MoverKubeVirt = "blockmover-kubevirt"

// vmBackupPrefix is what the names of our VirtualMachineBackups begin with.
const vmBackupPrefix = "blockmover-vm-"

// VMBackupName names the backup of one VM in one Backup. All disks of the VM share it. The PVC in
// Velero's namespace that has the files has this name.
func VMBackupName(backupUID, vmUID string) string {
	return vmBackupPrefix + digest("VirtualMachineBackup", backupUID, vmUID)
}

// VMAttemptName is the name of the VirtualMachineBackup and of its PVC, in the namespace of the VM.
// The first attempt has number 1.
func VMAttemptName(vmBackup string, attempt int) string {
	return vmBackup + "-" + strconv.Itoa(attempt)
}

// IsVMBackupName says whether an object is one of a VM backup of ours.
func IsVMBackupName(name string) bool { return strings.HasPrefix(name, vmBackupPrefix) }

// VMTrackerName is the name of the VirtualMachineBackupTracker of a VM for one storage location,
// in the namespace of the VM.
func VMTrackerName(vmUID, location string) string {
	return "blockmover-" + digest("VirtualMachineBackupTracker", vmUID, location)
}

// DataUploadName is the name of the DataUpload for one PVC in one backup.
func DataUploadName(backupUID, pvcUID string) string {
	return "blockmover-" + digest("DataUpload", backupUID, pvcUID)
}

// DataDownloadName is the name of the DataDownload for one PVC in one restore.
func DataDownloadName(restoreUID, pvcUID string) string {
	return "blockmover-" + digest("DataDownload", restoreUID, pvcUID)
}

// VolumeSnapshotName is the name of the VolumeSnapshot that the PVC action
// takes, in the namespace of the PVC.
func VolumeSnapshotName(backupUID, pvcUID string) string {
	return "blockmover-" + digest("VolumeSnapshot", backupUID, pvcUID)
}

// groupPrefix is what the names of our VolumeGroupSnapshots begin with.
const groupPrefix = "blockmover-group-"

// GroupName is the name of the VolumeGroupSnapshot, in the namespace of its
// members, for one value of a backup's group label and one CSI driver.
func GroupName(backupUID, namespace, value, driver string) string {
	return groupPrefix + digest("VolumeGroupSnapshot", backupUID, namespace, value, driver)
}

// IsGroupName says whether a VolumeGroupSnapshot is one of ours.
func IsGroupName(name string) bool { return strings.HasPrefix(name, groupPrefix) }

// StampPrefix is the prefix of the keys of stamps.
const StampPrefix = Domain + "group-"

// GroupStamp is the key of the label that the members of a group carry while it is
// made; its value is the UID of the backup. The key is the group's own, so that one
// PVC can be in the groups of two backups at a time.
func GroupStamp(groupName string) string {
	return StampPrefix + strings.TrimPrefix(groupName, groupPrefix)
}

// StampedGroup is the inverse of GroupStamp; "" for the key of another label.
func StampedGroup(key string) string {
	if !strings.HasPrefix(key, StampPrefix) {
		return ""
	}
	return groupPrefix + strings.TrimPrefix(key, StampPrefix)
}

// OperationName is the name of the objects (VolumeSnapshot and its content,
// PVC, pod) that serve one DataUpload or DataDownload, in Velero's namespace.
func OperationName(operationUID string) string { return "blockmover-" + operationUID }

// RebindVolumeName is the name of the PersistentVolume that gives a restored
// volume to its target PVC.
func RebindVolumeName(dataDownloadUID string) string {
	return "blockmover-restored-" + dataDownloadUID
}

// aliasPrefix is what the names of alias PVs begin with.
const aliasPrefix = "blockmover-in-place-"

// AliasVolumeName is the name of the PersistentVolume through which an in-place restore
// writes the volume of a live PVC.
func AliasVolumeName(dataDownloadUID string) string { return aliasPrefix + dataDownloadUID }

// LiveSnapshotName is the name of the VolumeSnapshot that an attempt of an in-place restore
// takes of the volume, in Velero's namespace. The first attempt has number 1.
func LiveSnapshotName(dataDownloadUID string, attempt int) string {
	return OperationName(dataDownloadUID) + "-" + strconv.Itoa(attempt)
}

// IsAliasVolumeName says whether a PersistentVolume is an alias of ours. Its volume belongs to
// a user: nothing may ever be deleted with it.
func IsAliasVolumeName(name string) bool { return strings.HasPrefix(name, aliasPrefix) }

// digest is 20 hexadecimal digits over the parts: enough that no two objects
// of a cluster meet, short enough for a label value.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:10])
}
