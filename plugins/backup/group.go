package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	"github.com/vmware-tanzu/velero/pkg/util/csi"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/group"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/plugins/internal/poll"
)

// Alone is the reason why a volume whose label asks for a group is snapshotted by itself.
type Alone string

// The reasons. They are in the DataUpload's spec.dataMoverConfig and
// status.dataMoverResult.
const (
	// NoGroupAPI: the cluster does not serve VolumeGroupSnapshots.
	NoGroupAPI Alone = "NoGroupAPI"
	// NoGroupClass: the driver has no VolumeGroupSnapshotClass.
	NoGroupClass Alone = "NoGroupClass"
	// GroupOfOne: no other volume of the driver has the label and is backed up by us.
	GroupOfOne Alone = "GroupOfOne"
	// NotInGroup: the group was snapshotted before the volume got the label.
	NotInGroup Alone = "NotInGroup"
)

// grouping makes the groups of a backup: of volumes whose policy gives them to Blockmover.
type grouping struct{ policies }

// join makes the group of a volume, or finds the one that another member has made. Without a
// group, alone is the reason, or "" if the volume has no label.
func (g grouping) join(ctx context.Context, pvc *corev1.PersistentVolumeClaim, driver string, backup *velerov1.Backup, settings policy.Settings) (*groupsnapshot.Group, Alone, error) {
	key := backup.Spec.VolumeGroupSnapshotLabelKey
	value := pvc.Labels[key]
	if key == "" || value == "" {
		return nil, "", nil
	}
	alone := func(reason Alone) (*groupsnapshot.Group, Alone, error) {
		message := fmt.Sprintf("PVC %s/%s with label %s=%s is snapshotted by itself: %s", pvc.Namespace, pvc.Name, key, value, reason)
		if settings.GroupRequired {
			return nil, "", fmt.Errorf("group: required by the volume policy: %s", message)
		}
		g.log.Info(message)
		return nil, reason, nil
	}
	uid := string(backup.UID)
	m, err := groupsnapshot.New(g.api, g.api).Open(groupsnapshot.Ref{
		Namespace: pvc.Namespace, Name: identity.GroupName(uid, pvc.Namespace, value, driver), BackupUID: uid,
	})
	if err != nil {
		return nil, "", err
	}
	found, err := m.Find(ctx)
	if errors.Is(err, groupsnapshot.ErrNotServed) {
		return alone(NoGroupAPI)
	}
	if err != nil {
		return nil, "", err
	}
	if found == nil {
		plan, err := g.plan(ctx, pvc, driver, backup)
		if err != nil {
			return nil, "", err
		}
		if len(plan.members) == 1 {
			return alone(GroupOfOne)
		}
		class, err := g.class(ctx, &m, driver, plan, backup)
		if errors.Is(err, group.ErrNoClass) {
			return alone(NoGroupClass)
		}
		if err != nil {
			return nil, "", err
		}
		g.log.WithField("volumeGroupSnapshot", m.String()).Infof("Taking a group snapshot of PVCs %s of driver %s by class %s; left out: %v",
			strings.Join(plan.members, ", "), driver, class, plan.leftOut)
		if found, err = m.Create(ctx, class, plan.members); err != nil {
			return nil, "", err
		}
	}
	if !found.Has(pvc.Name) {
		return alone(NotInGroup)
	}
	return &m, "", nil
}

// plan describes a group that does not exist yet.
type plan struct {
	members []string
	leftOut []group.LeftOut
	// annotated and inPolicy are the classes that members ask for.
	annotated, inPolicy []group.Wish
}

// plan collects the volumes with the label of a PVC and chooses the members.
//
// The label selectors of the backup do not matter: Velero backs up all PVCs of a group with
// the first one that it selects.
func (g grouping) plan(ctx context.Context, self *corev1.PersistentVolumeClaim, driver string, backup *velerov1.Backup) (plan, error) {
	key := backup.Spec.VolumeGroupSnapshotLabelKey
	claims := &corev1.PersistentVolumeClaimList{}
	if err := g.api.List(ctx, claims, client.InNamespace(self.Namespace), client.MatchingLabels{key: self.Labels[key]}); err != nil {
		return plan{}, fmt.Errorf("list PVCs with label %s=%s in namespace %s: %w", key, self.Labels[key], self.Namespace, err)
	}
	included, err := g.includedClaims(ctx, self.Namespace, backup)
	if err != nil {
		return plan{}, err
	}
	var volumes []group.Volume
	wishes := map[string]policy.Settings{}
	for i := range claims.Items {
		volume, settings, err := g.describe(ctx, &claims.Items[i], included, backup)
		if err != nil {
			return plan{}, err
		}
		volumes = append(volumes, volume)
		wishes[volume.PVC] = settings
	}
	var p plan
	p.members, p.leftOut = group.Plan(group.Volume{PVC: self.Name, Driver: driver}, volumes)
	for i := range claims.Items {
		pvc := &claims.Items[i]
		if !slices.Contains(p.members, pvc.Name) {
			continue
		}
		if class := pvc.Annotations[velerov1.VolumeGroupSnapshotClassAnnotationPVC]; class != "" {
			p.annotated = append(p.annotated, group.Wish{Source: "annotation of PVC " + pvc.Name, Class: class})
		}
		if class := wishes[pvc.Name].SnapshotClass; class != "" {
			p.inPolicy = append(p.inPolicy, group.Wish{Source: "volume policy of PVC " + pvc.Name, Class: class})
		}
	}
	return p, nil
}

// describe describes one PVC with the label. A PVC with a malformed policy is not ours: its
// own backup fails with the reason.
func (g grouping) describe(ctx context.Context, pvc *corev1.PersistentVolumeClaim, included *collections.IncludesExcludes, backup *velerov1.Backup) (group.Volume, policy.Settings, error) {
	volume := group.Volume{
		PVC:      pvc.Name,
		Bound:    pvc.Status.Phase == corev1.ClaimBound && pvc.Spec.VolumeName != "",
		Excluded: pvc.Labels[velerov1.ExcludeFromBackupLabel] == "true" || pvc.DeletionTimestamp != nil || !included.ShouldInclude(pvc.Name),
	}
	if !volume.Bound || volume.Excluded {
		return volume, policy.Settings{}, nil
	}
	decided, err := g.decideClaim(pvc, backup)
	if err != nil || !decided.ours {
		return volume, policy.Settings{}, err
	}
	settings, err := policy.Parse(decided.params)
	if err != nil {
		return volume, policy.Settings{}, nil //nolint:nilerr // see above
	}
	pv := &corev1.PersistentVolume{}
	if err := g.api.Get(ctx, client.ObjectKey{Name: pvc.Spec.VolumeName}, pv); err != nil && !apierrors.IsNotFound(err) {
		return group.Volume{}, policy.Settings{}, fmt.Errorf("get PersistentVolume %s: %w", pvc.Spec.VolumeName, err)
	}
	volume.Ours = true
	if pv.Spec.CSI != nil {
		volume.Driver = pv.Spec.CSI.Driver
	}
	return volume, settings, nil
}

// class chooses the class of a new group.
func (g grouping) class(ctx context.Context, m *groupsnapshot.Group, driver string, p plan, backup *velerov1.Backup) (string, error) {
	classes, err := m.Classes(ctx)
	if err != nil {
		return "", err
	}
	var ofBackup, ofPolicy []group.Wish
	annotation := velerov1.VolumeGroupSnapshotClassAnnotationBackupPrefix + driver
	if class := backup.Annotations[annotation]; class != "" {
		ofBackup = append(ofBackup, group.Wish{Source: "annotation " + annotation + " of the Backup", Class: class})
	}
	for _, wish := range p.inPolicy {
		named := false
		for _, class := range classes {
			named = named || class.Name == wish.Class
		}
		// The key is also for single volumes, so it may name a VolumeSnapshotClass.
		if !named && checkClass(ctx, g.api, wish.Class, driver) == nil {
			continue
		}
		ofPolicy = append(ofPolicy, wish)
	}
	return group.ChooseClass(driver, [][]group.Wish{p.annotated, ofBackup, ofPolicy}, classes)
}

// classOfMember returns the VolumeSnapshotClass for a member of a group. The member itself has
// none, and the mover needs one to ask for changed blocks. If there is none to choose, the
// mover looks for a class of the driver.
func (g grouping) classOfMember(ctx context.Context, named, driver string, pvc *corev1.PersistentVolumeClaim, backup *velerov1.Backup) string {
	if named != "" && checkClass(ctx, g.api, named, driver) == nil {
		return named
	}
	class, err := csi.GetVolumeSnapshotClass(driver, backup, pvc, g.log, g.api)
	if err != nil {
		g.log.Infof("No VolumeSnapshotClass for the member %s/%s of a group: %v", pvc.Namespace, pvc.Name, err)
		return ""
	}
	return class.Name
}

// startMember waits for the VolumeSnapshot of a member and creates the DataUpload. What a
// failed member leaves is deleted with its group.
func (a *PVCAction) startMember(ctx context.Context, m *groupsnapshot.Group, wanted *velerov2alpha1.DataUpload, snapshotTimeout time.Duration) (*velerov2alpha1.DataUpload, error) {
	wanted.Spec.DataMoverConfig[identity.ConfigGroup] = m.Name
	if found, err := a.earlier(ctx, wanted); err != nil || found != nil {
		return found, err
	}
	waitCtx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	vs, err := m.WaitForMember(waitCtx, wanted.Spec.SourcePVC)
	if err != nil {
		if waitCtx.Err() != nil {
			err = errors.Join(err, giveUp(ctx, m, err))
		}
		return nil, adviseExhausted(ctx, a.api, err, wanted)
	}
	wanted.Spec.CSISnapshot.VolumeSnapshot = vs.Name
	return a.create(ctx, wanted)
}

// earlier returns the DataUpload that an earlier attempt has made for a member. Its
// VolumeSnapshot may have left the group by now.
func (a *PVCAction) earlier(ctx context.Context, wanted *velerov2alpha1.DataUpload) (*velerov2alpha1.DataUpload, error) {
	found, err := kube.Find(ctx, a.api, client.ObjectKeyFromObject(wanted), &velerov2alpha1.DataUpload{})
	if err != nil || found == nil {
		return nil, err
	}
	if found.Spec.CSISnapshot != nil {
		wanted.Spec.CSISnapshot.VolumeSnapshot = found.Spec.CSISnapshot.VolumeSnapshot
	}
	if err := adoptableAs(wanted)(found); err != nil {
		return nil, fmt.Errorf("adopt DataUpload %s/%s: %w", wanted.Namespace, wanted.Name, err)
	}
	return found, nil
}

// giveUp marks the group as failed, so that the other members do not wait as long, one after
// the other. It has a context of its own.
func giveUp(ctx context.Context, m *groupsnapshot.Group, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), poll.CallTimeout)
	defer cancel()
	return m.GiveUp(ctx, why.Error())
}
