package backup

import (
	"context"
	"fmt"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	biav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/backupitemaction/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
)

// GroupSnapshotActionName is the registered name of the action for group snapshots.
const GroupSnapshotActionName = "blockmover.io/volumegroupsnapshot-backup"

// groupSnapshots is the resource of VolumeGroupSnapshots.
var groupSnapshots = schema.GroupResource{Group: groupsnapshot.APIGroup, Resource: "volumegroupsnapshots"}

// releaseTimeout bounds how long the finalize phase waits until a group is gone. The snapshot
// controller needs about a second. If it takes longer, the sweep finishes it.
const releaseTimeout = 20 * time.Second

// GroupSnapshotAction deletes the groups of a backup in its finalize phase, when all uploads
// have ended. It also keeps our groups and their members out of every backup. They are gone
// by the time of a restore. For them, Velero's own actions would add contents and classes to
// the backup, and restore VolumeSnapshots of storage snapshots that do not exist.
type GroupSnapshotAction struct {
	noOperations
	log logrus.FieldLogger
	api client.Client
	// poll is the interval at which a group in deletion is read.
	poll time.Duration
}

var _ biav2.BackupItemAction = (*GroupSnapshotAction)(nil)

// NewGroupSnapshotAction returns the action.
func NewGroupSnapshotAction(log logrus.FieldLogger, api client.Client) *GroupSnapshotAction {
	return &GroupSnapshotAction{log: log, api: api, poll: 100 * time.Millisecond}
}

// Name implements BackupItemAction.
func (*GroupSnapshotAction) Name() string { return GroupSnapshotActionName }

// AppliesTo implements BackupItemAction.
func (*GroupSnapshotAction) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{groupSnapshots.String(), "volumesnapshots.snapshot.storage.k8s.io"}}, nil
}

// Execute implements BackupItemAction. A group that cannot be deleted now is no error of the
// backup, which has all its data. The manager's sweep deletes it.
func (a *GroupSnapshotAction) Execute(item runtime.Unstructured, backup *velerov1.Backup) (
	runtime.Unstructured, []velero.ResourceIdentifier, string, []velero.ResourceIdentifier, error,
) {
	object := &unstructured.Unstructured{Object: item.UnstructuredContent()}
	ours, err := isOurs(object)
	if err != nil || !ours {
		return item, nil, "", nil, err
	}
	finalizing := backup.Status.Phase == velerov1.BackupPhaseFinalizing || backup.Status.Phase == velerov1.BackupPhaseFinalizingPartiallyFailed
	if finalizing && object.GetLabels()[identity.LabelBackupUID] == string(backup.UID) && identity.IsGroupName(object.GetName()) {
		ref := groupsnapshot.Ref{Namespace: object.GetNamespace(), Name: object.GetName(), BackupUID: string(backup.UID)}
		log := a.log.WithField("volumeGroupSnapshot", ref.String())
		if err := a.release(ref, backup.Namespace); err != nil {
			log.WithError(err).Warn("The group snapshot is left to the sweep of the blockmover manager")
		} else {
			log.Info("The group snapshot is released")
		}
	}
	kube.SetAnnotation(object, velerov1.SkipFromBackupAnnotation, "true")
	return object, nil, "", nil, nil
}

// isOurs reports whether an object is a group of ours or a member of one.
func isOurs(object *unstructured.Unstructured) (bool, error) {
	if object.GetKind() != "VolumeSnapshot" {
		return identity.IsGroupName(object.GetName()), nil
	}
	vs := &snapshotv1.VolumeSnapshot{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, vs); err != nil {
		return false, fmt.Errorf("decode VolumeSnapshot: %w", err)
	}
	return groupsnapshot.IsOurMember(vs), nil
}

// release deletes the group and waits until it is gone.
func (a *GroupSnapshotAction) release(ref groupsnapshot.Ref, veleroNamespace string) error {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	err := volumesnapshot.Until(ctx, func() time.Duration { return a.poll }, func(ctx context.Context) error {
		left, err := a.tryRelease(ctx, ref, veleroNamespace)
		if err == nil && len(left) > 0 {
			return volumesnapshot.NotYetError("still there: " + strings.Join(left, ", "))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("release VolumeGroupSnapshot %s: %w", ref, err)
	}
	return nil
}

func (a *GroupSnapshotAction) tryRelease(ctx context.Context, ref groupsnapshot.Ref, veleroNamespace string) ([]string, error) {
	uploads, err := a.uploads(ctx, ref, veleroNamespace)
	if err != nil {
		return nil, err
	}
	group, err := groupsnapshot.New(a.api, a.api).Open(ref)
	if err != nil {
		return nil, err
	}
	return group.Release(ctx, uploads)
}

// uploads returns those uploads of the backup that still run, although Velero waits for none
// of them any more.
func (a *GroupSnapshotAction) uploads(ctx context.Context, ref groupsnapshot.Ref, veleroNamespace string) ([]groupsnapshot.Upload, error) {
	all, err := operation.List(ctx, a.api, identity.KindDataUpload, client.InNamespace(veleroNamespace),
		client.MatchingLabels{velerov1.BackupUIDLabel: ref.BackupUID})
	if err != nil {
		return nil, err
	}
	var uploads []groupsnapshot.Upload
	for _, v := range all {
		spec := v.Upload.Spec
		if spec.SourceNamespace != ref.Namespace || spec.CSISnapshot == nil || v.Status.Phase.Terminal() {
			continue
		}
		uploads = append(uploads, groupsnapshot.Upload{Operation: v.Operation, VolumeSnapshot: spec.CSISnapshot.VolumeSnapshot})
	}
	return uploads, nil
}
