package rehome

import (
	"fmt"
	"strconv"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// Rehomed describes a pair.
type Rehomed struct {
	// Name of the VolumeSnapshot, and of its content.
	Name           string
	Driver         string
	VolumeHandle   string
	SnapshotHandle string
	SnapshotTime   time.Time
	// Size is the minimum size, in bytes, of a volume created from the pair.
	Size int64
	// Capacity is that of the PV of the source, in bytes, or 0 if it is not known.
	Capacity int64
	// Filesystem is what the PV of a Filesystem volume names, or "".
	Filesystem string
	// Secured is set when the storage snapshot is safe from what happens to its origin.
	Secured bool
	// Ready is set when a volume can be created from the pair. Until then, Waiting says
	// what is missing.
	Ready   bool
	Waiting string
}

// describe reads the facts from the content of a pair.
func describe(pair *snapshotv1.VolumeSnapshotContent, vs *snapshotv1.VolumeSnapshot) (Rehomed, error) {
	size, err := readBytes(pair, identity.AnnotationVolumeSize)
	if err != nil {
		return Rehomed{}, err
	}
	at, err := readTime(pair)
	if err != nil {
		return Rehomed{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	out := Rehomed{
		Name:         pair.Name,
		Driver:       pair.Spec.Driver,
		VolumeHandle: pair.Annotations[identity.AnnotationVolumeHandle],
		SnapshotTime: at,
		Size:         size,
		Filesystem:   pair.Annotations[identity.AnnotationSourceFS],
		Secured:      true,
		Ready:        vs.DeletionTimestamp == nil && content.BoundTo(vs) != "" && isTrue(vs.Status.ReadyToUse),
	}
	if pair.Annotations[identity.AnnotationCapacity] != "" {
		if out.Capacity, err = readBytes(pair, identity.AnnotationCapacity); err != nil {
			return Rehomed{}, err
		}
	}
	if handle := pair.Spec.Source.SnapshotHandle; handle != nil {
		out.SnapshotHandle = *handle
	}
	if !out.Ready {
		out.Waiting = fmt.Sprintf("re-homed VolumeSnapshot %s/%s is not ready to use yet%s", vs.Namespace, vs.Name, because(vs.Status))
	}
	return out, nil
}

// readBytes reads an annotation that is a number of bytes.
func readBytes(pair *snapshotv1.VolumeSnapshotContent, key string) (int64, error) {
	n, err := strconv.ParseInt(pair.Annotations[key], 10, 64)
	if err == nil && n < 0 {
		err = fmt.Errorf("%d is no number of bytes", n)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: read annotation %s of VolumeSnapshotContent %s: %w", phase.ErrBroken, key, pair.Name, err)
	}
	return n, nil
}

// snapshotTime is when the storage cut the snapshot, as far as anybody says.
func snapshotTime(vs *snapshotv1.VolumeSnapshot, origin *snapshotv1.VolumeSnapshotContent) time.Time {
	switch {
	case origin.Status.CreationTime != nil:
		return time.Unix(0, *origin.Status.CreationTime)
	case vs.Status.CreationTime != nil:
		return vs.Status.CreationTime.Time
	}
	return vs.CreationTimestamp.Time
}

func writeTime(pair *snapshotv1.VolumeSnapshotContent, at time.Time) {
	kube.SetAnnotation(pair, identity.AnnotationSnapshotTime, at.UTC().Format(time.RFC3339Nano))
}

func readTime(pair *snapshotv1.VolumeSnapshotContent) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, pair.Annotations[identity.AnnotationSnapshotTime])
	if err == nil {
		err = checkTime(at)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read annotation %s of VolumeSnapshotContent %s: %w", identity.AnnotationSnapshotTime, pair.Name, err)
	}
	return at, nil
}

// checkTime returns an error for a time that cannot be written and read back: in UTC its year has more than four digits, or is
// below zero.
func checkTime(at time.Time) error {
	if year := at.UTC().Year(); year < 0 || year > 9999 {
		return fmt.Errorf("%s is in no year from 0 to 9999", at)
	}
	return nil
}

func because(status *snapshotv1.VolumeSnapshotStatus) string {
	if status == nil {
		return ""
	}
	if text := content.Message(status.Error); text != "" {
		return ": " + text
	}
	return ""
}

func isTrue(b *bool) bool { return b != nil && *b }
