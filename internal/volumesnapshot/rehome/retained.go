package rehome

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// ListRetained returns the retained pairs in Velero's namespace that are not being
// deleted, oldest first. If some cannot be read, it returns an error for each of them
// beside the others.
func (r Rehomer) ListRetained(ctx context.Context) ([]Retained, error) {
	return listRetained(ctx, r.contents, r.namespace, client.HasLabels{identity.LabelRetained})
}

// ListRetainedOf returns the retained pairs of one volume.
func (r Rehomer) ListRetainedOf(ctx context.Context, namespace, pvc string) ([]Retained, error) {
	all, err := listRetained(ctx, r.contents, r.namespace, client.HasLabels{identity.LabelRetained}, client.MatchingLabels{
		identity.LabelVolumeNamespace: label.GetValidName(namespace),
		identity.LabelVolume:          label.GetValidName(pvc),
	})
	return slices.DeleteFunc(all, func(k Retained) bool { return k.Namespace != namespace || k.PVC != pvc }), err
}

func listRetained(ctx context.Context, contents content.Client, namespace string, options ...client.ListOption) ([]Retained, error) {
	pairs, err := contents.List(ctx, options...)
	if err != nil {
		return nil, err
	}
	var out []Retained
	var errs []error
	for i := range pairs {
		pair := &pairs[i]
		if pair.Spec.VolumeSnapshotRef.Namespace != namespace || pair.DeletionTimestamp != nil {
			continue // it belongs to another Velero, or is as good as gone
		}
		retained, err := readRetained(pair)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, retained)
	}
	slices.SortFunc(out, Retained.compareAge)
	return out, errors.Join(errs...)
}

// MarkBackupGone records since when the Backup of a retained pair does not exist. A zero time
// removes the record.
func (r Rehomer) MarkBackupGone(ctx context.Context, name string, since time.Time) error {
	pair, err := r.contents.Find(ctx, name)
	if err != nil || pair == nil {
		return err
	}
	before := pair.DeepCopy()
	delete(pair.Annotations, identity.AnnotationBackupGone)
	if !since.IsZero() {
		kube.SetAnnotation(pair, identity.AnnotationBackupGone, since.UTC().Format(time.RFC3339))
	}
	if err := client.IgnoreNotFound(r.client.Patch(ctx, pair, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("record that the backup of VolumeSnapshotContent %s is gone: %w", name, err)
	}
	return nil
}

// ReleaseRetained deletes a retained pair with the snapshot in the storage, and
// returns what is still there. It leaves the pair of an operation alone.
func (r Rehomer) ReleaseRetained(ctx context.Context, name string) ([]string, error) {
	pair, err := r.contents.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	if pair != nil && !isRetained(pair) {
		return nil, nil
	}
	if pair == nil {
		vs, err := r.contents.FindSnapshot(ctx, r.keyOf(name))
		if err != nil || vs == nil || !isRetained(vs) {
			return nil, err
		}
	}
	return r.releasePair(ctx, name, pair)
}

// Rebuild creates the content of a retained pair again if it is gone, so that
// ReleaseRetained can delete the storage snapshot. It does nothing if another content
// has the storage snapshot: then the owner of that content decides.
func (r Rehomer) Rebuild(ctx context.Context, k Retained) error {
	if err := k.check(); err != nil {
		return fmt.Errorf("make retained pair %q again: %w", k.Name, err)
	}
	if found, err := r.contents.Find(ctx, k.Name); err != nil || found != nil {
		return err
	}
	pair := k.plan(r.namespace)
	if shared, err := r.contents.IsShared(ctx, pair); err != nil || shared {
		return err
	}
	return kube.Ensure(ctx, r.client, pair)
}

// check returns an error for a note from which no pair can be made that is read back as it was.
func (k Retained) check() error {
	switch {
	case k.Name == "" || k.Driver == "" || k.SnapshotHandle == "" || k.VolumeHandle == "" || k.PVC == "" || k.Backup == "":
		return errors.New("its note does not say which storage snapshot, volume and backup it is of")
	case k.Retention != policy.RetentionAuto && k.Retention != policy.RetentionAlways:
		return fmt.Errorf("its note has the retention %q, want %s or %s", k.Retention, policy.RetentionAuto, policy.RetentionAlways)
	}
	return checkTime(k.SnapshotTime)
}

// plan returns the content of a retained pair in a namespace.
func (k Retained) plan(namespace string) *snapshotv1.VolumeSnapshotContent {
	pair := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: k.Name},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			VolumeSnapshotRef: referenceTo(namespace, k.Name),
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &k.SnapshotHandle},
			DeletionPolicy:    snapshotv1.VolumeSnapshotContentDelete,
			Driver:            k.Driver,
		},
	}
	kube.SetAnnotation(pair, identity.AnnotationVolumeHandle, k.VolumeHandle)
	writeTime(pair, k.SnapshotTime)
	if k.Class != "" {
		pair.Spec.VolumeSnapshotClassName = &k.Class
	}
	if k.SecretName != "" {
		kube.SetAnnotation(pair, content.AnnotationSecretName, k.SecretName)
		kube.SetAnnotation(pair, content.AnnotationSecretNamespace, k.SecretNamespace)
	}
	if k.Group != "" {
		kube.SetAnnotation(pair, identity.AnnotationGroupSnapshot, k.Group)
	}
	k.mark(pair)
	return pair
}
