// Package delete is Blockmover's delete item action for DataUploads.
//
// When a backup is deleted, Velero calls it for each DataUpload in the backup. It names the
// repo snapshot to Velero's deletion controller, which deletes it (internal/forget). It releases the
// storage snapshot that the backup retains, and the VolumeSnapshot if the mover has left one.
//
// Velero only logs an error of this action, and deletes the backup all the same. Then nobody
// knows the repo snapshot any more. So this action retries errors that may pass.
package delete

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/forget"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/plugins/internal/poll"
)

// DataUploadActionName is the registered name of the action.
const DataUploadActionName = "blockmover.io/dataupload-delete"

// backoff of retries: 6 attempts within about 15 s.
var backoff = wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 6}

// cacheLag is how long the cache of the Velero server may be behind the API server. Its
// deletion controller reads from the cache what this action wrote a moment ago, and does not
// know that it should wait.
const cacheLag = 250 * time.Millisecond

// A DataUpload that is canceled ends within 10 s if the manager runs.
const (
	endTimeout = 30 * time.Second
	endPoll    = 500 * time.Millisecond
)

// DataUploadAction releases what a DataUpload of ours holds.
type DataUploadAction struct {
	log                 logrus.FieldLogger
	api                 client.Client
	backoff             wait.Backoff
	cacheLag            time.Duration
	endTimeout, endPoll time.Duration
}

var _ velero.DeleteItemAction = (*DataUploadAction)(nil)

// NewDataUploadAction returns the action.
func NewDataUploadAction(log logrus.FieldLogger, api client.Client) *DataUploadAction {
	return &DataUploadAction{log: log, api: api, backoff: backoff, cacheLag: cacheLag, endTimeout: endTimeout, endPoll: endPoll}
}

// AppliesTo implements DeleteItemAction.
func (*DataUploadAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"datauploads.velero.io"}}, nil
}

// Execute implements DeleteItemAction.
func (a *DataUploadAction) Execute(input *velero.DeleteItemActionExecuteInput) error {
	upload := &velerov2alpha1.DataUpload{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(input.Item.UnstructuredContent(), upload); err != nil {
		return fmt.Errorf("decode DataUpload: %w", err)
	}
	if upload.Spec.DataMover != identity.DataMover {
		return nil
	}
	// A backup of Velero's own namespace holds DataUploads of other backups. They must not be
	// deleted with it.
	if owner := upload.Labels[velerov1.BackupNameLabel]; owner != label.GetValidName(input.Backup.Name) {
		a.log.Warnf("DataUpload %s/%s is in backup %s but belongs to %q: it is left alone (exclude Velero's namespace from backups)",
			upload.Namespace, upload.Name, input.Backup.Name, owner)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), poll.CallTimeout)
	defer cancel()
	return errors.Join(
		a.retry(ctx, func() error { return a.handOver(ctx, upload, input.Backup) }),
		a.retry(ctx, func() error { return a.releaseRetained(ctx, upload) }),
		a.retry(ctx, func() error { return a.releaseVolumeSnapshot(ctx, upload, input.Backup) }),
	)
}

func (a *DataUploadAction) retry(ctx context.Context, do func() error) error {
	return retry.OnError(a.backoff, func(err error) bool { return ctx.Err() == nil && !errors.Is(err, errRuns) }, do)
}

// handOver names the repo snapshot to Velero's deletion controller. It does nothing for a
// DataUpload without one.
//
// The DataUpload in the backup is as it was when Velero wrote it. Velero writes it before the
// upload has ended if it could not ask our plugin for the progress. The DataUpload in the cluster
// may have an image since, or still run.
func (a *DataUploadAction) handOver(ctx context.Context, upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) error {
	if upload.Status.SnapshotID == "" {
		live, err := a.ended(ctx, upload)
		if err != nil || live == nil || live.Upload.Status.SnapshotID == "" {
			return err
		}
		upload = live.Upload
	}
	if err := forget.Renew(ctx, a.api, forget.Note(upload, backup)); err != nil {
		return err
	}
	select {
	case <-time.After(a.cacheLag):
	case <-ctx.Done():
	}
	return nil
}

// errRuns says that a DataUpload has not ended in time.
var errRuns = errors.New("it does not end after it was canceled, so its image may stay in the repository: is the blockmover manager running?")

// ended returns the DataUpload in the cluster, once it has ended. It cancels one that has not. It
// returns nil if there is none, as in another cluster that uses the same backups, and for one that
// had not begun, and never will.
func (a *DataUploadAction) ended(ctx context.Context, upload *velerov2alpha1.DataUpload) (*operation.View, error) {
	ctx, cancel := context.WithTimeout(ctx, a.endTimeout)
	defer cancel()
	for asked := false; ; asked = true {
		live, err := operation.Find(ctx, a.api, identity.KindDataUpload, client.ObjectKeyFromObject(upload))
		switch {
		case err != nil:
			return nil, err
		case live == nil || live.UID != string(upload.UID):
			return nil, nil
		case live.Status.Phase.Terminal():
			return live, nil
		case !asked:
			a.log.Infof("Canceling DataUpload %s, which runs while its backup is being deleted", live.Key())
			if err := operation.RequestCancel(ctx, a.api, live.Operation); err != nil {
				return nil, fmt.Errorf("cancel DataUpload %s: %w", live.Key(), err)
			}
			if live.Status.Phase == phase.New {
				return nil, nil
			}
		}
		select {
		case <-time.After(a.endPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("cancel DataUpload %s: %w", live.Key(), errRuns)
		}
	}
}

// releaseRetained deletes the storage snapshot that was retained after the upload. The name
// of the pair has the UID of the DataUpload, so a backup of another cluster finds none here.
//
// An upload of the same volume that runs may build on the snapshot. Then the manager's sweep
// deletes it later.
func (a *DataUploadAction) releaseRetained(ctx context.Context, upload *velerov2alpha1.DataUpload) error {
	rehomer := rehome.New(a.api, a.api, upload.Namespace)
	live, err := a.rebuildRetained(ctx, rehomer, upload)
	if err != nil {
		return err
	}
	name := identity.OperationName(string(upload.UID))
	pair, err := rehomer.Pair(ctx, identity.Operation{UID: string(upload.UID)})
	if err != nil {
		return err
	}
	if pair != nil && pair.Retained {
		busy, err := a.isUploading(ctx, upload)
		if err != nil {
			return err
		}
		if busy {
			// The backup is deleted, and not only its object.
			return rehomer.MarkBackupGone(ctx, name, time.Unix(0, 0))
		}
	}
	if err := a.forgetRetained(ctx, live); err != nil {
		return err
	}
	left, err := rehomer.ReleaseRetained(ctx, name)
	if len(left) > 0 {
		a.log.Infof("Releasing the storage snapshot that was retained as VolumeSnapshot %s/%s", upload.Namespace, name)
	}
	return err
}

// rebuildRetained creates the pair again if somebody has deleted it, and the DataUpload still
// says that there is a storage snapshot. It reads the DataUpload in the cluster, which is up
// to date, not that in the backup, and returns it, or nil if it says nothing.
func (a *DataUploadAction) rebuildRetained(ctx context.Context, rehomer rehome.Rehomer, upload *velerov2alpha1.DataUpload) (*operation.View, error) {
	live, err := operation.Find(ctx, a.api, identity.KindDataUpload, client.ObjectKeyFromObject(upload))
	if err != nil || live == nil || live.UID != string(upload.UID) || live.Status.Retained == "" {
		return nil, err
	}
	var retained rehome.Retained
	if err := json.Unmarshal([]byte(live.Status.Retained), &retained); err != nil {
		return nil, fmt.Errorf("read annotation %s of DataUpload %s: %w", identity.AnnotationRetained, live.Key(), err)
	}
	return live, rehomer.Rebuild(ctx, retained)
}

// forgetRetained removes the note from the DataUpload before the pair is deleted. Otherwise a
// deletion that is repeated would make the pair again, of a storage snapshot that is gone.
func (a *DataUploadAction) forgetRetained(ctx context.Context, live *operation.View) error {
	if live == nil {
		return nil
	}
	live.Status.Retained = ""
	return client.IgnoreNotFound(live.Save(ctx, a.api))
}

// isUploading reports whether another upload of the volume runs.
func (a *DataUploadAction) isUploading(ctx context.Context, upload *velerov2alpha1.DataUpload) (bool, error) {
	all, err := operation.List(ctx, a.api, identity.KindDataUpload, client.InNamespace(upload.Namespace))
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(all, func(other *operation.View) bool {
		return other.UID != string(upload.UID) && !other.Status.Phase.Terminal() &&
			other.Upload.Spec.SourceNamespace == upload.Spec.SourceNamespace && other.Upload.Spec.SourcePVC == upload.Spec.SourcePVC
	}), nil
}

// releaseVolumeSnapshot deletes the VolumeSnapshot that the DataUpload moves, if it still is
// where it was taken, and was taken for this backup: by our action, or by Velero's, which
// leaves it to the mover, even if the mover never ran. A VolumeSnapshot that a manager has
// taken over belongs to the manager.
func (a *DataUploadAction) releaseVolumeSnapshot(ctx context.Context, upload *velerov2alpha1.DataUpload, backup *velerov1.Backup) error {
	if upload.Spec.CSISnapshot == nil || upload.Spec.CSISnapshot.VolumeSnapshot == "" {
		return nil
	}
	key := client.ObjectKey{Namespace: upload.Spec.SourceNamespace, Name: upload.Spec.CSISnapshot.VolumeSnapshot}
	vs, err := kube.Find(ctx, a.api, key, &snapshotv1.VolumeSnapshot{})
	switch {
	case meta.IsNoMatchError(err):
		return nil // a cluster without snapshots
	case err != nil || vs == nil:
		return err
	}
	byUs := vs.Labels[identity.LabelBackupUID] != "" && vs.Labels[identity.LabelBackupUID] == upload.Labels[velerov1.BackupUIDLabel]
	byVelero := vs.Labels[velerov1.BackupNameLabel] == label.GetValidName(backup.Name)
	if !byUs && !byVelero {
		return nil
	}
	a.log.Infof("Releasing VolumeSnapshot %s, which the mover has left", key)
	_, err = volumesnapshot.Release(ctx, a.api, a.api, key)
	return err
}
