package volumesnapshot

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
)

// Annotations and labels of the snapshot controller and its sidecar.
const (
	annotationBeingDeleted     = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	annotationBeingCreated     = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
	annotationGroupHandle      = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle"
	annotationAllowModeChange  = "snapshot.storage.kubernetes.io/allow-volume-mode-change"
	annotationDefaultClass     = "snapshot.storage.kubernetes.io/is-default-class"
	annotationKubectlApplied   = "kubectl.kubernetes.io/last-applied-configuration"
	labelManagedBy             = "snapshot.storage.kubernetes.io/managed-by"
	finalizerContentProtection = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
)

// Rehomer moves VolumeSnapshots into Velero's namespace and out of the world.
//
// The origin, a VolumeSnapshot in the namespace of an application with its
// content, belongs to whoever made it, and may be deleted with a group or a
// namespace at any time. The re-homed pair, a static VolumeSnapshotContent of the
// same handle and a VolumeSnapshot, belongs to one operation. The steps, each of
// which can be replayed:
//
//	origin content: deletionPolicy Retain, label of the operation   the storage snapshot is safe
//	re-homed content (Delete), with the facts as annotations         it has a second name
//	re-homed VolumeSnapshot                                          it can be a data source
//	origin VolumeSnapshot and content deleted                        it has one name again
//
// At each moment at most one content with policy Delete has the handle, and the
// storage snapshot is deleted through the pair alone: Release, or, when the pair
// stays after the operation (Keep), ReleaseRetained.
type Rehomer struct {
	Client client.Client
	// Reader answers from the API server: a stale answer would call a VolumeSnapshot
	// vanished that was re-homed a moment ago.
	Reader client.Reader
	// Namespace is Velero's.
	Namespace string
}

// Origin says where to find the VolumeSnapshot that was taken.
type Origin struct {
	Namespace      string
	VolumeSnapshot string
	// PVC is the volume that it was taken of.
	PVC string
	// Class is the VolumeSnapshotClass, where known.
	Class string
}

// Rehomed describes a pair.
type Rehomed struct {
	// Name of the VolumeSnapshot, and of its content.
	Name           string
	Driver         string
	VolumeHandle   string
	SnapshotHandle string
	SnapshotTime   time.Time
	// Size that a volume made from it must have at least.
	Size int64
	// Secured is set when the storage snapshot is safe from its origin's fate.
	Secured bool
	// Ready is set when a volume can be made from it; else Waiting says what for.
	Ready   bool
	Waiting string
}

// Ensure takes the steps that can be taken now. It never waits; the caller
// calls again when something changes.
func (r Rehomer) Ensure(ctx context.Context, op identity.Operation, from Origin) (Rehomed, error) {
	name := op.ObjectName()
	content, err := r.getContent(ctx, name)
	if err != nil {
		return Rehomed{}, err
	}
	if content == nil {
		var waiting string
		if content, waiting, err = r.secure(ctx, op, from); err != nil || waiting != "" {
			return Rehomed{Name: name, Waiting: waiting}, err
		}
	}
	vs, err := r.ensureSnapshot(ctx, content)
	if err != nil {
		return Rehomed{}, err
	}
	if err := r.deleteOrigin(ctx, from, content.Annotations[identity.AnnotationOrigin]); err != nil {
		return Rehomed{}, err
	}
	return describe(content, vs)
}

// secure finds the origin, sets it to Retain, and creates the re-homed content
// once the origin is ready. A driver that cannot list snapshots calls every
// static content ready at once, so readiness has to be seen at the origin.
func (r Rehomer) secure(ctx context.Context, op identity.Operation, from Origin) (*snapshotv1.VolumeSnapshotContent, string, error) {
	vs := &snapshotv1.VolumeSnapshot{}
	key := client.ObjectKey{Namespace: from.Namespace, Name: from.VolumeSnapshot}
	if err := r.Reader.Get(ctx, key, vs); apierrors.IsNotFound(err) {
		return nil, "", vanished(key)
	} else if err != nil {
		return nil, "", fmt.Errorf("get VolumeSnapshot %s: %w", key, err)
	}
	if vs.Status == nil || vs.Status.BoundVolumeSnapshotContentName == nil {
		if vs.DeletionTimestamp != nil {
			return nil, "", vanished(key)
		}
		return nil, fmt.Sprintf("VolumeSnapshot %s has no content yet%s", key, because(vs.Status)), nil
	}
	origin, err := r.getContent(ctx, *vs.Status.BoundVolumeSnapshotContentName)
	if err != nil {
		return nil, "", err
	}
	if origin == nil || origin.DeletionTimestamp != nil && origin.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		return nil, "", vanished(key)
	}
	if err := r.retain(ctx, op, origin); err != nil {
		return nil, "", err
	}
	if origin.Status == nil || origin.Status.SnapshotHandle == nil || !isTrue(origin.Status.ReadyToUse) {
		return nil, fmt.Sprintf("VolumeSnapshot %s is not ready to use yet%s", key, because(vs.Status)), nil
	}
	content, err := r.createContent(ctx, op, from, vs, origin)
	return content, "", err
}

func vanished(key client.ObjectKey) error {
	return fmt.Errorf("%w: VolumeSnapshot %s has vanished: it, its group or its namespace was deleted before the mover could take it over",
		phase.ErrBroken, key)
}

// retain keeps the storage snapshot when the origin is deleted, and marks the
// origin as the operation's.
func (r Rehomer) retain(ctx context.Context, op identity.Operation, content *snapshotv1.VolumeSnapshotContent) error {
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentRetain && content.Labels[identity.LabelOperation] == op.UID {
		return nil
	}
	before := content.DeepCopy()
	content.Spec.DeletionPolicy = snapshotv1.VolumeSnapshotContentRetain
	mark(content, op)
	if err := r.Client.Patch(ctx, content, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("retain VolumeSnapshotContent %s: %w", content.Name, err)
	}
	return nil
}

// createContent creates the re-homed content, with all that will be asked of
// the origin when it is gone.
func (r Rehomer) createContent(ctx context.Context, op identity.Operation, from Origin,
	vs *snapshotv1.VolumeSnapshot, origin *snapshotv1.VolumeSnapshotContent,
) (*snapshotv1.VolumeSnapshotContent, error) {
	volume, err := r.sourceVolume(ctx, from, origin.Spec.Driver)
	if err != nil {
		return nil, err
	}
	if handle := origin.Spec.Source.VolumeHandle; handle != nil {
		volume.handle = *handle
	}
	if size := origin.Status.RestoreSize; size != nil && *size > 0 {
		// The PV has the capacity that was asked for once. What a storage has made
		// smaller since would come back larger, and as another volume than its
		// changed-block tracking tells of.
		volume.size = *size
	}
	switch {
	case volume.handle == "":
		return nil, fmt.Errorf("%w: neither VolumeSnapshotContent %s nor PVC %s/%s says which volume it is of",
			phase.ErrBroken, origin.Name, from.Namespace, from.PVC)
	case volume.size <= 0:
		return nil, fmt.Errorf("%w: neither VolumeSnapshotContent %s nor PVC %s/%s says how large the volume is",
			phase.ErrBroken, origin.Name, from.Namespace, from.PVC)
	}
	class, err := r.chooseClass(ctx, from, vs, origin)
	if err != nil {
		return nil, err
	}
	content := planContent(op, r.Namespace, origin, class)
	content.Annotations[identity.AnnotationVolumeHandle] = volume.handle
	content.Annotations[identity.AnnotationVolumeSize] = strconv.FormatInt(volume.size, 10)
	content.Annotations[identity.AnnotationSnapshotTime] = snapshotTime(vs, origin).UTC().Format(time.RFC3339Nano)
	if err := r.Client.Create(ctx, content); err != nil {
		return nil, fmt.Errorf("create VolumeSnapshotContent %s: %w", content.Name, err)
	}
	return content, nil
}

// planContent is the re-homed content of an origin, without the facts.
func planContent(op identity.Operation, namespace string, origin *snapshotv1.VolumeSnapshotContent, class *string) *snapshotv1.VolumeSnapshotContent {
	name := op.ObjectName()
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			// The names of the secrets that the driver needs to delete the snapshot are
			// among the annotations.
			Annotations: maps.Clone(origin.Annotations),
			Labels:      map[string]string{velerov1.ExcludeFromBackupLabel: "true"},
		},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			VolumeSnapshotRef:       referenceTo(namespace, name),
			Source:                  snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: origin.Status.SnapshotHandle},
			DeletionPolicy:          snapshotv1.VolumeSnapshotContentDelete,
			Driver:                  origin.Spec.Driver,
			VolumeSnapshotClassName: class,
		},
	}
	mark(content, op)
	for _, stale := range []string{annotationBeingDeleted, annotationBeingCreated, annotationGroupHandle, annotationKubectlApplied} {
		delete(content.Annotations, stale)
	}
	// The snapshot of a Filesystem volume is exposed as a Block volume.
	content.Annotations[annotationAllowModeChange] = "true"
	content.Annotations[identity.AnnotationOrigin] = origin.Name
	// With distributed snapshotting a content is handled by the sidecar of its node.
	if node, ok := origin.Labels[labelManagedBy]; ok {
		content.Labels[labelManagedBy] = node
	}
	return content
}

// ensureSnapshot creates the re-homed VolumeSnapshot. A content that is being
// deleted gets none.
func (r Rehomer) ensureSnapshot(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) (*snapshotv1.VolumeSnapshot, error) {
	key := client.ObjectKey{Namespace: r.Namespace, Name: content.Name}
	vs, err := r.getSnapshot(ctx, key.Name)
	if err != nil || vs != nil {
		return vs, err
	}
	if content.DeletionTimestamp != nil {
		return nil, vanished(key)
	}
	vs = &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace,
			Name:      key.Name,
			Labels:    map[string]string{velerov1.ExcludeFromBackupLabel: "true"},
		},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &content.Name},
			VolumeSnapshotClassName: content.Spec.VolumeSnapshotClassName,
		},
	}
	copyMarks(content, vs)
	if err := r.Client.Create(ctx, vs); err != nil {
		return nil, fmt.Errorf("create VolumeSnapshot %s: %w", key, err)
	}
	return vs, nil
}

// deleteOrigin deletes the objects that the pair replaces. The storage snapshot
// stays: the content is set to Retain before. A member of a group is kept by the
// snapshot controller until its group is gone, which nobody needs to wait for.
func (r Rehomer) deleteOrigin(ctx context.Context, from Origin, contentName string) error {
	content, err := r.getContent(ctx, contentName)
	if err != nil || content == nil {
		return err
	}
	if content.Spec.DeletionPolicy != snapshotv1.VolumeSnapshotContentRetain {
		return fmt.Errorf("delete VolumeSnapshotContent %s: its deletion policy is %s again, want %s",
			contentName, content.Spec.DeletionPolicy, snapshotv1.VolumeSnapshotContentRetain)
	}
	if err := r.deleteSnapshot(ctx, client.ObjectKey{Namespace: from.Namespace, Name: from.VolumeSnapshot}, contentName); err != nil {
		return err
	}
	return r.deleteContent(ctx, content)
}

// deleteSnapshot deletes a VolumeSnapshot if it is bound to the content: another
// one may have its name meanwhile.
func (r Rehomer) deleteSnapshot(ctx context.Context, key client.ObjectKey, contentName string) error {
	vs := &snapshotv1.VolumeSnapshot{}
	if err := r.Reader.Get(ctx, key, vs); apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("get VolumeSnapshot %s: %w", key, err)
	}
	if vs.DeletionTimestamp != nil || vs.Status == nil || vs.Status.BoundVolumeSnapshotContentName == nil ||
		*vs.Status.BoundVolumeSnapshotContentName != contentName {
		return nil
	}
	err := r.Client.Delete(ctx, vs, client.Preconditions{UID: &vs.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete VolumeSnapshot %s: %w", key, err)
	}
	return nil
}

// deleteContent deletes a content. That of a member of a group is let go by the
// sidecar with an annotation alone that the snapshot controller does not set while
// the group is there.
func (r Rehomer) deleteContent(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	if content.DeletionTimestamp != nil {
		return nil
	}
	if content.Annotations[annotationGroupHandle] != "" && content.Annotations[annotationBeingDeleted] == "" {
		before := content.DeepCopy()
		metav1.SetMetaDataAnnotation(&content.ObjectMeta, annotationBeingDeleted, "yes")
		if err := client.IgnoreNotFound(r.Client.Patch(ctx, content, client.MergeFrom(before))); err != nil {
			return fmt.Errorf("annotate VolumeSnapshotContent %s: %w", content.Name, err)
		}
	}
	err := r.Client.Delete(ctx, content, client.Preconditions{UID: &content.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete VolumeSnapshotContent %s: %w", content.Name, err)
	}
	return nil
}

// getContent returns nil for a content that is not there.
func (r Rehomer) getContent(ctx context.Context, name string) (*snapshotv1.VolumeSnapshotContent, error) {
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := r.Reader.Get(ctx, client.ObjectKey{Name: name}, content); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotContent %s: %w", name, err)
	}
	return content, nil
}

type sourceVolume struct {
	handle string
	size   int64
}

// sourceVolume reads what the source PVC knows. It may be gone: then the origin
// has to know all.
func (r Rehomer) sourceVolume(ctx context.Context, from Origin, driver string) (sourceVolume, error) {
	pvc := &corev1.PersistentVolumeClaim{}
	key := client.ObjectKey{Namespace: from.Namespace, Name: from.PVC}
	if err := r.Reader.Get(ctx, key, pvc); apierrors.IsNotFound(err) {
		return sourceVolume{}, nil
	} else if err != nil {
		return sourceVolume{}, fmt.Errorf("get PVC %s: %w", key, err)
	}
	if pvc.Spec.VolumeName == "" {
		return sourceVolume{}, nil
	}
	pv := &corev1.PersistentVolume{}
	if err := r.Reader.Get(ctx, client.ObjectKey{Name: pvc.Spec.VolumeName}, pv); apierrors.IsNotFound(err) {
		return sourceVolume{}, nil
	} else if err != nil {
		return sourceVolume{}, fmt.Errorf("get PV %s: %w", pvc.Spec.VolumeName, err)
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != driver {
		return sourceVolume{}, nil
	}
	return sourceVolume{handle: pv.Spec.CSI.VolumeHandle, size: pv.Spec.Capacity.Storage().Value()}, nil
}

// chooseClass finds the class of the pair. Members of a group have none, and
// without one the snapshot metadata sidecar refuses to answer unless the driver
// has a default class.
func (r Rehomer) chooseClass(ctx context.Context, from Origin, vs *snapshotv1.VolumeSnapshot, origin *snapshotv1.VolumeSnapshotContent) (*string, error) {
	for _, class := range []*string{vs.Spec.VolumeSnapshotClassName, origin.Spec.VolumeSnapshotClassName, &from.Class} {
		if class != nil && *class != "" {
			return class, nil
		}
	}
	classes := &snapshotv1.VolumeSnapshotClassList{}
	if err := r.Reader.List(ctx, classes); err != nil {
		return nil, fmt.Errorf("list VolumeSnapshotClasses: %w", err)
	}
	ofDriver := slices.DeleteFunc(classes.Items, func(c snapshotv1.VolumeSnapshotClass) bool { return c.Driver != origin.Spec.Driver })
	if len(ofDriver) == 0 {
		return nil, nil
	}
	best := slices.MinFunc(ofDriver, func(a, b snapshotv1.VolumeSnapshotClass) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Name, b.Name))
	})
	return &best.Name, nil
}

// rank orders the classes of one driver: its default first, then Velero's.
func rank(c snapshotv1.VolumeSnapshotClass) int {
	switch {
	case c.Annotations[annotationDefaultClass] == "true":
		return 0
	case c.Labels["velero.io/csi-volumesnapshot-class"] == "true":
		return 1
	}
	return 2
}

func snapshotTime(vs *snapshotv1.VolumeSnapshot, origin *snapshotv1.VolumeSnapshotContent) time.Time {
	switch {
	case origin.Status.CreationTime != nil:
		return time.Unix(0, *origin.Status.CreationTime)
	case vs.Status.CreationTime != nil:
		return vs.Status.CreationTime.Time
	}
	return vs.CreationTimestamp.Time
}

// describe reads back what createContent wrote.
func describe(content *snapshotv1.VolumeSnapshotContent, vs *snapshotv1.VolumeSnapshot) (Rehomed, error) {
	size, err := strconv.ParseInt(content.Annotations[identity.AnnotationVolumeSize], 10, 64)
	if err != nil {
		return Rehomed{}, fmt.Errorf("%w: annotation %s of VolumeSnapshotContent %s: %w", phase.ErrBroken, identity.AnnotationVolumeSize, content.Name, err)
	}
	at, err := time.Parse(time.RFC3339Nano, content.Annotations[identity.AnnotationSnapshotTime])
	if err != nil {
		return Rehomed{}, fmt.Errorf("%w: annotation %s of VolumeSnapshotContent %s: %w", phase.ErrBroken, identity.AnnotationSnapshotTime, content.Name, err)
	}
	out := Rehomed{
		Name:         content.Name,
		Driver:       content.Spec.Driver,
		VolumeHandle: content.Annotations[identity.AnnotationVolumeHandle],
		SnapshotTime: at,
		Size:         size,
		Secured:      true,
		Ready:        vs.DeletionTimestamp == nil && vs.Status != nil && isTrue(vs.Status.ReadyToUse) && vs.Status.BoundVolumeSnapshotContentName != nil,
	}
	if handle := content.Spec.Source.SnapshotHandle; handle != nil {
		out.SnapshotHandle = *handle
	}
	if !out.Ready {
		out.Waiting = fmt.Sprintf("re-homed VolumeSnapshot %s/%s is not ready to use yet%s", vs.Namespace, vs.Name, because(vs.Status))
	}
	return out, nil
}

// mark labels an object as the operation's.
func mark(obj client.Object, op identity.Operation) {
	obj.SetLabels(with(obj.GetLabels(), identity.LabelOperation, op.UID))
	obj.SetAnnotations(with(obj.GetAnnotations(), identity.AnnotationOperation, op.Reference()))
}

func because(status *snapshotv1.VolumeSnapshotStatus) string {
	if status == nil {
		return ""
	}
	if text := messageOf(status.Error); text != "" {
		return ": " + text
	}
	return ""
}

func isTrue(b *bool) bool { return b != nil && *b }
