package backup

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

const (
	groupLabel       = "example.com/group"
	otherDriver      = "other.csi.example"
	finalizerInGroup = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"
)

// groupWorld is a cluster with volumes of one label value. It acts as the snapshot
// controller, the sidecar of each driver, and the storage, as far as groups need them.
type groupWorld struct {
	*world
	version string
	pvcs    map[string]*corev1.PersistentVolumeClaim
	pvs     map[string]*corev1.PersistentVolume

	mu sync.Mutex
	// taken has the members of each group that the storage took. storage has the handles of
	// its snapshots.
	taken   [][]string
	storage map[string]bool
}

func newGroupWorld(t *testing.T, names ...string) *groupWorld {
	t.Helper()
	w := newWorld(t)
	w.backup.Spec.VolumeGroupSnapshotLabelKey = groupLabel
	w.policy = `version: v1
volumePolicies:
- conditions: {pvcLabels: {skip: me}}
  action: {type: skip}
- conditions: {csi: {}}
  action: {type: custom, parameters: {mover: blockmover}}
`
	g := &groupWorld{
		world: w, version: "v1", storage: map[string]bool{},
		pvcs: map[string]*corev1.PersistentVolumeClaim{}, pvs: map[string]*corev1.PersistentVolume{},
	}
	w.groups = g
	w.objects = append(w.objects, groupClass("fast", driver), &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: "other-snap", Labels: map[string]string{velerov1.VolumeSnapshotClassSelectorLabel: "true"}}, Driver: otherDriver,
	})
	for _, name := range names {
		g.add(name, driver)
	}
	return g
}

func groupClass(name, driver string) client.Object {
	return &groupsnapshotv1.VolumeGroupSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: driver}
}

// add adds a volume to the cluster.
func (g *groupWorld) add(name, driver string) *corev1.PersistentVolumeClaim {
	pvc, pv := g.pvc.DeepCopy(), g.pv.DeepCopy()
	pvc.Name, pvc.UID, pvc.Labels, pvc.Spec.VolumeName = name, types.UID("uid-"+name), map[string]string{groupLabel: "db", "app": "db"}, "pv-"+name
	pv.Name, pv.Spec.ClaimRef.Name = "pv-"+name, name
	pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle = driver, "volume-"+name
	g.pvcs[name], g.pvs[name] = pvc, pv
	g.objects = append(g.objects, pvc, pv)
	return pvc
}

func (g *groupWorld) mapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	if g.version != "" {
		for _, kind := range []string{"VolumeGroupSnapshot", "VolumeGroupSnapshotContent", "VolumeGroupSnapshotClass"} {
			mapper.Add(schema.GroupVersionKind{Group: groupsnapshotv1.GroupName, Version: g.version, Kind: kind}, meta.RESTScopeNamespace)
		}
	}
	return mapper
}

// create acts as the snapshot controller and the driver.
func (g *groupWorld) create(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok || u.GetKind() != "VolumeGroupSnapshot" {
		return g.world.create(ctx, c, obj, opts...)
	}
	u.SetUID(types.UID("uid-" + u.GetName()))
	if err := c.Create(ctx, u, opts...); err != nil {
		return err
	}
	vgs := &groupsnapshotv1.VolumeGroupSnapshot{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, vgs); err != nil {
		return err
	}
	return g.cut(ctx, c, vgs)
}

func (g *groupWorld) cut(ctx context.Context, c client.WithWatch, vgs *groupsnapshotv1.VolumeGroupSnapshot) error {
	of := driver
	if *vgs.Spec.VolumeGroupSnapshotClassName == "other" {
		of = otherDriver
	}
	content := &groupsnapshotv1.VolumeGroupSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "groupsnapcontent-" + string(vgs.UID)},
		Spec: groupsnapshotv1.VolumeGroupSnapshotContentSpec{
			VolumeGroupSnapshotRef: corev1.ObjectReference{Namespace: vgs.Namespace, Name: vgs.Name, UID: vgs.UID},
			DeletionPolicy:         snapshotv1.VolumeSnapshotContentDelete,
			Driver:                 of,
		},
		Status: &groupsnapshotv1.VolumeGroupSnapshotContentStatus{},
	}
	if g.snapshotError != "" {
		content.Status.Error = &snapshotv1.VolumeSnapshotError{Message: &g.snapshotError}
		return c.Create(ctx, content)
	}
	claims := &corev1.PersistentVolumeClaimList{}
	if err := c.List(ctx, claims, client.InNamespace(vgs.Namespace), client.MatchingLabels(vgs.Spec.Source.Selector.MatchLabels)); err != nil {
		return err
	}
	handle := "group-" + vgs.Name
	content.Status.VolumeGroupSnapshotHandle = &handle
	var names []string
	for _, claim := range claims.Items {
		names = append(names, claim.Name)
		content.Status.VolumeSnapshotInfoList = append(content.Status.VolumeSnapshotInfoList,
			groupsnapshotv1.VolumeSnapshotInfo{VolumeHandle: "volume-" + claim.Name, SnapshotHandle: handleOf(vgs.Name, claim.Name)})
	}
	if err := c.Create(ctx, content); err != nil {
		return err
	}
	g.mu.Lock()
	g.taken = append(g.taken, names)
	g.mu.Unlock()
	for _, name := range names {
		if err := g.makeMember(ctx, c, vgs, of, name, handle); err != nil {
			return err
		}
	}
	return nil
}

func handleOf(group, pvc string) string { return group + "/" + pvc }

func (g *groupWorld) makeMember(ctx context.Context, c client.WithWatch, vgs *groupsnapshotv1.VolumeGroupSnapshot, of, pvc, groupHandle string) error {
	volume, handle, name := "volume-"+pvc, handleOf(vgs.Name, pvc), "snapshot-of-"+pvc+"-"+vgs.Name
	g.mu.Lock()
	g.storage[handle] = true
	g.mu.Unlock()
	if err := c.Create(ctx, &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{"example.com/sidecar"}, Annotations: map[string]string{"groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle": groupHandle}},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: of, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volume},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: vgs.Namespace, Name: name},
		},
		Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, VolumeGroupSnapshotHandle: &groupHandle},
	}); err != nil {
		return err
	}
	return c.Create(ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: vgs.Namespace, Name: name, Finalizers: []string{finalizerInGroup},
			// The controller chooses the version, not we.
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "groupsnapshot.storage.k8s.io/v1", Kind: "VolumeGroupSnapshot", Name: vgs.Name, UID: vgs.UID}},
		},
		Spec:   snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &pvc}},
		Status: &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &name, VolumeGroupSnapshotName: &vgs.Name},
	})
}

// delete acts as the snapshot controller. The group is gone at once. Its members wait until
// somebody removes the finalizer. If the content says Delete, the storage deletes all of the
// group.
func (g *groupWorld) delete(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
	if u, ok := obj.(*unstructured.Unstructured); ok && u.GetKind() == "VolumeGroupSnapshotContent" {
		g.deleteGroupContent(u)
	}
	if err := c.Delete(ctx, obj, opts...); err != nil {
		return err
	}
	if content, ok := obj.(*snapshotv1.VolumeSnapshotContent); ok {
		if err := c.Get(ctx, client.ObjectKeyFromObject(content), content); err != nil {
			return client.IgnoreNotFound(err)
		}
		return g.deleteContent(ctx, c, content)
	}
	if u, ok := obj.(*unstructured.Unstructured); !ok || u.GetKind() != "VolumeGroupSnapshot" {
		return nil
	}
	content := &groupsnapshotv1.VolumeGroupSnapshotContent{}
	if err := c.Get(ctx, client.ObjectKey{Name: "groupsnapcontent-uid-" + obj.GetName()}, content); err != nil {
		return client.IgnoreNotFound(err)
	}
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		g.mu.Lock()
		maps.DeleteFunc(g.storage, func(handle string, _ bool) bool { return strings.HasPrefix(handle, obj.GetName()+"/") })
		g.mu.Unlock()
		if err := c.Delete(ctx, content); err != nil {
			return err
		}
	}
	members := &snapshotv1.VolumeSnapshotList{}
	if err := c.List(ctx, members, client.InNamespace(obj.GetNamespace())); err != nil {
		return err
	}
	for i := range members.Items {
		if *members.Items[i].Status.VolumeGroupSnapshotName != obj.GetName() {
			continue
		}
		if err := c.Delete(ctx, &members.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

// deleteGroupContent acts as the sidecar: the storage deletes a group as a whole.
func (g *groupWorld) deleteGroupContent(u *unstructured.Unstructured) {
	policy, _, _ := unstructured.NestedString(u.Object, "spec", "deletionPolicy")
	group, _, _ := unstructured.NestedString(u.Object, "spec", "volumeGroupSnapshotRef", "name")
	if policy != "Delete" || u.GetAnnotations()["groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"] == "" {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.storage, func(handle string, _ bool) bool { return strings.HasPrefix(handle, group+"/") })
}

// deleteContent acts as the sidecar. The snapshot controller has no finalizer on these
// members: they are gone with the last finalizer, and nobody else deletes what they are bound
// to.
func (g *groupWorld) deleteContent(ctx context.Context, c client.WithWatch, content *snapshotv1.VolumeSnapshotContent) error {
	if content.Annotations["snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"] == "" {
		return nil
	}
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete && content.Status.VolumeGroupSnapshotHandle == nil {
		g.mu.Lock()
		delete(g.storage, *content.Status.SnapshotHandle)
		g.mu.Unlock()
	}
	content.Finalizers = nil
	return client.IgnoreNotFound(c.Update(ctx, content))
}

// members executes the action on each volume until none fails, and returns the groups by
// volume.
func (g *groupWorld) members(action *PVCAction, names ...string) map[string]string {
	g.t.Helper()
	groups := map[string]string{}
	for _, name := range names {
		r := g.executeOn(action, g.pvcs[name])
		require.NoError(g.t, r.err, name)
		groups[name] = g.groupOf(r)
	}
	return groups
}

// logged returns everything that the action has logged.
func (g *groupWorld) logged() string {
	text := ""
	for _, entry := range g.logs.AllEntries() {
		text += entry.Message + "\n"
	}
	return text
}

func (g *groupWorld) groupOf(r result) string {
	for _, item := range r.afterwards {
		if item.GroupResource == groupSnapshots {
			require.Equal(g.t, appNS, item.Namespace)
			return item.Name
		}
	}
	return ""
}

// finalize executes the other action on a group as Velero does, and returns the updated item.
func (g *groupWorld) finalize(fault *faulty.Fault, name string) (*unstructured.Unstructured, *logrustest.Hook) {
	g.t.Helper()
	g.backup.Status.Phase = velerov1.BackupPhaseFinalizing
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(schema.GroupVersionKind{Group: groupsnapshotv1.GroupName, Version: g.version, Kind: "VolumeGroupSnapshot"})
	object.SetNamespace(appNS)
	object.SetName(name)
	object.SetLabels(map[string]string{identity.LabelBackupUID: string(g.backup.UID)})
	log, hook := logrustest.NewNullLogger()
	action := NewGroupSnapshotAction(log, fault.Client(g.api))
	action.poll = time.Millisecond
	item, _, _, _, err := action.Execute(object, g.backup)
	require.NoError(g.t, err)
	return &unstructured.Unstructured{Object: item.UnstructuredContent()}, hook
}

// endUploads ends all uploads, after the mover has released their snapshots.
func (g *groupWorld) endUploads() {
	for _, du := range g.uploads() {
		du.Status.Phase = velerov2alpha1.DataUploadPhaseCompleted
		require.NoError(g.t, g.api.Update(g.t.Context(), &du))
	}
}

// requireClean checks that nothing of a group is left.
func (g *groupWorld) requireClean() {
	g.t.Helper()
	require.Empty(g.t, g.snapshots(), "VolumeSnapshots")
	for _, content := range g.contents() {
		require.NotNil(g.t, content.Spec.Source.SnapshotHandle, "content %s", content.Name)
	}
	for _, list := range []client.ObjectList{&groupsnapshotv1.VolumeGroupSnapshotList{}, &groupsnapshotv1.VolumeGroupSnapshotContentList{}} {
		require.NoError(g.t, g.api.List(g.t.Context(), list))
		require.Zero(g.t, meta.LenList(list), "%T", list)
	}
	for name, pvc := range g.pvcs {
		found := &corev1.PersistentVolumeClaim{}
		require.NoError(g.t, g.api.Get(g.t.Context(), client.ObjectKeyFromObject(pvc), found))
		require.Equal(g.t, pvc.Labels, found.Labels, name)
	}
}

func refOf(group string) groupsnapshot.Ref {
	return groupsnapshot.Ref{Namespace: appNS, Name: group, BackupUID: "backup-uid"}
}

func TestGroup(t *testing.T) {
	g := newGroupWorld(t, "a", "b", "c")
	groups := g.members(g.start(&faulty.Fault{}), "b", "a", "c", "b")
	name := identity.GroupName("backup-uid", appNS, "db", driver)
	require.Equal(t, map[string]string{"a": name, "b": name, "c": name}, groups)
	require.Equal(t, [][]string{{"a", "b", "c"}}, g.taken)
	require.Len(t, g.uploads(), 3)
	for _, du := range g.uploads() {
		require.Equal(t, name, du.Spec.DataMoverConfig[identity.ConfigGroup])
		require.Equal(t, "snapshot-of-"+du.Spec.SourcePVC+"-"+name, du.Spec.CSISnapshot.VolumeSnapshot)
		require.Equal(t, "snap", du.Spec.CSISnapshot.SnapshotClass, "a member has none itself")
	}
	for _, vs := range g.snapshots() {
		require.Equal(t, map[string]string{identity.LabelBackupUID: "backup-uid", velerov1.ExcludeFromBackupLabel: "true"}, vs.Labels)
	}
	g.requireQuiet()

	g.endUploads()
	for range 2 {
		item, log := g.finalize(&faulty.Fault{}, name)
		require.Equal(t, "true", item.GetAnnotations()[velerov1.SkipFromBackupAnnotation])
		require.Equal(t, logrus.InfoLevel, log.LastEntry().Level, log.LastEntry().Message)
		g.requireClean()
		require.Empty(t, g.storage)
	}
}

// TestGroupMembers: which volumes are in which group.
func TestGroupMembers(t *testing.T) {
	g := newGroupWorld(t, "a", "b")
	g.objects = append(g.objects, groupClass("other", otherDriver))
	g.add("x", otherDriver)
	g.add("y", otherDriver)
	g.add("skipped", driver).Labels["skip"] = "me"
	g.add("excluded", driver).Labels[velerov1.ExcludeFromBackupLabel] = "true"
	g.add("filtered", driver)
	g.policy += `namespacedFilterPolicies:
- namespaces: ["*"]
  resourceFilters: [{kinds: [persistentvolumeclaims], names: [nobody]}]
- namespaces: [` + appNS + `]
  resourceFilters: [{kinds: ["*"]}, {kinds: [pods], excludedNames: [a]}, {kinds: [PersistentVolumeClaim], excludedNames: ["filt*"]}]
`
	g.add("pending", driver).Status.Phase = corev1.ClaimPending
	g.add("other value", driver).Labels[groupLabel] = "web"
	groups := g.members(g.start(&faulty.Fault{}), "a", "x", "y", "b")
	require.Equal(t, groups["a"], groups["b"])
	require.Equal(t, groups["x"], groups["y"])
	require.NotEqual(t, groups["a"], groups["x"])
	require.Equal(t, [][]string{{"a", "b"}, {"x", "y"}}, g.taken)
	log := g.logged()
	for _, text := range []string{"{excluded the backup excludes it}", "{filtered the backup excludes it}", "{pending it is not bound}", "{skipped its volume policy", "{x it is of driver " + otherDriver + "}"} {
		require.Contains(t, log, text)
	}
	g.endUploads()
	for _, name := range []string{groups["a"], groups["x"]} {
		g.finalize(&faulty.Fault{}, name)
	}
	g.requireClean()
}

// TestAlone: the reasons why a volume with the label is snapshotted by itself. A policy may
// forbid it.
func TestAlone(t *testing.T) {
	for want, change := range map[Alone]func(g *groupWorld){
		NoGroupAPI:   func(g *groupWorld) { g.version = "" },
		NoGroupClass: func(g *groupWorld) { g.objects = slices.DeleteFunc(g.objects, isGroupClass) },
		GroupOfOne:   func(g *groupWorld) { g.pvcs["b"].Labels["skip"] = "me" },
		NotInGroup: func(g *groupWorld) {
			g.objects = append(g.objects, &groupsnapshotv1.VolumeGroupSnapshot{ObjectMeta: metav1.ObjectMeta{
				Namespace: appNS, Name: identity.GroupName("backup-uid", appNS, "db", driver),
				Labels:      map[string]string{identity.LabelBackupUID: "backup-uid"},
				Annotations: map[string]string{identity.AnnotationMembers: "b,c"},
			}})
		},
	} {
		t.Run(string(want), func(t *testing.T) {
			g := newGroupWorld(t, "a", "b")
			change(g)
			r := g.executeOn(g.start(&faulty.Fault{}), g.pvcs["a"])
			require.NoError(t, r.err)
			require.Len(t, r.afterwards, 1)
			require.Equal(t, string(want), g.uploads()[0].Spec.DataMoverConfig[identity.ConfigGroupReason])
			require.NotContains(t, g.uploads()[0].Spec.DataMoverConfig, identity.ConfigGroup)
			require.Contains(t, g.logged(), "is snapshotted by itself: "+string(want))
			require.Empty(t, g.taken)

			g = newGroupWorld(t, "a", "b")
			change(g)
			g.policy = strings.Replace(g.policy, "{mover: blockmover}", "{mover: blockmover, group: required}", 1)
			r = g.executeOn(g.start(&faulty.Fault{}), g.pvcs["a"])
			require.ErrorContains(t, r.err, "group: required by the volume policy")
			require.ErrorContains(t, r.err, string(want))
			require.Empty(t, g.snapshots())
			require.Empty(t, g.uploads())
		})
	}
}

// TestIncludedClaims: which entry applies to the PVCs of a namespace.
func TestIncludedClaims(t *testing.T) {
	const document = `version: v1
namespacedFilterPolicies:
- namespaces: ["team-*"]
  resourceFilters: [{kinds: [pvc], names: ["db-*"], excludedNames: [db-3]}]
- namespaces: [team-a, "team-b*"]
  resourceFilters: [{kinds: [pods], names: [x]}]
- namespaces: ["*-c"]
  resourceFilters: [{kinds: [PersistentVolumeClaims], excludedNames: [db-1]}]
`
	for namespace, want := range map[string][]string{
		"team-a": {"db-1", "db-3", "web"}, // it is named, and PVCs are not
		"team-b": {"db-1"},
		"my-c":   {"db-3", "web"},
		"team-c": {"db-1"},
		"other":  {"db-1", "db-3", "web"},
	} {
		g := newGroupWorld(t)
		g.policy = document
		names, err := g.start(&faulty.Fault{}).policies.includedClaims(t.Context(), namespace, g.backup)
		require.NoError(t, err)
		var included []string
		for _, name := range []string{"db-1", "db-3", "web"} {
			if names.ShouldInclude(name) {
				included = append(included, name)
			}
		}
		require.Equal(t, want, included, namespace)
	}
}

func isGroupClass(o client.Object) bool {
	_, is := o.(*groupsnapshotv1.VolumeGroupSnapshotClass)
	return is
}

func TestGroupClass(t *testing.T) {
	for name, test := range map[string]struct {
		change func(g *groupWorld)
		want   string
		err    string
	}{
		"annotation of a PVC": {change: func(g *groupWorld) {
			g.pvcs["b"].Annotations = map[string]string{"velero.io/csi-volume-group-snapshot-class": "slow"}
			g.backup.Annotations = map[string]string{"velero.io/csi-volumegroupsnapshot-class_" + driver: "fast"}
		}, want: "slow"},
		"annotation of the Backup": {change: func(g *groupWorld) {
			g.backup.Annotations = map[string]string{"velero.io/csi-volumegroupsnapshot-class_" + driver: "slow"}
			g.policy = strings.Replace(g.policy, "{mover: blockmover}", "{mover: blockmover, snapshotClass: fast}", 1)
		}, want: "slow"},
		"policy": {change: func(g *groupWorld) {
			g.policy = strings.Replace(g.policy, "{mover: blockmover}", "{mover: blockmover, snapshotClass: slow}", 1)
		}, want: "slow"},
		"policy names a class of single snapshots": {change: func(g *groupWorld) {
			g.policy = strings.Replace(g.policy, "{mover: blockmover}", "{mover: blockmover, snapshotClass: snap}", 1)
			g.objects = slices.DeleteFunc(g.objects, func(o client.Object) bool { return o.GetName() == "slow" })
		}, want: "fast"},
		"policy names nothing": {change: func(g *groupWorld) {
			g.policy = strings.Replace(g.policy, "{mover: blockmover}", "{mover: blockmover, snapshotClass: gone}", 1)
		}, err: "gone of volume policy of PVC a does not exist"},
		"ambiguous": {change: func(*groupWorld) {}, err: "there are 2 and none is labelled as default: fast, slow"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroupWorld(t, "a", "b")
			g.objects = append(g.objects, groupClass("slow", driver))
			test.change(g)
			r := g.executeOn(g.start(&faulty.Fault{}), g.pvcs["a"])
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
				g.requireClean()
				return
			}
			require.NoError(t, r.err)
			vgs := &groupsnapshotv1.VolumeGroupSnapshot{}
			require.NoError(t, g.api.Get(t.Context(), client.ObjectKey{Namespace: appNS, Name: g.groupOf(r)}, vgs))
			require.Equal(t, test.want, *vgs.Spec.VolumeGroupSnapshotClassName)
		})
	}
}

// TestGroupAtOnce: Velero's workers get all members at the same time.
func TestGroupAtOnce(t *testing.T) {
	g := newGroupWorld(t, "a", "b", "c")
	action := g.start(&faulty.Fault{})
	var done sync.WaitGroup
	results := make([]result, 6)
	for i := range results {
		done.Go(func() { results[i] = g.executeOn(action, g.pvcs[string("abc"[i%3])].DeepCopy()) })
	}
	done.Wait()
	for _, r := range results {
		require.NoError(t, r.err)
	}
	require.Equal(t, [][]string{{"a", "b", "c"}}, g.taken)
	require.Len(t, g.uploads(), 3)
}

// TestGroupSurvivesAnyFault lets each call of the actions fail in turn, before and after it
// had its effect. Repeated, the actions come to the same end: one group, and in the end
// nothing is left of it.
func TestGroupSurvivesAnyFault(t *testing.T) {
	for _, after := range []bool{false, true} {
		for call := 1; ; call++ {
			g := newGroupWorld(t, "a", "b")
			fault := &faulty.Fault{Call: call, After: after}
			action := g.start(fault)
			for _, name := range []string{"a", "b"} {
				if r := g.executeOn(action, g.pvcs[name]); r.err != nil {
					require.ErrorIs(t, r.err, faulty.ErrInjected)
					require.NoError(t, g.executeOn(action, g.pvcs[name]).err, fault.Fired())
				}
			}
			require.Equal(t, [][]string{{"a", "b"}}, g.taken, fault.Fired())
			require.Len(t, g.uploads(), 2)
			g.endUploads()
			g.finalize(fault, identity.GroupName("backup-uid", appNS, "db", driver))
			g.requireClean()
			require.Empty(t, g.storage, fault.Fired())
			if fault.Fired() == "" {
				require.Greater(t, call, 40)
				break
			}
		}
	}
}

// TestGroupKeepsWhatIsNeeded: while a member that was re-homed is needed, the whole group stays
// in the storage, in our charge. Then all of it goes at once: a driver may refuse to delete a
// member alone.
func TestGroupKeepsWhatIsNeeded(t *testing.T) {
	for _, after := range []bool{false, true} {
		for call := 0; ; call++ {
			g := newGroupWorld(t, "a", "b", "c")
			name := g.members(g.start(&faulty.Fault{}), "a", "b", "c")["a"]
			handle := handleOf(name, "b")
			pair := &snapshotv1.VolumeSnapshotContent{
				ObjectMeta: metav1.ObjectMeta{Name: "blockmover-retained"},
				Spec:       snapshotv1.VolumeSnapshotContentSpec{Driver: driver, Source: snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &handle}},
			}
			require.NoError(t, g.api.Create(t.Context(), pair))
			g.endUploads()
			fault := &faulty.Fault{Call: call, After: after}
			g.finalize(fault, name)
			require.Len(t, g.storage, 3, fault.Fired())
			kept := &groupsnapshotv1.VolumeGroupSnapshotContentList{}
			require.NoError(t, g.api.List(t.Context(), kept))
			require.Len(t, kept.Items, 1)
			require.Equal(t, snapshotv1.VolumeSnapshotContentRetain, kept.Items[0].Spec.DeletionPolicy)
			require.Equal(t, "backup-uid", kept.Items[0].Labels[identity.LabelBackupUID])

			require.NoError(t, g.api.Delete(t.Context(), pair))
			g.sweepGroups()
			g.requireClean()
			require.Empty(t, g.storage, fault.Fired())
			if call > 0 && fault.Fired() == "" {
				break
			}
		}
	}
}

// sweepGroups releases all groups as the manager's sweep does.
func (g *groupWorld) sweepGroups() {
	g.t.Helper()
	for range 10 {
		groups, err := groupsnapshot.New(g.api, g.api).Find(g.t.Context(), g.snapshots())
		require.NoError(g.t, err)
		for _, group := range groups {
			_, err := group.Release(g.t.Context(), nil)
			require.NoError(g.t, err)
		}
	}
}

// TestGroupWaitsForUploads: an upload that Velero does not wait for any more has not re-homed
// its member yet.
func TestGroupWaitsForUploads(t *testing.T) {
	g := newGroupWorld(t, "a", "b")
	name := g.members(g.start(&faulty.Fault{}), "a", "b")["a"]
	g.backup.Status.Phase = velerov1.BackupPhaseFinalizing
	action := NewGroupSnapshotAction(logrus.New(), g.api)
	uploads, err := action.uploads(t.Context(), refOf(name), veleroNS)
	require.NoError(t, err)
	require.Len(t, uploads, 2)
	group, err := groupsnapshot.New(g.api, g.api).Open(refOf(name))
	require.NoError(t, err)
	left, err := group.Release(t.Context(), uploads)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Contains(t, left[0], "has not taken over its member")
	require.Len(t, g.storage, 2)
	require.Len(t, g.snapshots(), 2)
	for _, pvc := range g.pvcs {
		found := &corev1.PersistentVolumeClaim{}
		require.NoError(t, g.api.Get(t.Context(), client.ObjectKeyFromObject(pvc), found))
		require.Equal(t, pvc.Labels, found.Labels, "the stamps go in any case")
	}
}

// TestGroupFails: the storage takes no group. The first member waits until the timeout, the
// others fail at once, and everything can be deleted.
func TestGroupFails(t *testing.T) {
	g := newGroupWorld(t, "a", "b")
	g.snapshotError = "the pool is on fire"
	g.backup.Spec.CSISnapshotTimeout.Duration = 300 * time.Millisecond
	action := g.start(&faulty.Fault{})
	first := g.executeOn(action, g.pvcs["a"])
	require.ErrorContains(t, first.err, "deadline exceeded")
	require.ErrorContains(t, first.err, "the pool is on fire")
	g.backup.Spec.CSISnapshotTimeout.Duration = time.Hour
	second := g.executeOn(action, g.pvcs["b"])
	require.ErrorContains(t, second.err, "the group snapshot has failed for another member")
	require.ErrorContains(t, second.err, "the pool is on fire")
	require.Empty(t, g.uploads())
	g.finalize(&faulty.Fault{}, identity.GroupName("backup-uid", appNS, "db", driver))
	g.requireClean()
}

// TestGroupsOfTwoBackups: each has its own group of the same volumes, and deletes only its
// own.
func TestGroupsOfTwoBackups(t *testing.T) {
	g := newGroupWorld(t, "a", "b")
	action := g.start(&faulty.Fault{})
	first := g.members(action, "a", "b")["a"]
	one := g.backup
	g.backup = one.DeepCopy()
	g.backup.UID, g.backup.Name, g.backup.ResourceVersion = "backup-uid-2", "weekly", ""
	require.NoError(t, g.api.Create(t.Context(), g.backup.DeepCopy()))
	second := g.members(action, "a", "b")["a"]
	require.NotEqual(t, first, second)
	require.Len(t, g.taken, 2)
	g.endUploads()

	g.backup = one
	g.finalize(&faulty.Fault{}, first)
	require.Len(t, g.snapshots(), 2)
	claim := &corev1.PersistentVolumeClaim{}
	require.NoError(t, g.api.Get(t.Context(), client.ObjectKeyFromObject(g.pvcs["a"]), claim))
	require.Equal(t, "backup-uid-2", claim.Labels[identity.GroupStamp(second)])
	require.NotContains(t, claim.Labels, identity.GroupStamp(first))
	require.Contains(t, claim.Labels, identity.LabelGrouped)
	g.backup.UID, g.backup.Status.Phase = "backup-uid-2", ""
	stamped := g.executeOn(action, claim)
	require.NoError(t, stamped.err)
	require.Equal(t, g.pvcs["a"].Labels, stamped.item.GetLabels(), "stamps are not in the backup")

	g.finalize(&faulty.Fault{}, second)
	g.requireClean()
}

// TestGroupSnapshotAction: our groups are in no backup, and others stay as they are.
func TestGroupSnapshotAction(t *testing.T) {
	group, other := identity.GroupName("u", "n", "v", "d"), "nightly"
	object := func(kind, name string, status map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"kind": kind, "metadata": map[string]any{"name": name, "namespace": appNS}, "status": status,
		}}
	}
	for name, test := range map[string]struct {
		item *unstructured.Unstructured
		skip bool
	}{
		"our group":               {object("VolumeGroupSnapshot", group, nil), true},
		"group of another":        {object("VolumeGroupSnapshot", other, nil), false},
		"member of ours":          {object("VolumeSnapshot", "x", map[string]any{"volumeGroupSnapshotName": group}), true},
		"member of another":       {object("VolumeSnapshot", "x", map[string]any{"volumeGroupSnapshotName": other}), false},
		"a single VolumeSnapshot": {object("VolumeSnapshot", "x", nil), false},
	} {
		t.Run(name, func(t *testing.T) {
			log, _ := logrustest.NewNullLogger()
			before := test.item.DeepCopy()
			got, additional, operation, afterwards, err := NewGroupSnapshotAction(log, nil).Execute(test.item, &velerov1.Backup{})
			require.NoError(t, err)
			require.Empty(t, additional)
			require.Empty(t, operation)
			require.Empty(t, afterwards)
			_, skip := (&unstructured.Unstructured{Object: got.UnstructuredContent()}).GetAnnotations()[velerov1.SkipFromBackupAnnotation]
			require.Equal(t, test.skip, skip)
			if !test.skip {
				require.Equal(t, before.Object, got.UnstructuredContent())
			}
		})
	}
	action := &GroupSnapshotAction{}
	require.Equal(t, "blockmover.io/volumegroupsnapshot-backup", action.Name())
	selector, err := action.AppliesTo()
	require.NoError(t, err)
	require.Equal(t, velero.ResourceSelector{IncludedResources: []string{
		"volumegroupsnapshots.groupsnapshot.storage.k8s.io", "volumesnapshots.snapshot.storage.k8s.io",
	}}, selector)
	_, err = action.Progress("", nil)
	require.Error(t, err)
	require.Error(t, action.Cancel("", nil))
}
