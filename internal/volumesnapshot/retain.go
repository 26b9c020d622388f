package volumesnapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
)

// Annotations of the snapshot controller: the secret that the driver needs to
// delete a snapshot.
const (
	annotationSecretName      = "snapshot.storage.kubernetes.io/deletion-secret-name"
	annotationSecretNamespace = "snapshot.storage.kubernetes.io/deletion-secret-namespace"
)

// Retained is a storage snapshot that stays after the upload, as a re-homed pair
// that is no operation's any more. It is as much as is needed to delete the
// snapshot when the pair is gone.
type Retained struct {
	// Name of the VolumeSnapshot, and of its content.
	Name string `json:"name"`
	Keeping
	Driver         string    `json:"driver"`
	VolumeHandle   string    `json:"volumeHandle"`
	SnapshotHandle string    `json:"snapshotHandle"`
	SnapshotTime   time.Time `json:"snapshotTime"`
	// Class is the VolumeSnapshotClass, SecretName and SecretNamespace the secret
	// that deletes; "" where there is none.
	Class           string `json:"class,omitempty"`
	SecretName      string `json:"secretName,omitempty"`
	SecretNamespace string `json:"secretNamespace,omitempty"`
}

// Keeping says by what rule, and for whom, a storage snapshot stays.
type Keeping struct {
	Retain policy.Retain `json:"retain"`
	// Namespace and PVC name the volume.
	Namespace string `json:"namespace"`
	PVC       string `json:"pvc"`
	// Location is the backup storage location that has the image.
	Location string `json:"location"`
	// Backup and BackupUID name the Backup that the snapshot belongs to.
	Backup    string `json:"backup"`
	BackupUID string `json:"backupUID"`
}

// Pair returns the driver of an operation's pair, and whether the pair is
// retained; "" where there is none, or it is being deleted.
func (r Rehomer) Pair(ctx context.Context, op identity.Operation) (driver string, retained bool, err error) {
	content, err := r.getContent(ctx, op.ObjectName())
	if err != nil || content == nil || content.DeletionTimestamp != nil {
		return "", false, err
	}
	return content.Spec.Driver, isRetained(content), nil
}

// Keep takes the pair out of the operation's hands, so that Release leaves it.
// One that is retained already stays as it is. It returns nil where there is no
// pair.
func (r Rehomer) Keep(ctx context.Context, op identity.Operation, k Keeping) (*Retained, error) {
	content, err := r.getContent(ctx, op.ObjectName())
	if err != nil || content == nil || content.DeletionTimestamp != nil {
		return nil, err
	}
	if !isRetained(content) {
		before := content.DeepCopy()
		// AnnotationOperation stays: it says which DataUpload it was.
		delete(content.Labels, identity.LabelOperation)
		k.mark(content)
		if err := r.Client.Patch(ctx, content, client.MergeFrom(before)); err != nil {
			return nil, fmt.Errorf("retain VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	retained, err := readRetained(content)
	if err != nil {
		return nil, err
	}
	return &retained, r.followContent(ctx, content)
}

func (k Keeping) mark(content *snapshotv1.VolumeSnapshotContent) {
	meta := &content.ObjectMeta
	metav1.SetMetaDataLabel(meta, velerov1.ExcludeFromBackupLabel, "true")
	metav1.SetMetaDataLabel(meta, identity.LabelRetained, string(k.Retain))
	for key, name := range map[string]string{
		identity.LabelVolumeNamespace: k.Namespace,
		identity.LabelVolume:          k.PVC,
		identity.LabelBackup:          k.Backup,
	} {
		metav1.SetMetaDataLabel(meta, key, label.GetValidName(name))
		metav1.SetMetaDataAnnotation(meta, key, name)
	}
	metav1.SetMetaDataAnnotation(meta, identity.LabelBackupUID, k.BackupUID)
	metav1.SetMetaDataAnnotation(meta, identity.AnnotationLocation, k.Location)
}

func isRetained(content *snapshotv1.VolumeSnapshotContent) bool {
	return content != nil && content.Labels[identity.LabelRetained] != ""
}

// readRetained reads back what Keep and Rebuild wrote.
func readRetained(content *snapshotv1.VolumeSnapshotContent) (Retained, error) {
	a := content.Annotations
	at, err := time.Parse(time.RFC3339Nano, a[identity.AnnotationSnapshotTime])
	if err != nil {
		return Retained{}, fmt.Errorf("read retained VolumeSnapshotContent %s: annotation %s: %w", content.Name, identity.AnnotationSnapshotTime, err)
	}
	retained := Retained{
		Name: content.Name,
		Keeping: Keeping{
			Retain:    policy.Retain(content.Labels[identity.LabelRetained]),
			Namespace: a[identity.LabelVolumeNamespace],
			PVC:       a[identity.LabelVolume],
			Location:  a[identity.AnnotationLocation],
			Backup:    a[identity.LabelBackup],
			BackupUID: a[identity.LabelBackupUID],
		},
		Driver:          content.Spec.Driver,
		VolumeHandle:    a[identity.AnnotationVolumeHandle],
		SnapshotHandle:  handleOf(content),
		SnapshotTime:    at,
		SecretName:      a[annotationSecretName],
		SecretNamespace: a[annotationSecretNamespace],
	}
	if class := content.Spec.VolumeSnapshotClassName; class != nil {
		retained.Class = *class
	}
	if retained.Backup == "" || retained.PVC == "" || retained.VolumeHandle == "" {
		return Retained{}, fmt.Errorf("read retained VolumeSnapshotContent %s: its annotations do not say which volume and backup it is of", content.Name)
	}
	return retained, nil
}

// followContent gives the VolumeSnapshot of a pair the labels and annotations of
// its content: the content is marked first, and a crash may come in between.
func (r Rehomer) followContent(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	vs, err := r.getSnapshot(ctx, content.Name)
	if err != nil || vs == nil {
		return err
	}
	before := vs.DeepCopy()
	copyMarks(content, vs)
	if maps.Equal(before.Labels, vs.Labels) && maps.Equal(before.Annotations, vs.Annotations) {
		return nil
	}
	if err := client.IgnoreNotFound(r.Client.Patch(ctx, vs, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("retain VolumeSnapshot %s/%s: %w", vs.Namespace, vs.Name, err)
	}
	return nil
}

// copyMarks makes our labels and annotations of one object those of another.
func copyMarks(from, to client.Object) {
	to.SetLabels(withMarksOf(from.GetLabels(), to.GetLabels()))
	to.SetAnnotations(withMarksOf(from.GetAnnotations(), to.GetAnnotations()))
}

func withMarksOf(from, to map[string]string) map[string]string {
	foreign := func(key, _ string) bool { return !strings.HasPrefix(key, identity.Domain) }
	ours := func(key, value string) bool { return !foreign(key, value) }
	marks := maps.Clone(from)
	maps.DeleteFunc(marks, foreign)
	out := maps.Clone(to)
	maps.DeleteFunc(out, ours)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, marks)
	return out
}

// ListRetained returns what is retained in the namespace and not being deleted,
// oldest first, and an error for each pair that cannot be read beside those that
// can.
func (r Rehomer) ListRetained(ctx context.Context) ([]Retained, error) {
	return r.listRetained(ctx, client.HasLabels{identity.LabelRetained})
}

// ListRetainedOf returns what is retained of one volume.
func (r Rehomer) ListRetainedOf(ctx context.Context, namespace, pvc string) ([]Retained, error) {
	all, err := r.listRetained(ctx, client.HasLabels{identity.LabelRetained}, client.MatchingLabels{
		identity.LabelVolumeNamespace: label.GetValidName(namespace),
		identity.LabelVolume:          label.GetValidName(pvc),
	})
	return slices.DeleteFunc(all, func(k Retained) bool { return k.Namespace != namespace || k.PVC != pvc }), err
}

func (r Rehomer) listRetained(ctx context.Context, options ...client.ListOption) ([]Retained, error) {
	contents := &snapshotv1.VolumeSnapshotContentList{}
	if err := r.Reader.List(ctx, contents, options...); err != nil {
		return nil, fmt.Errorf("list retained VolumeSnapshotContents: %w", err)
	}
	var out []Retained
	var errs []error
	for i := range contents.Items {
		content := &contents.Items[i]
		if content.Spec.VolumeSnapshotRef.Namespace != r.Namespace || content.DeletionTimestamp != nil {
			continue // another Velero's, or as good as gone
		}
		retained, err := readRetained(content)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, retained)
	}
	slices.SortFunc(out, Retained.compareAge)
	return out, errors.Join(errs...)
}

// compareAge orders by the time of the snapshot; names decide between those of
// one instant.
func (k Retained) compareAge(other Retained) int {
	return cmp.Or(k.SnapshotTime.Compare(other.SnapshotTime), strings.Compare(k.Name, other.Name))
}

// NewerThan says whether the snapshot was taken after another one.
func (k Retained) NewerThan(other Retained) bool { return k.compareAge(other) > 0 }

// ReleaseRetained deletes a retained pair with the snapshot in the storage, and
// returns what is still there. A pair that is an operation's is left alone.
func (r Rehomer) ReleaseRetained(ctx context.Context, name string) ([]string, error) {
	content, err := r.getContent(ctx, name)
	if err != nil {
		return nil, err
	}
	if content != nil && !isRetained(content) {
		return nil, nil
	}
	if content == nil {
		vs, err := r.getSnapshot(ctx, name)
		if err != nil || vs == nil || vs.Labels[identity.LabelRetained] == "" {
			return nil, err
		}
	}
	return r.releasePair(ctx, name, content)
}

// Rebuild makes the content of a retained pair again when it is gone, so that
// ReleaseRetained can delete the storage snapshot. It does nothing where another
// content has the snapshot: that one's owner decides.
func (r Rehomer) Rebuild(ctx context.Context, k Retained) error {
	if there, err := r.getContent(ctx, k.Name); err != nil || there != nil {
		return err
	}
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: k.Name, Annotations: map[string]string{
			identity.AnnotationVolumeHandle: k.VolumeHandle,
			identity.AnnotationSnapshotTime: k.SnapshotTime.UTC().Format(time.RFC3339Nano),
		}},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			VolumeSnapshotRef: referenceTo(r.Namespace, k.Name),
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &k.SnapshotHandle},
			DeletionPolicy:    snapshotv1.VolumeSnapshotContentDelete,
			Driver:            k.Driver,
		},
	}
	if k.Class != "" {
		content.Spec.VolumeSnapshotClassName = &k.Class
	}
	if k.SecretName != "" {
		content.Annotations[annotationSecretName], content.Annotations[annotationSecretNamespace] = k.SecretName, k.SecretNamespace
	}
	k.mark(content)
	if shared, err := r.handleIsShared(ctx, content); err != nil || shared {
		return err
	}
	if err := r.Client.Create(ctx, content); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("rebuild VolumeSnapshotContent %s: %w", k.Name, err)
	}
	return nil
}

func referenceTo(namespace, name string) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshot", Namespace: namespace, Name: name,
	}
}

// getSnapshot returns nil for a re-homed VolumeSnapshot that is not there.
func (r Rehomer) getSnapshot(ctx context.Context, name string) (*snapshotv1.VolumeSnapshot, error) {
	vs := &snapshotv1.VolumeSnapshot{}
	key := client.ObjectKey{Namespace: r.Namespace, Name: name}
	if err := r.Reader.Get(ctx, key, vs); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshot %s: %w", key, err)
	}
	return vs, nil
}
