package rehome

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
)

// Origin says where to find the VolumeSnapshot that was taken.
type Origin struct {
	Namespace      string
	VolumeSnapshot string
	// PVC is the volume that it was taken of.
	PVC string
	// Class is the VolumeSnapshotClass, if known.
	Class string
}

func (o Origin) key() client.ObjectKey {
	return client.ObjectKey{Namespace: o.Namespace, Name: o.VolumeSnapshot}
}

// volume is the source volume as the storage knows it.
type volume struct {
	handle string
	// size is in bytes. capacity is that of the PV, or 0.
	size, capacity int64
	// filesystem is what the PV of a Filesystem volume names, or "".
	filesystem string
}

// volumeOf finds the volume that a VolumeSnapshot was taken of.
func volumeOf(ctx context.Context, reader client.Reader, from Origin, origin *snapshotv1.VolumeSnapshotContent) (volume, error) {
	v, err := volumeOfClaim(ctx, reader, from, origin.Spec.Driver)
	if err != nil {
		return volume{}, err
	}
	if handle := origin.Spec.Source.VolumeHandle; handle != nil {
		v.handle = *handle
	}
	if size := origin.Status.RestoreSize; size != nil && *size > 0 {
		// The PV has the capacity of its creation. If the storage has shrunk the volume
		// since, the capacity would restore a larger volume than the one whose changed
		// blocks are tracked.
		v.size = *size
	}
	switch {
	case v.handle == "":
		return volume{}, fmt.Errorf("%w: neither VolumeSnapshotContent %s nor PVC %s/%s says which volume it is of",
			phase.ErrBroken, origin.Name, from.Namespace, from.PVC)
	case v.size <= 0:
		return volume{}, fmt.Errorf("%w: neither VolumeSnapshotContent %s nor PVC %s/%s says how large the volume is",
			phase.ErrBroken, origin.Name, from.Namespace, from.PVC)
	}
	return v, nil
}

// volumeOfClaim returns what the source PVC says. If the PVC is gone, the origin has
// to say everything.
func volumeOfClaim(ctx context.Context, reader client.Reader, from Origin, driver string) (volume, error) {
	key := client.ObjectKey{Namespace: from.Namespace, Name: from.PVC}
	pvc, err := kube.Find(ctx, reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil || pvc == nil || pvc.Spec.VolumeName == "" {
		return volume{}, err
	}
	pv, err := kube.Find(ctx, reader, client.ObjectKey{Name: pvc.Spec.VolumeName}, &corev1.PersistentVolume{})
	if err != nil || pv == nil || pv.Spec.CSI == nil || pv.Spec.CSI.Driver != driver {
		return volume{}, err
	}
	v := volume{handle: pv.Spec.CSI.VolumeHandle, size: pv.Spec.Capacity.Storage().Value()}
	v.capacity = v.size
	if mode := pv.Spec.VolumeMode; mode == nil || *mode == corev1.PersistentVolumeFilesystem {
		v.filesystem = pv.Spec.CSI.FSType
	}
	return v, nil
}

// chooseClass chooses the class of the pair. Members of a group have none, and for a
// pair without a class the snapshot metadata sidecar refuses to answer unless the
// driver has a default class. It returns nil if the driver has no class at all.
func chooseClass(ctx context.Context, reader client.Reader, from Origin, vs *snapshotv1.VolumeSnapshot, origin *snapshotv1.VolumeSnapshotContent) (*string, error) {
	for _, class := range []*string{vs.Spec.VolumeSnapshotClassName, origin.Spec.VolumeSnapshotClassName, &from.Class} {
		if class != nil && *class != "" {
			return class, nil
		}
	}
	name, err := volumesnapshot.ClassOf(ctx, reader, origin.Spec.Driver)
	if err != nil || name == "" {
		return nil, err
	}
	return &name, nil
}
