package identity

// Domain is the prefix of all our labels and annotations.
const Domain = "blockmover.io/"

// Keys of labels and annotations on objects of the Kubernetes API, and of tags in
// the backup repository. The table below says where each is found, who writes it
// and how long it stays.
const (
	LabelOperation           = Domain + "operation"
	AnnotationOperation      = Domain + "operation-of"
	LabelBackupUID           = Domain + "backup-uid"
	AnnotationDataUpload     = Domain + "data-upload"
	AnnotationBackupType     = Domain + "backup-type"
	AnnotationRetainSnapshot = Domain + "retain-snapshot"

	AnnotationAttempt       = Domain + "attempt"
	AnnotationAttemptNumber = Domain + "attempt-number"
	AnnotationOutcome       = Domain + "outcome"
	AnnotationSecured       = Domain + "secured"
	AnnotationPlace         = Domain + "place"
	AnnotationFilesystem    = Domain + "filesystem"
	AnnotationRetention     = Domain + "retain"
	AnnotationRetained      = Domain + "retained-snapshot"
	AnnotationVerified      = Domain + "verified"
	AnnotationTested        = Domain + "restore-tested"
	AnnotationCopies        = Domain + "copies"

	LabelCopy        = Domain + "copy"
	AnnotationCopyOf = Domain + "copy-of"

	AnnotationInPlace = Domain + "in-place"
	LabelAlias        = Domain + "alias"
	LabelRestored     = Domain + "restored-in-place"

	AnnotationReclaimPolicy  = Domain + "reclaim-policy"
	AnnotationRestoredVolume = Domain + "restored-volume"

	AnnotationVolumeHandle = Domain + "volume-handle"
	AnnotationSnapshotTime = Domain + "snapshot-time"
	AnnotationVolumeSize   = Domain + "volume-size"
	AnnotationOrigin       = Domain + "origin-content"
	AnnotationCapacity     = Domain + "volume-capacity"
	AnnotationSourceFS     = Domain + "source-filesystem"

	AnnotationGroupSnapshot = Domain + "group-snapshot"

	LabelRetained        = Domain + "retained"
	LabelVolumeNamespace = Domain + "volume-namespace"
	LabelVolume          = Domain + "volume"
	LabelBackup          = Domain + "backup"
	AnnotationLocation   = Domain + "storage-location"
	AnnotationBackupGone = Domain + "backup-gone-since"

	LabelVMBackup         = Domain + "vm-backup"
	AnnotationVMBackup    = Domain + "vm-backup-state"
	AnnotationVMDisks     = Domain + "vm-disks"
	AnnotationRunStrategy = Domain + "run-strategy"

	LabelGrouped      = Domain + "grouped"
	AnnotationMembers = Domain + "members"
	AnnotationFailed  = Domain + "failed"
)

// Keys of DataUpload.spec.dataMoverConfig.
const (
	ConfigParentSnapshot = "parentSnapshot"
	ConfigFullEvery      = "fullEvery"
	ConfigAudit          = "audit"
	ConfigRetainSnapshot = "retainSnapshot"
	ConfigGroup          = "group"
	ConfigGroupReason    = "groupReason"
	ConfigVM             = "vm"
	ConfigVMUID          = "vmUID"
	ConfigVMVolume       = "vmVolume"
	ConfigVMBackup       = "vmBackup"
	ConfigVMReason       = "vmReason"
	ConfigSkipQuiesce    = "skipQuiesce"
	ConfigVolumeHandle   = "volumeHandle"
	ConfigInPlace        = "inPlace"
	ConfigInPlaceVolume  = "inPlaceVolume"
)

// Values of ConfigParentSnapshot.
const (
	ParentAuto = "auto"
	ParentNone = "none"
)

// Key documents one key.
type Key struct {
	Name string
	// On names the objects that carry the key.
	On string
	// Owner names who writes it.
	Owner string
	// Format describes the value.
	Format string
	// Life says when it is set and when it goes.
	Life string
}

// Keys is the table of all labels and annotations. docs/design.md shows it.
var Keys = []Key{
	{LabelOperation, "label of pods, PVCs, PVs, VolumeSnapshots, VolumeSnapshotContents", "manager", "UID of the DataUpload or DataDownload", "as long as the object serves the operation; the sweep deletes objects whose operation is gone"},
	{AnnotationOperation, "the same objects", "manager", "Kind/namespace/name of the operation: a UID alone leads nowhere, and a cluster may have several Veleros", "with the label; stays on a retained pair"},
	{LabelBackupUID, "label of VolumeSnapshots, VolumeGroupSnapshots and their contents; annotation of retained pairs", "plugin", "UID of the Backup", "as long as the object"},
	{AnnotationDataUpload, "PVCs inside a backup", "plugin", "namespace/name of the DataUpload that holds the data", "for ever, in the backup; the restore action acts on it and removes it"},
	{AnnotationBackupType, "Backups, Schedules", "user", "full or incremental", "the user's"},
	{AnnotationRetainSnapshot, "Backups, Schedules", "user", "auto, always or never", "the user's"},
	{AnnotationAttempt, "DataUploads, DataDownloads", "manager", "JSON phase.Attempt", "from the first attempt on; stays"},
	{AnnotationAttemptNumber, "mover pods", "manager", "number of the attempt, from 1", "as long as the pod"},
	{AnnotationOutcome, "DataUploads, DataDownloads", "manager", "JSON phase.Outcome", "from the decision on; stays"},
	{AnnotationSecured, "DataUploads, DataDownloads", "manager", "true", "from the moment that a new operation waits for nothing but a slot; stays"},
	{AnnotationPlace, "DataUploads, DataDownloads", "manager", "name of the only node that can use the volume", "from the moment that a new operation waits for nothing but a slot; stays"},
	{AnnotationFilesystem, "DataDownloads", "manager", "file system found on the restored volume", "from the report on; stays"},
	{AnnotationRetention, "DataUploads", "manager", "auto, always or never: the retention rule of the storage snapshot", "set while the operation is secured; stays"},
	{AnnotationRetained, "DataUploads", "manager", "JSON rehome.Retained: the retained storage snapshot", "from the end of the upload until the snapshot is released, by the manager or the plugin"},
	{AnnotationVerified, "DataUploads", "kubectl blockmover verify", "JSON operation.Verified: when the image was read completely, and what could not be read", "until the image is verified again"},
	{AnnotationInPlace, "Restores", "user", "true, false or any-volume: the restore writes into PVCs that exist", "the user's"},
	{LabelAlias, "label of alias PVs", "manager", "UID of the DataDownload that writes the volume of a live PVC through this PV", "as long as the PV; the sweep deletes it when the operation is gone, and never the volume"},
	{LabelRestored, "label of the live PVCs of disks that KubeVirt tracks", "manager", "UID of the DataDownload that wrote the disk in place last: QEMU has not seen it", "until the next restore in place; it is not restored"},
	{AnnotationTested, "DataUploads", "kubectl blockmover verify --restore-test", "JSON operation.Tested: when the image was restored onto a scratch volume, and how its file system was", "until the image is tested again"},
	{AnnotationCopies, "DataUploads, DataDownloads", "manager", "kinds and names of what is copied for the driver of the volume, separated by commas", "from before the first copy until they are released"},
	{LabelCopy, "label of Secrets and ConfigMaps", "manager", "true: a copy that the manager has made for operations", "as long as an operation needs it"},
	{AnnotationCopyOf, "the same objects", "manager", "namespace/name of the original", "as long as an operation needs it"},
	{AnnotationReclaimPolicy, "PVs of an operation", "manager", "reclaim policy that the PV had before", "while the operation has the PV in its charge"},
	{AnnotationRestoredVolume, "rebind PVs", "manager", "name of the PV that the restore wrote", "until the PV is reserved for the target PVC"},
	{AnnotationVolumeHandle, "re-homed VolumeSnapshotContents and VolumeSnapshots", "manager", "CSI volume handle of the source volume", "as long as the object"},
	{AnnotationSnapshotTime, "re-homed VolumeSnapshotContents and VolumeSnapshots", "manager", "RFC 3339 with nanoseconds, UTC", "as long as the object"},
	{AnnotationVolumeSize, "re-homed VolumeSnapshotContents and VolumeSnapshots", "manager", "bytes, decimal", "as long as the object"},
	{AnnotationCapacity, "re-homed VolumeSnapshotContents and VolumeSnapshots", "manager", "bytes, decimal: capacity of the PersistentVolume of the source", "as long as the object"},
	{AnnotationSourceFS, "re-homed VolumeSnapshotContents and VolumeSnapshots of Filesystem volumes", "manager", "file system that the PersistentVolume of the source names", "as long as the object"},
	{AnnotationOrigin, "re-homed VolumeSnapshotContents and VolumeSnapshots", "manager", "name of the VolumeSnapshotContent that the object replaces", "as long as the object"},
	{AnnotationGroupSnapshot, "re-homed VolumeSnapshotContents and VolumeSnapshots of members of a group", "manager", "JSON: the group in the storage, and all its members", "as long as the object"},
	{LabelRetained, "label of retained VolumeSnapshots and VolumeSnapshotContents", "manager", "auto or always: the retention rule; its presence says that the pair belongs to no operation any more", "until the pair is released"},
	{LabelVolumeNamespace, "label and annotation of retained pairs", "manager", "namespace of the PVC; the label is shortened to what a label can hold", "as long as the pair is retained"},
	{LabelVolume, "label and annotation of retained pairs", "manager", "name of the PVC; the label is shortened to what a label can hold", "as long as the pair is retained"},
	{LabelBackup, "label and annotation of retained pairs", "manager", "name of the Backup; the label is shortened to what a label can hold", "as long as the pair is retained"},
	{AnnotationLocation, "retained pairs", "manager", "name of the BackupStorageLocation that has the image", "as long as the pair is retained"},
	{AnnotationBackupGone, "VolumeSnapshotContents of retained pairs", "manager, plugin", "RFC 3339, UTC: since when the Backup does not exist", "until the pair is released or the Backup is back"},
	{LabelVMBackup, "label of VirtualMachineBackups, and of the PVCs and PVs that have their files", "manager", "name of the backup of the VM, which all DataUploads of its disks have in their dataMoverConfig", "as long as the object"},
	{AnnotationVMBackup, "DataUploads", "manager", "JSON vmbackup.State: how far the backup of the VM is; on the oldest DataUpload of it", "from the first attempt on; stays"},
	{AnnotationVMDisks, "VirtualMachines inside a backup", "plugin", "names of the PVCs of the VM that Blockmover moves, separated by commas", "for ever, in the backup; the restore action acts on it and removes it"},
	{AnnotationRunStrategy, "restored VirtualMachines", "plugin", "run strategy that the VM had in the backup", "until all its disks are restored"},
	{LabelGrouped, "label of PVCs", "plugin", "true: the PVC carries the stamp of at least one group", "until the last stamp is removed"},
	{StampPrefix + "<digest>", "label of PVCs", "plugin", "UID of the Backup: the stamp that a VolumeGroupSnapshot selects its members by", "from the creation of the group until it is released"},
	{AnnotationMembers, "VolumeGroupSnapshots", "plugin", "names of the member PVCs, separated by commas", "as long as the group"},
	{AnnotationFailed, "VolumeGroupSnapshots", "plugin", "why no member waits for the group any more", "as long as the group"},
}

// ConfigKeys is the table of the keys of DataUpload.spec.dataMoverConfig.
var ConfigKeys = []Key{
	{ConfigParentSnapshot, "DataUpload.spec.dataMoverConfig", "plugin", "auto, none or a repo snapshot ID", "as long as the DataUpload"},
	{ConfigFullEvery, "DataUpload.spec.dataMoverConfig", "plugin", "Go duration: a full image is due when the newest one of the volume is older", "as long as the DataUpload"},
	{ConfigAudit, "DataUpload.spec.dataMoverConfig", "plugin", "percentage from 0% to 100%", "as long as the DataUpload"},
	{ConfigRetainSnapshot, "DataUpload.spec.dataMoverConfig", "plugin", "auto, always or never", "as long as the DataUpload"},
	{ConfigGroup, "DataUpload.spec.dataMoverConfig, status.dataMoverResult", "plugin", "name of the VolumeGroupSnapshot that the volume is a member of", "as long as the DataUpload"},
	{ConfigVM, "DataUpload.spec.dataMoverConfig, status.dataMoverResult, DataDownload.spec.dataMoverConfig", "plugin", "name of the VM whose disk KubeVirt backs up", "as long as the DataUpload"},
	{ConfigVMUID, "DataUpload.spec.dataMoverConfig", "plugin", "UID of the VM", "as long as the DataUpload"},
	{ConfigVMVolume, "DataUpload.spec.dataMoverConfig", "plugin", "name of the disk in the VM", "as long as the DataUpload"},
	{ConfigVMBackup, "DataUpload.spec.dataMoverConfig", "plugin", "name of the backup of the VM, the same for all its disks", "as long as the DataUpload"},
	{ConfigVMReason, "DataUpload.spec.dataMoverConfig, status.dataMoverResult", "plugin", "reason code: why the storage takes a snapshot of a disk that KubeVirt should back up", "as long as the DataUpload"},
	{ConfigSkipQuiesce, "DataUpload.spec.dataMoverConfig", "plugin", "true: KubeVirt does not freeze the file systems of the guest", "as long as the DataUpload"},
	{ConfigVolumeHandle, "DataUpload.status.dataMoverResult, DataDownload.spec.dataMoverConfig", "manager, plugin", "CSI handle of the volume that the image is of", "as long as the DataUpload; an in-place restore compares it"},
	{ConfigInPlace, "DataDownload.spec.dataMoverConfig", "plugin", "UID of the live PVC whose volume is written", "as long as the DataDownload"},
	{ConfigInPlaceVolume, "DataDownload.spec.dataMoverConfig", "plugin", "true, or any-volume: the volume may be another one than the image is of", "as long as the DataDownload"},
	{ConfigGroupReason, "DataUpload.spec.dataMoverConfig, status.dataMoverResult", "plugin", "reason code: why a volume with the group label is in no group", "as long as the DataUpload"},
}
