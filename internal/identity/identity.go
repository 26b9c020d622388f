// Package identity derives the names, labels and annotations of everything
// that Blockmover creates. Names are functions of UIDs only, so that any number
// of retries, and a new process after a crash, arrive at the same object.
//
// The package is pure.
package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// DataMover is the value of DataUpload.spec.datamover and
// DataDownload.spec.datamover that Blockmover answers to.
const DataMover = "blockmover"

// Domain is what all labels and annotations begin with.
const Domain = "blockmover.io/"

// Labels and annotations.
const (
	// LabelOperation holds the UID of the DataUpload or DataDownload that an
	// object was created for. The sweep removes objects whose operation is gone.
	LabelOperation = "blockmover.io/operation"
	// AnnotationOperation stands beside LabelOperation and says which operation that
	// is, as Kind/namespace/name: a UID leads nowhere by itself, and a cluster may
	// have more than one Velero.
	AnnotationOperation = "blockmover.io/operation-of"
	// LabelBackupUID holds the UID of the backup that an object was created for
	// before any DataUpload existed (VolumeSnapshots of the PVC action).
	LabelBackupUID = "blockmover.io/backup-uid"
	// AnnotationDataUpload, on a PVC in a backup, names the DataUpload that holds
	// its data; the restore action acts on PVCs that carry it.
	AnnotationDataUpload = "blockmover.io/data-upload"
	// AnnotationBackupType, on a Backup or Schedule, asks for full or incremental.
	AnnotationBackupType = "blockmover.io/backup-type"
	// AnnotationRetainSnapshot, on a Backup or Schedule, says what becomes of the
	// storage snapshots after the upload: a policy.Retain.
	AnnotationRetainSnapshot = "blockmover.io/retain-snapshot"
)

// Labels and annotations of a retained pair, a VolumeSnapshot and its content
// that stay after the upload. A label holds a name as far as labels can, for
// people to select by; the annotation of the same key holds all of it.
const (
	// LabelRetained holds the policy.Retain that the pair stays by. Its presence
	// says that the pair is no operation's any more.
	LabelRetained = "blockmover.io/retained"
	// LabelVolumeNamespace and LabelVolume are the namespace and the name of the PVC.
	LabelVolumeNamespace = "blockmover.io/volume-namespace"
	LabelVolume          = "blockmover.io/volume"
	// LabelBackup is the name of the backup.
	LabelBackup = "blockmover.io/backup"
)

// AnnotationRetained describes, on a DataUpload, the storage snapshot that its
// backup retains (a volumesnapshot.Retained), for as long as it does.
const AnnotationRetained = "blockmover.io/retained-snapshot"

// Labels and annotations of group snapshots.
const (
	// LabelGrouped is on each PVC that carries a GroupStamp, for the sweep to find.
	LabelGrouped = "blockmover.io/grouped"
	// AnnotationMembers, on a VolumeGroupSnapshot, names the PVCs that it was made
	// of, separated by commas.
	AnnotationMembers = "blockmover.io/members"
	// AnnotationFailed, on a VolumeGroupSnapshot, says why nobody waits for it any more.
	AnnotationFailed = "blockmover.io/failed"
)

// Keys of DataUpload.spec.dataMoverConfig.
const (
	// ConfigParentSnapshot is "auto", "none", or a repo snapshot ID.
	ConfigParentSnapshot = "parentSnapshot"
	// ConfigFullEvery is a Go duration: a full image is due when the newest one of
	// the volume is older.
	ConfigFullEvery = "fullEvery"
	// ConfigAudit is an audit.Percent.
	ConfigAudit = "audit"
	// ConfigRetainSnapshot is a policy.Retain.
	ConfigRetainSnapshot = "retainSnapshot"
	// ConfigGroup is there for a volume whose label asks for a group: the name of the
	// VolumeGroupSnapshot, or the code of the reason why there is none. It is also
	// in status.dataMoverResult.
	ConfigGroup = "group"
)

// Values of ConfigParentSnapshot.
const (
	ParentAuto = "auto"
	ParentNone = "none"
)

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

// stampPrefix is what the keys of stamps begin with.
const stampPrefix = Domain + "group-"

// GroupStamp is the key of the label that the members of a group carry while it is
// made; its value is the UID of the backup. The key is the group's own, so that one
// PVC can be in the groups of two backups at a time.
func GroupStamp(groupName string) string {
	return stampPrefix + strings.TrimPrefix(groupName, groupPrefix)
}

// StampedGroup is the inverse of GroupStamp; "" for the key of another label.
func StampedGroup(key string) string {
	if !strings.HasPrefix(key, stampPrefix) {
		return ""
	}
	return groupPrefix + strings.TrimPrefix(key, stampPrefix)
}

// OperationName is the name of the objects (VolumeSnapshot and its content,
// PVC, pod) that serve one DataUpload or DataDownload, in Velero's namespace.
func OperationName(operationUID string) string { return "blockmover-" + operationUID }

// RebindVolumeName is the name of the PersistentVolume that gives a restored
// volume to its target PVC.
func RebindVolumeName(dataDownloadUID string) string {
	return "blockmover-restored-" + dataDownloadUID
}

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
