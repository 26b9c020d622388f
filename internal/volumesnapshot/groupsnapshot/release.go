package groupsnapshot

import (
	"context"
	"errors"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

// Upload is a DataUpload of the group's backup that has not ended.
type Upload struct {
	identity.Operation
	// VolumeSnapshot is the member that it moves.
	VolumeSnapshot string
}

// Release deletes a group: stamps, VolumeGroupSnapshot, content and members, with the
// storage snapshots that nobody needs. It never waits, and returns what is still
// there; the caller calls again. Any number of calls, also concurrent ones, have the
// same result. It works when parts are already gone, because it finds what is left by
// name and label, and on a cluster that no longer serves the API.
//
// A member's storage snapshot is needed if a mover has re-homed it, for a running
// upload or as a retained base. As long as one of uploads has yet to re-home its
// member, the group stays. The storage deletes a group as a whole, re-homed members
// included, and may refuse to delete a member alone. So
//
//   - while a member is needed, the group's content stays with the policy Retain, and
//     with it all storage snapshots of the group. It is not among what is still there
//   - then the group's content is set to Delete, and the storage deletes the group
func (g Group) Release(ctx context.Context, uploads []Upload) ([]string, error) {
	if err := unstamp(ctx, g.client, g.reader, g.Ref); err != nil {
		return nil, err
	}
	found, err := g.findRemains(ctx)
	if err != nil {
		return nil, err
	}
	for _, upload := range uploads {
		if taken, err := hasTaken(ctx, g.contents, upload, found.members); err != nil {
			return nil, err
		} else if !taken {
			return []string{"DataUpload " + upload.Name + " has not taken over its member of " + groupapi.KindGroup + " " + g.String()}, nil
		}
	}
	left, err := g.releaseGroup(ctx, found)
	if err != nil {
		return nil, err
	}
	for i := range found.members {
		left = append(left, "VolumeSnapshot "+client.ObjectKeyFromObject(&found.members[i]).String())
	}
	if found.group == nil && len(found.members) > 0 { // before, the snapshot controller holds the members
		err = g.dismiss(ctx, found)
	}
	return left, err
}

// remains is what is left of a group. group and content are nil if they are gone.
type remains struct {
	group   *VolumeGroupSnapshot
	content *groupapi.Content
	members []snapshotv1.VolumeSnapshot
}

func (g Group) findRemains(ctx context.Context) (remains, error) {
	var found remains
	var err error
	if found.group, err = g.Find(ctx); err != nil && !errors.Is(err, ErrNotServed) {
		return remains{}, err
	}
	var owner types.UID
	if found.group != nil {
		owner = found.group.UID
		found.content, err = contentOf(ctx, g.objects, found.group)
	} else {
		found.content, err = orphanOf(ctx, g.objects, g.Ref)
	}
	if err != nil {
		return remains{}, err
	}
	found.members, err = listMembers(ctx, g.reader, g.Ref, owner)
	return found, err
}

// hasTaken reports whether an upload no longer needs its member.
func hasTaken(ctx context.Context, contents content.Client, upload Upload, members []snapshotv1.VolumeSnapshot) (bool, error) {
	if !slices.ContainsFunc(members, func(vs snapshotv1.VolumeSnapshot) bool { return vs.Name == upload.VolumeSnapshot }) {
		return true, nil
	}
	rehomed, err := contents.Find(ctx, upload.ObjectName())
	return rehomed != nil, err
}

// releaseGroup deletes what is left of the group itself, and returns it.
func (g Group) releaseGroup(ctx context.Context, found remains) ([]string, error) {
	var left []string
	deletesContent := false
	if found.content != nil {
		needed, err := g.settle(ctx, found.content, found.members)
		if err != nil {
			return nil, err
		}
		if !needed {
			left = append(left, groupapi.KindContent+" "+found.content.Name)
		}
		// If its policy is Delete, the snapshot controller deletes the content together
		// with the group.
		deletesContent = !needed && found.group == nil
	}
	if found.group != nil {
		left = append(left, groupapi.KindGroup+" "+g.String())
		if err := kube.Delete(ctx, g.client, found.group.object); err != nil {
			return nil, err
		}
	}
	if deletesContent {
		if err := g.keeper.FillStatus(ctx, found.content.Object); err != nil {
			return nil, err
		}
		return left, kube.Delete(ctx, g.client, found.content.Object)
	}
	return left, nil
}
