package rehome

import (
	"context"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// Release deletes what an operation holds, with the snapshot in the storage, and
// returns what is still there. It finds everything by the label of the operation and
// the name of the pair, so it works when the operation itself is gone. It leaves a
// retained pair alone.
//
// Origins go before the pair: as long as the pair exists, it is known that the pair
// owns the storage snapshot.
func (r Rehomer) Release(ctx context.Context, op identity.Operation) ([]string, error) {
	held, err := r.contents.List(ctx, client.MatchingLabels{identity.LabelOperation: op.UID})
	if err != nil {
		return nil, err
	}
	name := op.ObjectName()
	var left []string
	for i := range held {
		origin := &held[i]
		if origin.Name == name {
			continue
		}
		left = append(left, "VolumeSnapshotContent "+origin.Name)
		if origin.DeletionTimestamp != nil {
			continue
		}
		if err := r.releaseOrigin(ctx, origin); err != nil {
			return nil, err
		}
	}
	pair, err := r.contents.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	if pair != nil && isRetained(pair) {
		return left, r.followContent(ctx, pair)
	}
	ofPair, err := r.releasePair(ctx, name, pair)
	return append(left, ofPair...), err
}

// releaseOrigin deletes a protected origin. The storage snapshot goes with it, unless the
// pair's content has it too, or it is a member of a group of ours: the group takes it along.
func (r Rehomer) releaseOrigin(ctx context.Context, origin *snapshotv1.VolumeSnapshotContent) error {
	kept, err := r.contents.IsShared(ctx, origin)
	if err == nil && !kept {
		kept, err = r.groups.Owns(ctx, origin)
	}
	if err == nil && !kept {
		err = r.contents.Condemn(ctx, origin)
	}
	if err != nil {
		return err
	}
	ref := origin.Spec.VolumeSnapshotRef
	if err := r.contents.DeleteSnapshot(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, origin.Name); err != nil {
		return err
	}
	return r.contents.Delete(ctx, origin)
}

// releasePair deletes a pair, of which one half may be missing, and returns what is
// still there. pair is the content, or nil.
//
// After the VolumeSnapshot is deleted, the snapshot controller deletes the content and
// the storage snapshot, once every volume that is being created from them is ready.
// It does not know a content that it has not bound yet; releasePair deletes such a
// content itself, and that of a member of a group: its policy is Retain, so the snapshot
// controller leaves it.
func (r Rehomer) releasePair(ctx context.Context, name string, pair *snapshotv1.VolumeSnapshotContent) ([]string, error) {
	vs, err := r.contents.FindSnapshot(ctx, r.keyOf(name))
	if err != nil {
		return nil, err
	}
	var left []string
	alive := pair != nil && pair.DeletionTimestamp == nil
	if pair != nil {
		left = append(left, "VolumeSnapshotContent "+name)
	}
	isMember := false
	if alive {
		if isMember, err = r.condemn(ctx, pair); err != nil {
			return nil, err
		}
	}
	if vs != nil {
		left = append(left, "VolumeSnapshot "+vs.Namespace+"/"+name)
		if err := kube.Delete(ctx, r.client, vs); err != nil {
			return nil, err
		}
	}
	if alive && (isMember || !isBound(vs, pair)) {
		return left, r.contents.Delete(ctx, pair)
	}
	return left, nil
}

// condemn lets the storage snapshot go with the pair, or leaves it to the group that it is a member
// of.
func (r Rehomer) condemn(ctx context.Context, pair *snapshotv1.VolumeSnapshotContent) (isMember bool, err error) {
	isMember, err = r.groups.Secure(ctx, pair)
	switch {
	case err != nil:
		return false, err
	case isMember:
		return true, r.contents.Announce(ctx, pair, snapshotv1.VolumeSnapshotContentRetain)
	}
	return false, r.contents.Condemn(ctx, pair)
}

func isBound(vs *snapshotv1.VolumeSnapshot, pair *snapshotv1.VolumeSnapshotContent) bool {
	return vs != nil && content.BoundTo(vs) == pair.Name && pair.Spec.VolumeSnapshotRef.UID == vs.UID
}
