// Package backup holds Blockmover's backup item actions for PVCs, group snapshots and VMs.
//
// There are two ways to Blockmover. The first is a backup with snapshotMoveData and
// dataMover: blockmover. Velero's built-in CSI action then takes the VolumeSnapshot and
// creates the DataUpload, and this action does nothing.
//
// The second is a volume policy with action `custom` and the parameter mover: blockmover.
// Velero then skips the volume, and this action does what the built-in action would do:
//
//	PVC ─▶ policy ─▶ VolumeSnapshot ─▶ wait for its handle ─▶ DataUpload ─▶ operation ID
//
// The policy decides per volume and overrides the backup: in a backup of the first kind, a
// volume with such a policy goes the second way. spec.snapshotVolumes: false does not stop
// it, as it does not stop Velero's own policy action `snapshot`.
//
// # What is promised
//
// A volume that the policy gives to Blockmover ends with a DataUpload or with an error of the
// backup, never with neither. If Execute returns an error, the VolumeSnapshot that it took is
// gone, and so is the snapshot in the storage. A member of a group goes with the group.
//
// # Groups
//
// PVCs with the same value of the Backup's group label are snapshotted at one instant, for
// each driver:
//
//	first member ─▶ plan ─▶ stamp all members ─▶ VolumeGroupSnapshot ─▶ its VolumeSnapshot has a handle ─▶ DataUpload
//	other members ─▶ find the VolumeGroupSnapshot ───────────────────▶ …
//	finalize phase: VolumeGroupSnapshot ─▶ GroupSnapshotAction ─▶ stamps, group and members are deleted
//
// The members are decided when the VolumeGroupSnapshot is made, and written on it.
//
// # Disks of running VMs
//
// With mover: blockmover-kubevirt there is no VolumeSnapshot. The DataUpload names the VM, and the
// manager has KubeVirt back it up:
//
//	PVC ─▶ policy ─▶ VM that has it as a disk, runs, and is tracked ─▶ DataUpload ─▶ operation ID
//	                  └ else, with a reason code: the way of other volumes
//	VM ─▶ VMAction ─▶ annotation with the PVCs that are moved, and the PVCs themselves
//
// # Replays
//
// The names of VolumeSnapshot and DataUpload are derived from the UIDs of the backup and the
// PVC. Execute may be called any number of times, by any process, and adopts what an earlier
// call made.
//
// # Errors
//
// An error that Execute returns fails the item, and the backup becomes PartiallyFailed. A log
// line of level Error does the same, so this package writes none. An error that Progress
// returns ends the operation for good. So an error that may pass becomes a description
// instead.
package backup
