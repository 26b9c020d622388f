// Package restore holds Blockmover's restore item actions for Velero.
//
// The PVC action acts on PVCs that our backup action has marked (annotation
// blockmover.io/data-upload). PVCs of a backup with snapshotMoveData are marked by Velero's
// built-in action, and restored by Velero's built-in action, whatever the mover. Both lead to
// a DataDownload for our manager.
//
//	DataUpload in the backup ─ Velero ─▶ DataUploadResult (ConfigMap) ─ PVC action ─▶ DataDownload ─▶ operation ID
//	PVC ─ PVC action ─▶ PVC without a volume, with a selector that only the restored volume has
//
// # The PersistentVolume
//
// Velero decides what to do with the PersistentVolume of a restored PVC by the volume
// information in the backup. A volume of ours can be there twice: as skipped, because no
// action of Velero took it, and as moved, because of its DataUpload. The later entry wins. It
// is that of the DataUpload, and so Velero does not restore the PersistentVolume. But only a
// server with feature flag EnableCSI writes this entry, and only if it could read the
// DataUpload at that moment. Without the entry, Velero restores a PersistentVolume with
// reclaim policy Retain as it was. It names the PVC in its claimRef, the PVC binds to it
// despite its selector, and the application runs on the old volume instead of the backup. So
// the PV action keeps such PersistentVolumes out.
//
// # In place
//
// With the annotation blockmover.io/in-place on the Restore, a PVC that exists is written into:
//
//	live PVC, its volume, its pods ─ package inplace ─▶ error, or DataDownload with the UID of the live PVC ─▶ operation ID
//
// The PVC itself is left out of the restore. Without the annotation, a PVC that exists is left
// alone, and so is its data.
//
// # VMs
//
// A VM is marked, too (annotation blockmover.io/vm-disks):
//
//	VM ─ VM action ─▶ VM halted, its run strategy in an annotation ─▶ operation ID
//	Progress ─▶ all DataDownloads of its disks Completed ─▶ VM with its run strategy
//
// What KubeVirt makes itself for a VM is left out: instances, pods, VirtualMachineBackups, trackers.
//
// # Replays
//
// The name of a DataDownload is derived from the UIDs of the restore and the PVC, and the
// selector from the same. Execute may be called any number of times, and adopts what an
// earlier call made.
package restore
