package kit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Velero's labels with the name of the backup and of the restore.
const (
	LabelBackup  = "velero.io/backup-name"
	LabelRestore = "velero.io/restore-name"
)

// OperationTimeout bounds one backup or restore of the small test volumes.
const OperationTimeout = 4 * time.Minute

// Backup runs `velero backup create NAME ARGS` and waits until it has ended, in whatever
// phase.
func (k *Kit) Backup(ctx context.Context, name string, args ...string) (Object, error) {
	if _, err := k.Velero(ctx, append([]string{"backup", "create", name}, args...)...); err != nil {
		return Object{}, err
	}
	return k.waitEnded(ctx, "backup.velero.io", name)
}

// Restore runs `velero restore create NAME --from-backup BACKUP ARGS` and waits until it has
// ended, in whatever phase.
func (k *Kit) Restore(ctx context.Context, name, backup string, args ...string) (Object, error) {
	if _, err := k.Velero(ctx, append([]string{"restore", "create", name, "--from-backup", backup}, args...)...); err != nil {
		return Object{}, err
	}
	return k.waitEnded(ctx, "restore.velero.io", name)
}

// endedPhases are the terminal phases of backups and restores.
var endedPhases = []string{"Completed", "PartiallyFailed", "Failed", "FailedValidation"}

func (k *Kit) waitEnded(ctx context.Context, kind, name string) (Object, error) {
	var o Object
	err := k.Wait(ctx, kind+" "+name, OperationTimeout, func(ctx context.Context) (bool, string, error) {
		if err := k.Get(ctx, &o, "-n", k.VeleroNamespace, kind, name); err != nil {
			return false, "", err
		}
		return slices.Contains(endedPhases, o.Status.Phase), o.Status.Phase, nil
	})
	return o, err
}

// MustBackup is Backup, and fails unless the backup is Completed.
func (k *Kit) MustBackup(ctx context.Context, name string, args ...string) error {
	o, err := k.Backup(ctx, name, args...)
	if err != nil {
		return err
	}
	return k.checkCompleted(ctx, "backup", o)
}

// CompleteBackup waits for a backup that was created by something else than Backup. It fails
// unless the backup is Completed.
func (k *Kit) CompleteBackup(ctx context.Context, name string) error {
	return k.complete(ctx, "backup", name)
}

// CompleteRestore is CompleteBackup for a restore.
func (k *Kit) CompleteRestore(ctx context.Context, name string) error {
	return k.complete(ctx, "restore", name)
}

func (k *Kit) complete(ctx context.Context, kind, name string) error {
	o, err := k.waitEnded(ctx, kind+".velero.io", name)
	if err != nil {
		return err
	}
	return k.checkCompleted(ctx, kind, o)
}

// MustRestore is Restore, and fails unless the restore is Completed.
func (k *Kit) MustRestore(ctx context.Context, name, backup string, args ...string) error {
	o, err := k.Restore(ctx, name, backup, args...)
	if err != nil {
		return err
	}
	return k.checkCompleted(ctx, "restore", o)
}

func (k *Kit) checkCompleted(ctx context.Context, kind string, o Object) error {
	if o.Status.Phase == "Completed" {
		return nil
	}
	described, err := k.Describe(ctx, kind, o.Metadata.Name)
	if err != nil {
		described = err.Error()
	}
	return fmt.Errorf("%s %s is %s, want Completed: %s", kind, o.Metadata.Name, o.Status.Phase, tail(described))
}

// Describe returns the output of `velero backup describe --details`.
func (k *Kit) Describe(ctx context.Context, kind, name string) (string, error) {
	return k.Velero(ctx, kind, "describe", name, "--details")
}

// UseStore makes Velero and Blockmover reach the object store of the default storage location at another address.
func (k *Kit) UseStore(ctx context.Context, address string) error {
	_, err := k.Kubectl(ctx, "-n", k.VeleroNamespace, "patch", "backupstoragelocations.velero.io", "default", "--type=merge",
		"-p", fmt.Sprintf(`{"spec":{"config":{"s3Url":"http://%s"}}}`, address))
	return err
}

// DataUploads returns the DataUploads of a backup by the name of their source
// PVC.
func (k *Kit) DataUploads(ctx context.Context, backup string) (map[string]Object, error) {
	items, err := k.List(ctx, "-n", k.VeleroNamespace, "datauploads.velero.io", "-l", LabelBackup+"="+backup)
	if err != nil {
		return nil, err
	}
	byPVC := make(map[string]Object, len(items))
	for _, o := range items {
		byPVC[o.Spec.SourcePVC] = o
	}
	return byPVC, nil
}

// DataDownloads returns the DataDownloads of a restore by the name of their target PVC.
func (k *Kit) DataDownloads(ctx context.Context, restore string) (map[string]Object, error) {
	items, err := k.List(ctx, "-n", k.VeleroNamespace, "datadownloads.velero.io", "-l", LabelRestore+"="+restore)
	if err != nil {
		return nil, err
	}
	byPVC := make(map[string]Object, len(items))
	for _, o := range items {
		byPVC[o.Spec.TargetVolume.PVC] = o
	}
	return byPVC, nil
}

// Names lists the objects, for messages.
func Names(objects map[string]Object) string {
	names := make([]string, 0, len(objects))
	for _, o := range objects {
		names = append(names, o.String())
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// EnsureNoBackup deletes a backup if it is there.
func (k *Kit) EnsureNoBackup(ctx context.Context, name string) error {
	items, err := k.List(ctx, "-n", k.VeleroNamespace, "backups.velero.io", "--field-selector", "metadata.name="+name)
	if err != nil || len(items) == 0 {
		return err
	}
	return k.DeleteBackup(ctx, name)
}

// DeleteBackup runs `velero backup delete` and waits until the backup is gone.
func (k *Kit) DeleteBackup(ctx context.Context, name string) error {
	if _, err := k.Velero(ctx, "backup", "delete", name, "--confirm"); err != nil {
		return err
	}
	return k.Wait(ctx, "deletion of backup "+name, OperationTimeout, func(ctx context.Context) (bool, string, error) {
		items, err := k.List(ctx, "-n", k.VeleroNamespace, "backups.velero.io", "--field-selector", "metadata.name="+name)
		if err != nil {
			return false, "", err
		}
		requests, err := k.Kubectl(ctx, "-n", k.VeleroNamespace, "get", "deletebackuprequests.velero.io",
			"-l", LabelBackup+"="+name, "-o", "jsonpath={.items[*].status}")
		return len(items) == 0, strings.TrimSpace(requests), err
	})
}

// MapStorageClass makes restores replace one StorageClass by another, with Velero's own item action,
// as long as the ConfigMap name is there.
func (k *Kit) MapStorageClass(ctx context.Context, name, from, to string) error {
	return k.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata:
  name: %s
  namespace: %s
  labels: {velero.io/plugin-config: "", velero.io/change-storage-class: RestoreItemAction}
data: {%s: %s}
`, name, k.VeleroNamespace, from, to))
}
