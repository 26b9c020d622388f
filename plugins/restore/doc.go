// Package restore holds Velero's restore item actions of Blockmover.
//
// The PVC action acts on PVCs that the backup action of this project has marked
// (annotation blockmover.io/data-upload). PVCs of a backup with snapshotMoveData,
// which Velero's built-in action has marked, are restored by Velero's built-in
// action, whatever the mover; both lead to a DataDownload for our manager.
//
//	DataUpload in the backup ─ Velero ─▶ DataUploadResult (ConfigMap) ─ PVC action ─▶ DataDownload ─▶ operation ID
//	PVC ─ PVC action ─▶ PVC without a volume, with a selector that only the restored volume has
//
// # The PersistentVolume
//
// What Velero does with the PersistentVolume of a restored PVC follows from the
// volume information in the backup, where a volume of ours can be listed twice: as
// skipped, because no action of Velero's took it, and as moved, because of its
// DataUpload. The later entry wins and that is the DataUpload's: Velero does not
// restore the PersistentVolume. But the entry is only written by a server with
// feature flag EnableCSI, and only when the DataUpload could be read in that
// moment. Without it, a PersistentVolume with reclaim policy Retain is restored as
// it was: it names the PVC in its claimRef, the PVC binds to it in spite of its
// selector, and the application runs on the old volume instead of the backup.
// Therefore the PV action keeps such PersistentVolumes out.
//
// # Replays
//
// A DataDownload has a name derived from the UIDs of the restore and the PVC, and
// the selector is derived from the same. Execute may be called any number of
// times, and adopts what an earlier call made.
package restore
