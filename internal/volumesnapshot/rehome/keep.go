package rehome

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// Retained is a retained pair. It has all that is needed to delete the storage
// snapshot after the pair is gone.
type Retained struct {
	// Name of the VolumeSnapshot, and of its content.
	Name string `json:"name"`
	Keeping
	Driver         string    `json:"driver"`
	VolumeHandle   string    `json:"volumeHandle"`
	SnapshotHandle string    `json:"snapshotHandle"`
	SnapshotTime   time.Time `json:"snapshotTime"`
	// Class is the VolumeSnapshotClass, or "".
	Class string `json:"class,omitempty"`
	// BackupGone is since when the Backup does not exist, or zero.
	BackupGone time.Time `json:"backupGone,omitzero"`
	// SecretName and SecretNamespace name the secret that the driver needs to delete
	// the snapshot; "" if it needs none.
	SecretName      string `json:"secretName,omitempty"`
	SecretNamespace string `json:"secretNamespace,omitempty"`
	// Group is the record of the group that the storage snapshot is a member of, or "". The storage
	// may refuse to delete a member alone.
	Group string `json:"group,omitempty"`
}

// Keeping says by which rule and for which backup a pair is kept.
type Keeping struct {
	Retention policy.Retention `json:"retain"`
	// Namespace and PVC name the volume.
	Namespace string `json:"namespace"`
	PVC       string `json:"pvc"`
	// Location is the backup storage location that has the image.
	Location string `json:"location"`
	// Backup and BackupUID name the Backup.
	Backup    string `json:"backup"`
	BackupUID string `json:"backupUID"`
}

// ParseRetained reads what a DataUpload has recorded of the pair that is retained for it. It returns nil
// for "", and for what it cannot read.
func ParseRetained(note string) *Retained {
	k := &Retained{}
	if note == "" || json.Unmarshal([]byte(note), k) != nil {
		return nil
	}
	return k
}

// compareAge orders by the time of the snapshot, and snapshots of one instant by name.
func (k Retained) compareAge(other Retained) int {
	return cmp.Or(k.SnapshotTime.Compare(other.SnapshotTime), strings.Compare(k.Name, other.Name))
}

// NewerThan reports whether the snapshot was taken after another one.
func (k Retained) NewerThan(other Retained) bool { return k.compareAge(other) > 0 }

// Pair is the pair that was created for an operation.
type Pair struct {
	Driver string
	// Retained is set once the pair was kept.
	Retained bool
}

// Pair returns the pair of an operation, or nil if there is none or it is being
// deleted.
func (r Rehomer) Pair(ctx context.Context, op identity.Operation) (*Pair, error) {
	found, err := r.contents.Find(ctx, op.ObjectName())
	if err != nil || found == nil || found.DeletionTimestamp != nil {
		return nil, err
	}
	return &Pair{Driver: found.Spec.Driver, Retained: isRetained(found)}, nil
}

// Keep passes the pair from the operation to its backup, so that Release leaves it
// alone. A pair that is already retained stays as it is. Keep returns nil if there is
// no pair.
func (r Rehomer) Keep(ctx context.Context, op identity.Operation, k Keeping) (*Retained, error) {
	pair, err := r.contents.Find(ctx, op.ObjectName())
	if err != nil || pair == nil || pair.DeletionTimestamp != nil {
		return nil, err
	}
	if !isRetained(pair) {
		before := pair.DeepCopy()
		// AnnotationOperation stays and says which DataUpload it was.
		delete(pair.Labels, identity.LabelOperation)
		k.mark(pair)
		if err := r.client.Patch(ctx, pair, client.MergeFrom(before)); err != nil {
			return nil, fmt.Errorf("keep VolumeSnapshotContent %s: %w", pair.Name, err)
		}
	}
	retained, err := readRetained(pair)
	if err != nil {
		return nil, err
	}
	return &retained, r.followContent(ctx, pair)
}

func (k Keeping) mark(pair *snapshotv1.VolumeSnapshotContent) {
	kube.SetLabel(pair, velerov1.ExcludeFromBackupLabel, "true")
	kube.SetLabel(pair, identity.LabelRetained, string(k.Retention))
	for key, name := range map[string]string{
		identity.LabelVolumeNamespace: k.Namespace,
		identity.LabelVolume:          k.PVC,
		identity.LabelBackup:          k.Backup,
	} {
		kube.SetLabel(pair, key, label.GetValidName(name))
		kube.SetAnnotation(pair, key, name)
	}
	kube.SetAnnotation(pair, identity.LabelBackupUID, k.BackupUID)
	kube.SetAnnotation(pair, identity.AnnotationLocation, k.Location)
}

func isRetained(object client.Object) bool {
	return object.GetLabels()[identity.LabelRetained] != ""
}

// readRetained reads back what Keep and Rebuild wrote.
func readRetained(pair *snapshotv1.VolumeSnapshotContent) (Retained, error) {
	at, err := readTime(pair)
	if err != nil {
		return Retained{}, fmt.Errorf("read retained pair: %w", err)
	}
	a := pair.Annotations
	retained := Retained{
		Name: pair.Name,
		Keeping: Keeping{
			Retention: policy.Retention(pair.Labels[identity.LabelRetained]),
			Namespace: a[identity.LabelVolumeNamespace],
			PVC:       a[identity.LabelVolume],
			Location:  a[identity.AnnotationLocation],
			Backup:    a[identity.LabelBackup],
			BackupUID: a[identity.LabelBackupUID],
		},
		Driver:          pair.Spec.Driver,
		VolumeHandle:    a[identity.AnnotationVolumeHandle],
		SnapshotHandle:  content.HandleOf(pair),
		SnapshotTime:    at,
		SecretName:      a[content.AnnotationSecretName],
		SecretNamespace: a[content.AnnotationSecretNamespace],
		Group:           a[identity.AnnotationGroupSnapshot],
	}
	if class := pair.Spec.VolumeSnapshotClassName; class != nil {
		retained.Class = *class
	}
	if gone, err := time.Parse(time.RFC3339, a[identity.AnnotationBackupGone]); err == nil {
		retained.BackupGone = gone
	}
	if retained.Backup == "" || retained.PVC == "" || retained.VolumeHandle == "" {
		return Retained{}, fmt.Errorf("read retained VolumeSnapshotContent %s: its annotations do not say which volume and backup it is of", pair.Name)
	}
	return retained, nil
}

// followContent gives the VolumeSnapshot of a pair the labels and annotations of its
// content. Keep marks the content first, and may crash before it marks the other.
func (r Rehomer) followContent(ctx context.Context, pair *snapshotv1.VolumeSnapshotContent) error {
	vs, err := r.contents.FindSnapshot(ctx, r.keyOf(pair.Name))
	if err != nil || vs == nil {
		return err
	}
	before := vs.DeepCopy()
	copyMarks(pair, vs)
	if maps.Equal(before.Labels, vs.Labels) && maps.Equal(before.Annotations, vs.Annotations) {
		return nil
	}
	if err := client.IgnoreNotFound(r.client.Patch(ctx, vs, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("keep VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return nil
}
