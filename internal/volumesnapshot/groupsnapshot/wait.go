package groupsnapshot

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// errFailedBefore says that the wait of another member has failed.
var errFailedBefore = fmt.Errorf("%w: the group snapshot has failed for another member", phase.ErrBroken)

// WaitForMember waits until the storage has cut the group, and returns the
// VolumeSnapshot of a member, which may not be ready to use yet. The context bounds
// the wait, and errors of the storage are not final, as in
// volumesnapshot.WaitForHandle. It returns at once if another member has given up.
func (g Group) WaitForMember(ctx context.Context, pvc string) (*snapshotv1.VolumeSnapshot, error) {
	var vs *snapshotv1.VolumeSnapshot
	err := volumesnapshot.Until(ctx, volumesnapshot.HandleDelay(), func(ctx context.Context) (err error) {
		vs, err = g.member(ctx, pvc)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the member of PVC %s in VolumeGroupSnapshot %s: %w", pvc, g, err)
	}
	return vs, nil
}

// member returns the VolumeSnapshot of a member whose content has its handle, or an
// error that says what is missing.
func (g Group) member(ctx context.Context, pvc string) (*snapshotv1.VolumeSnapshot, error) {
	vgs, err := g.Find(ctx)
	switch {
	case err != nil:
		return nil, err
	case vgs == nil || vgs.DeletionTimestamp != nil:
		return nil, volumesnapshot.ErrGone
	}
	members, err := listMembers(ctx, g.reader, g.Ref, vgs.UID)
	if err != nil {
		return nil, err
	}
	for i := range members {
		vs := &members[i]
		if claim := vs.Spec.Source.PersistentVolumeClaimName; claim == nil || *claim != pvc {
			continue
		}
		if err := labelMember(ctx, g.client, g.Ref, vs); err != nil {
			return nil, err
		}
		_, err := volumesnapshot.ContentWithHandle(ctx, g.reader, client.ObjectKeyFromObject(vs))
		return vs, err
	}
	if reason := vgs.Annotations[identity.AnnotationFailed]; reason != "" {
		return nil, fmt.Errorf("%w: %s", errFailedBefore, reason)
	}
	return nil, g.whyUncut(ctx, vgs, len(members))
}

// whyUncut says what a group waits for that lacks the wanted member. members is the
// number of its VolumeSnapshots.
func (g Group) whyUncut(ctx context.Context, vgs *VolumeGroupSnapshot, members int) error {
	if vgs.Status != nil {
		if text := content.Message(vgs.Status.Error); text != "" {
			return volumesnapshot.NotYetError(text)
		}
	}
	found, err := contentOf(ctx, g.objects, vgs)
	switch {
	case err != nil:
		return err
	case found == nil:
		return volumesnapshot.NotYetError("it has no VolumeGroupSnapshotContent yet: does the snapshot controller run with feature gate CSIVolumeGroupSnapshot?")
	case found.Status != nil && content.Message(found.Status.Error) != "":
		return volumesnapshot.NotYetError(fmt.Sprintf("VolumeGroupSnapshotContent %s: %s", found.Name, content.Message(found.Status.Error)))
	case found.Status == nil || found.Status.VolumeGroupSnapshotHandle == nil:
		return volumesnapshot.NotYetError(fmt.Sprintf("VolumeGroupSnapshotContent %s has no handle yet: does the snapshotter sidecar of driver %s run with feature gate CSIVolumeGroupSnapshot?",
			found.Name, found.Spec.Driver))
	}
	return volumesnapshot.NotYetError(fmt.Sprintf("the storage has cut the group, and there are %d VolumeSnapshots of its members, but none of this PVC", members))
}

// GiveUp records on a group that the storage has not cut in time why nobody waits for
// it any more. A group that has members still serves those, and stays as it is.
func (g Group) GiveUp(ctx context.Context, why string) error {
	vgs, err := g.Find(ctx)
	if err != nil || vgs == nil {
		return err
	}
	members, err := listMembers(ctx, g.reader, g.Ref, vgs.UID)
	if err != nil || len(members) > 0 {
		return err
	}
	before := vgs.object.DeepCopy()
	kube.SetAnnotation(vgs.object, identity.AnnotationFailed, why)
	if err := g.client.Patch(ctx, vgs.object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("annotate VolumeGroupSnapshot %s: %w", g, err)
	}
	return nil
}
