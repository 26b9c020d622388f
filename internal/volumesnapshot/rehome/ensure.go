package rehome

import (
	"context"
	"fmt"
	"strconv"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// Ensure takes the steps that are possible now. It never waits; the caller calls
// again when something changes. Errors wrap phase.ErrBroken if the VolumeSnapshot can
// never be backed up: it is gone, or it lacks a fact that is needed.
func (r Rehomer) Ensure(ctx context.Context, op identity.Operation, from Origin) (Rehomed, error) {
	name := op.ObjectName()
	pair, err := r.contents.Find(ctx, name)
	if err != nil {
		return Rehomed{}, err
	}
	if pair == nil {
		var waiting string
		if pair, waiting, err = r.secure(ctx, op, from); err != nil || waiting != "" {
			return Rehomed{Name: name, Waiting: waiting}, err
		}
	}
	vs, err := r.ensureSnapshot(ctx, pair)
	if err != nil {
		return Rehomed{}, err
	}
	if err := r.deleteOrigin(ctx, from, pair.Annotations[identity.AnnotationOrigin]); err != nil {
		return Rehomed{}, err
	}
	return describe(pair, vs)
}

// secure protects the origin, and creates the pair's content once the origin is
// ready. Only the origin shows whether the storage snapshot is ready: a driver that
// cannot list snapshots calls every static content ready at once.
func (r Rehomer) secure(ctx context.Context, op identity.Operation, from Origin) (*snapshotv1.VolumeSnapshotContent, string, error) {
	vs, err := r.contents.FindSnapshot(ctx, from.key())
	switch {
	case err != nil:
		return nil, "", err
	case vs == nil, vs.DeletionTimestamp != nil && content.BoundTo(vs) == "":
		return nil, "", vanished(from.key())
	case content.BoundTo(vs) == "":
		return nil, fmt.Sprintf("VolumeSnapshot %s has no content yet%s", from.key(), because(vs.Status)), nil
	}
	origin, err := r.contents.Find(ctx, content.BoundTo(vs))
	if err != nil {
		return nil, "", err
	}
	if origin == nil || origin.DeletionTimestamp != nil && origin.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		return nil, "", vanished(from.key())
	}
	if err := r.contents.Protect(ctx, op, origin); err != nil {
		return nil, "", err
	}
	if origin.Status == nil || origin.Status.SnapshotHandle == nil || !isTrue(origin.Status.ReadyToUse) {
		return nil, fmt.Sprintf("VolumeSnapshot %s is not ready to use yet%s", from.key(), because(vs.Status)), nil
	}
	pair, err := r.createContent(ctx, op, from, vs, origin)
	return pair, "", err
}

func vanished(key client.ObjectKey) error {
	return fmt.Errorf("%w: VolumeSnapshot %s has vanished: it, its group or its namespace was deleted before the mover could take it over",
		phase.ErrBroken, key)
}

// createContent creates the pair's content, with every fact about the origin that is
// needed after the origin is gone.
func (r Rehomer) createContent(ctx context.Context, op identity.Operation, from Origin,
	vs *snapshotv1.VolumeSnapshot, origin *snapshotv1.VolumeSnapshotContent,
) (*snapshotv1.VolumeSnapshotContent, error) {
	source, err := volumeOf(ctx, r.reader, from, origin)
	if err != nil {
		return nil, err
	}
	class, err := chooseClass(ctx, r.reader, from, vs, origin)
	if err != nil {
		return nil, err
	}
	group, err := r.groups.Protect(ctx, origin)
	if err != nil {
		return nil, err
	}
	pair := planContent(op, r.namespace, origin, class)
	if group != "" {
		pair.Annotations[identity.AnnotationGroupSnapshot] = group
	}
	pair.Annotations[identity.AnnotationVolumeHandle] = source.handle
	pair.Annotations[identity.AnnotationVolumeSize] = strconv.FormatInt(source.size, 10)
	if source.capacity > 0 {
		pair.Annotations[identity.AnnotationCapacity] = strconv.FormatInt(source.capacity, 10)
	}
	if source.filesystem != "" {
		pair.Annotations[identity.AnnotationSourceFS] = source.filesystem
	}
	writeTime(pair, snapshotTime(vs, origin))
	if err := r.client.Create(ctx, pair); err != nil {
		return nil, fmt.Errorf("create VolumeSnapshotContent %s: %w", pair.Name, err)
	}
	return pair, nil
}

// ensureSnapshot creates the pair's VolumeSnapshot, unless the content is being
// deleted.
func (r Rehomer) ensureSnapshot(ctx context.Context, pair *snapshotv1.VolumeSnapshotContent) (*snapshotv1.VolumeSnapshot, error) {
	key := r.keyOf(pair.Name)
	vs, err := r.contents.FindSnapshot(ctx, key)
	if err != nil || vs != nil {
		return vs, err
	}
	if pair.DeletionTimestamp != nil {
		return nil, vanished(key)
	}
	vs = planSnapshot(key, pair)
	if err := r.client.Create(ctx, vs); err != nil {
		return nil, fmt.Errorf("create VolumeSnapshot %s: %w", key, err)
	}
	return vs, nil
}

// deleteOrigin deletes the objects that the pair replaces. The storage snapshot stays,
// because the content is protected. The snapshot controller keeps a member of a group
// until its group is gone; nobody needs to wait for that.
func (r Rehomer) deleteOrigin(ctx context.Context, from Origin, contentName string) error {
	origin, err := r.contents.Find(ctx, contentName)
	if err != nil || origin == nil {
		return err
	}
	if origin.Spec.DeletionPolicy != snapshotv1.VolumeSnapshotContentRetain {
		return fmt.Errorf("delete VolumeSnapshotContent %s: its deletion policy is %s again, want %s",
			contentName, origin.Spec.DeletionPolicy, snapshotv1.VolumeSnapshotContentRetain)
	}
	if err := r.contents.DeleteSnapshot(ctx, from.key(), contentName); err != nil {
		return err
	}
	return r.contents.Delete(ctx, origin)
}
