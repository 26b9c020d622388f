// Package backup holds Velero's backup item actions for PVCs and for group snapshots.
//
// A volume comes to Blockmover through one of two doors:
//
//   - The backup has snapshotMoveData and dataMover: blockmover. Velero's built-in
//     CSI action then takes the VolumeSnapshot and creates the DataUpload, and this
//     action stays out.
//
//   - A volume policy says `custom` with the parameter mover: blockmover. Velero
//     then leaves the volume alone, and this action does what the built-in would
//     do:
//
//     PVC ─▶ policy ─▶ VolumeSnapshot ─▶ wait for its handle ─▶ DataUpload ─▶ operation ID
//
// The policy decides per volume and wins over what is said of the whole backup:
// in a backup of the first kind a volume with such a policy goes through the
// second door, and spec.snapshotVolumes: false does not stop it, just as it does
// not stop Velero's own policy action `snapshot`.
//
// # What is promised
//
// A volume that the policy gives to Blockmover ends with a DataUpload or with an
// error of the backup, never with neither. When Execute returns an error, the
// VolumeSnapshot that it took is gone, and so is the snapshot in the storage; a
// member of a group goes with the group.
//
// # Groups
//
// PVCs with the same value of the Backup's group label are snapshotted at one
// instant, those of each driver:
//
//	first member ─▶ plan ─▶ stamp all members ─▶ VolumeGroupSnapshot ─▶ its VolumeSnapshot has a handle ─▶ DataUpload
//	other members ─▶ find the VolumeGroupSnapshot ───────────────────▶ …
//	finalize phase: VolumeGroupSnapshot ─▶ GroupSnapshotAction ─▶ stamps, group and members are taken away
//
// Who is in it is settled when the VolumeGroupSnapshot is made, and written on it.
//
// # Replays
//
// VolumeSnapshot and DataUpload have names derived from the UIDs of the backup
// and the PVC. Execute may be called any number of times, by any process, and
// adopts what an earlier call made.
//
// # What Velero does with it
//
// An error that Execute returns fails the item, and the backup becomes
// PartiallyFailed. A log line of level Error does the same, so there is none
// here. An error that Progress returns ends the operation for good, so errors
// that may pass are reported as a description instead.
package backup
