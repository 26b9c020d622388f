package controller

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
)

func TestNeedless(t *testing.T) {
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	backup := func(uid string, start time.Time) *velerov1.Backup {
		return &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}, Status: velerov1.BackupStatus{StartTimestamp: &metav1.Time{Time: start}}}
	}
	pair := func(name string, edit ...func(*rehome.Retained)) rehome.Retained {
		minutes := map[string]int{"a": 1, "b": 2, "c": 3}[name]
		r := rehome.Retained{
			Name: name, Driver: "driver", VolumeHandle: "volume", SnapshotTime: at(minutes),
			Keeping: rehome.Keeping{
				Retention: policy.RetentionAuto, Namespace: "app", PVC: "data", Location: "default",
				Backup: "backup-" + name, BackupUID: "uid-" + name,
			},
		}
		for _, e := range edit {
			e(&r)
		}
		return r
	}
	always := func(r *rehome.Retained) { r.Retention = policy.RetentionAlways }
	claim := client.ObjectKey{Namespace: "app", Name: "data"}
	for name, tc := range map[string]struct {
		all    []rehome.Retained
		change func(n *needs)
		want   map[string]string
	}{
		"the newest of three stays": {
			all:  []rehome.Retained{pair("a"), pair("b"), pair("c")},
			want: map[string]string{"a": "backup backup-b of the volume is newer", "b": "backup backup-c of the volume is newer"},
		},
		"the order of the list does not matter": {
			all:  []rehome.Retained{pair("b"), pair("a")},
			want: map[string]string{"a": "backup backup-b of the volume is newer"},
		},
		"a running upload holds all": {
			all:    []rehome.Retained{pair("a"), pair("b")},
			change: func(n *needs) { n.uploading[claim] = true; delete(n.backups, "backup-a") },
		},
		"a running upload of another volume holds nothing": {
			all:    []rehome.Retained{pair("a"), pair("b")},
			change: func(n *needs) { n.uploading[client.ObjectKey{Namespace: "app", Name: "other"}] = true },
			want:   map[string]string{"a": "newer"},
		},
		"always stays until its backup is gone": {
			all:    []rehome.Retained{pair("a", always), pair("b", always), pair("c")},
			change: func(n *needs) { delete(n.backups, "backup-b") },
			want:   map[string]string{"b": "its backup is gone"},
		},
		"always stays without its volume": {
			all:    []rehome.Retained{pair("a", always)},
			change: func(n *needs) { clear(n.volumes) },
		},
		"a newer one that always stays serves as base": {
			all:  []rehome.Retained{pair("a"), pair("b", always)},
			want: map[string]string{"a": "newer"},
		},
		"a newer one whose backup is gone does not": {
			all:    []rehome.Retained{pair("a"), pair("b")},
			change: func(n *needs) { delete(n.backups, "backup-b") },
			want:   map[string]string{"b": "its backup is gone"},
		},
		"another storage location has a base of its own": {
			all: []rehome.Retained{pair("a", func(r *rehome.Retained) { r.Location = "offsite" }), pair("b")},
		},
		"a volume that was replaced": {
			all:    []rehome.Retained{pair("a", func(r *rehome.Retained) { r.VolumeHandle = "old" }), pair("b")},
			want:   map[string]string{"a": "its volume is gone"},
			change: func(*needs) {},
		},
		"a volume that was handed to another PVC": {
			all:    []rehome.Retained{pair("a")},
			change: func(n *needs) { n.volumes[volumeID{"driver", "volume"}][0].Namespace = "elsewhere" },
			want:   map[string]string{"a": "its volume is gone"},
		},
		"a volume without a claim may get its own again": {
			all:    []rehome.Retained{pair("a")},
			change: func(n *needs) { n.volumes[volumeID{"driver", "volume"}][0] = client.ObjectKey{} },
		},
		"a backup that was synced back": {
			all:    []rehome.Retained{pair("a")},
			change: func(n *needs) { n.backups["backup-a"].UID = "other" },
		},
		"another backup of the same name": {
			all:    []rehome.Retained{pair("a")},
			change: func(n *needs) { n.backups["backup-a"] = backup("other", at(10)) },
			want:   map[string]string{"a": "its backup is gone"},
		},
		"another backup of the same name that has not begun": {
			all:    []rehome.Retained{pair("a")},
			change: func(n *needs) { n.backups["backup-a"] = &velerov1.Backup{} },
			want:   map[string]string{"a": "its backup is gone"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := needs{
				backups:   map[string]*velerov1.Backup{},
				uploading: map[client.ObjectKey]bool{},
				volumes:   map[volumeID][]client.ObjectKey{{"driver", "volume"}: {claim}},
			}
			for _, name := range []string{"a", "b", "c"} {
				n.backups["backup-"+name] = backup("uid-"+name, noon)
			}
			if tc.change != nil {
				tc.change(&n)
			}
			for _, r := range tc.all {
				why := n.needless(r, tc.all)
				require.Equal(t, tc.want[r.Name] == "", why == "", "%s: %s", r.Name, why)
				require.Contains(t, why, tc.want[r.Name])
			}
		})
	}
}

// retainingWorld is uploadWorld with a retention in its policy.
func retainingWorld(retain policy.Retention) func(*testing.T, ...client.Object) *world {
	return func(t *testing.T, more ...client.Object) *world {
		t.Helper()
		w := uploadWorld(t, more...)
		du := w.dataUpload()
		du.Spec.DataMoverConfig = map[string]string{identity.ConfigParentSnapshot: identity.ParentAuto, identity.ConfigRetainSnapshot: string(retain)}
		w.update(du)
		return w
	}
}

var metadataKind = schema.GroupVersionKind{Group: "cbt.storage.k8s.io", Version: "v1beta1", Kind: "SnapshotMetadataService"}

// addMetadataService lets the driver report deltas. If required is nil, the service does not
// say whether the driver needs the base snapshot.
func (w *world) addMetadataService(required *bool) {
	w.t.Helper()
	w.mapper.Add(metadataKind, meta.RESTScopeRoot)
	spec := map[string]any{"address": "a:1", "audience": driver, "caCert": "Y2E="}
	if required != nil {
		spec["requireBaseSnapshotForDelta"] = *required
	}
	service := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	service.SetGroupVersionKind(metadataKind)
	service.SetName(driver)
	require.NoError(w.t, w.c.Create(w.ctx, service))
}

func TestUploadRetains(t *testing.T) {
	yes, no := true, false
	for name, tc := range map[string]struct {
		retain     policy.Retention
		annotation string
		service    func(w *world)
		want       policy.Retention
	}{
		"auto, base required":     {retain: policy.RetentionAuto, service: func(w *world) { w.addMetadataService(&yes) }, want: policy.RetentionAuto},
		"auto, nothing said":      {retain: policy.RetentionAuto, service: func(w *world) { w.addMetadataService(nil) }, want: policy.RetentionAuto},
		"auto, base not required": {retain: policy.RetentionAuto, service: func(w *world) { w.addMetadataService(&no) }},
		"auto, no service":        {retain: policy.RetentionAuto},
		"always":                  {retain: policy.RetentionAlways, want: policy.RetentionAlways},
		"never":                   {retain: policy.RetentionNever, service: func(w *world) { w.addMetadataService(&yes) }},
		"door 1":                  {service: func(w *world) { w.addMetadataService(&yes) }, want: policy.RetentionAuto},
		"door 1, never":           {annotation: "Never", service: func(w *world) { w.addMetadataService(&yes) }},
		"door 1, always":          {annotation: "always", want: policy.RetentionAlways},
	} {
		t.Run(name, func(t *testing.T) {
			w := uploadWorld(t)
			if tc.retain != "" {
				w = retainingWorld(tc.retain)(t)
			}
			if tc.annotation != "" {
				backup := get[velerov1.Backup](w, veleroNamespace, "backup")
				backup.Annotations = map[string]string{identity.AnnotationRetainSnapshot: tc.annotation}
				w.update(backup)
			}
			if tc.service != nil {
				tc.service(w)
			}
			require.Equal(t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
			w.sweepUp()
			if tc.want == "" {
				w.requireNothingLeft([]string{"volume-src"}, nil)
				require.NotContains(t, w.dataUpload().Annotations, identity.AnnotationRetained)
				return
			}
			w.requireRetained(tc.want)
			w.requireReleasedWithBackup()
		})
	}
}

// requireRetained checks that only the storage snapshot is left, with its pair.
func (w *world) requireRetained(by policy.Retention) {
	w.t.Helper()
	require.Equal(w.t, []string{"snapshot-1"}, slices.Collect(maps.Keys(w.snapshots)))
	name := identity.OperationName(string(w.dataUpload().UID))
	contents, snapshots := list[snapshotv1.VolumeSnapshotContentList](w).Items, list[snapshotv1.VolumeSnapshotList](w).Items
	require.Len(w.t, contents, 1)
	require.Len(w.t, snapshots, 1)
	require.Equal(w.t, snapshotv1.VolumeSnapshotContentDelete, contents[0].Spec.DeletionPolicy)
	for _, object := range []client.Object{&contents[0], &snapshots[0]} {
		require.Equal(w.t, name, object.GetName())
		require.Nil(w.t, object.GetDeletionTimestamp())
		require.Empty(w.t, object.GetOwnerReferences())
		labels := object.GetLabels()
		require.NotContains(w.t, labels, identity.LabelOperation)
		require.NotContains(w.t, labels, velerov1.BackupNameLabel, "Velero would take it for a local snapshot of its own")
		require.Equal(w.t, "true", labels[velerov1.ExcludeFromBackupLabel])
		require.Equal(w.t, string(by), labels[identity.LabelRetained])
		for _, names := range []map[string]string{labels, object.GetAnnotations()} {
			require.Equal(w.t, appNamespace, names[identity.LabelVolumeNamespace])
			require.Equal(w.t, "data", names[identity.LabelVolume])
			require.Equal(w.t, "backup", names[identity.LabelBackup])
		}
		require.Equal(w.t, "volume-src", object.GetAnnotations()["blockmover.io/volume-handle"])
	}
	var noted rehome.Retained
	require.NoError(w.t, json.Unmarshal([]byte(w.dataUpload().Annotations[identity.AnnotationRetained]), &noted))
	require.Equal(w.t, rehome.Retained{
		Name: name, Driver: driver, VolumeHandle: "volume-src", SnapshotHandle: "snapshot-1",
		SnapshotTime: time.Date(2026, 3, 1, 11, 59, 0, 5, time.UTC), Class: "snapclass", SecretName: "secret",
		Keeping: rehome.Keeping{
			Retention: by, Namespace: appNamespace, PVC: "data", Location: "default", Backup: "backup", BackupUID: "backup-uid",
		},
	}, noted)
}

// requireReleasedWithBackup deletes the backup without telling the plugin. It may come back, so
// the snapshot stays for a while.
func (w *world) requireReleasedWithBackup() {
	w.t.Helper()
	if backup := get[velerov1.Backup](w, veleroNamespace, "backup"); backup != nil {
		require.NoError(w.t, w.c.Delete(w.ctx, backup))
	}
	kept := len(w.snapshots)
	w.sweepUp()
	w.clock = w.clock.Add(goneGrace - time.Minute)
	w.sweepUp()
	require.Len(w.t, w.snapshots, kept)
	w.clock = w.clock.Add(time.Minute)
	w.sweepUp()
	w.requireNothingLeft([]string{"volume-src"}, nil)
	if du := w.dataUpload(); du != nil {
		require.NotContains(w.t, du.Annotations, identity.AnnotationRetained)
	}
}

// TestRetainSurvivesAnyFault lets each call fail in turn, before and after it had its effect.
func TestRetainSurvivesAnyFault(t *testing.T) {
	eachFault(t, retainingWorld(policy.RetentionAlways), func(w *world) {
		require.Equal(w.t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
		w.sweepUp()
		w.requireRetained(policy.RetentionAlways)
		w.requireReleasedWithBackup()
	})
}

// TestRetainChaos: the snapshot stays if and only if the upload completes, and it is always
// deleted with the backup.
func TestRetainChaos(t *testing.T) {
	kept := 0
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := retainingWorld(policy.RetentionAlways)(t)
			w.chaos(seed, w.uploads, "du", func() client.Object { return w.dataUpload() })
			if du := w.dataUpload(); du != nil && du.Status.Phase == velerov2alpha1.DataUploadPhaseCompleted {
				w.requireRetained(policy.RetentionAlways)
				kept++
			}
			w.requireReleasedWithBackup()
		})
	}
	require.Positive(t, kept)
}

// TestRetainedOfGroupMember: the sidecar does not delete members of a group, even of one that
// is long gone.
func TestRetainedOfGroupMember(t *testing.T) {
	for _, retain := range []policy.Retention{policy.RetentionNever, policy.RetentionAlways} {
		t.Run(string(retain), func(t *testing.T) {
			w := retainingWorld(retain)(t)
			w.groups["snapshot-1"] = "group-1"
			require.Equal(t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
			if retain == policy.RetentionAlways {
				w.requireRetained(retain)
			}
			w.requireReleasedWithBackup()
		})
	}
}

// TestRetainedOfDeletedDataUpload: the backup decides, not the DataUpload.
func TestRetainedOfDeletedDataUpload(t *testing.T) {
	w := retainingWorld(policy.RetentionAlways)(t)
	w.run(w.uploads, "du")
	require.NoError(t, w.c.Delete(w.ctx, w.dataUpload()))
	w.sweepUp()
	require.Contains(t, w.snapshots, "snapshot-1")
	w.requireReleasedWithBackup()
}

// TestSweepLeavesUnreadable: a pair that does not say what it belongs to stays, and the sweep
// reports it.
func TestSweepLeavesUnreadable(t *testing.T) {
	w := retainingWorld(policy.RetentionAlways)(t)
	w.run(w.uploads, "du")
	content := &list[snapshotv1.VolumeSnapshotContentList](w).Items[0]
	delete(content.Annotations, identity.LabelBackup)
	w.update(content)
	require.NoError(t, w.c.Delete(w.ctx, get[velerov1.Backup](w, veleroNamespace, "backup")))
	_, err := w.sweep.sweep(w.ctx)
	require.ErrorContains(t, err, "do not say which volume and backup")
	require.Contains(t, w.snapshots, "snapshot-1")
}

// TestRetainedOverTime makes and deletes backups of one volume at random, with all
// retentions, and counts the snapshots in the storage after each.
func TestRetainedOverTime(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			w := uploadWorld(t)
			w.addMetadataService(nil)
			require.NoError(t, w.c.Delete(w.ctx, w.dataUpload()))
			w.sweepUp()
			w.removeOrigin()
			s := series{world: w, retains: map[int]policy.Retention{}}
			for step := range 20 {
				if live := s.live(); len(live) > 0 && random.IntN(3) == 0 {
					s.delete(live[random.IntN(len(live))])
				} else {
					s.backup(step, []policy.Retention{policy.RetentionAuto, policy.RetentionAuto, policy.RetentionAlways, policy.RetentionNever}[random.IntN(4)])
				}
				w.sweepUp()
				s.check()
			}
			for _, n := range s.live() {
				s.delete(n)
			}
			w.sweepUp()
			w.requireNothingLeft([]string{"volume-src"}, nil)
		})
	}
}

// TestRunningUploadHoldsBase deletes the backup whose snapshot may be the base of the delta
// that an upload asks for.
func TestRunningUploadHoldsBase(t *testing.T) {
	w := uploadWorld(t)
	w.addMetadataService(nil)
	require.NoError(t, w.c.Delete(w.ctx, w.dataUpload()))
	w.sweepUp()
	w.removeOrigin()
	s := series{world: w, retains: map[int]policy.Retention{}}
	s.backup(0, policy.RetentionAuto)
	polls := 0
	w.podEnds = func(*corev1.Pod) bool {
		if polls++; polls == 1 {
			s.vanish(0)
		}
		require.Contains(t, w.snapshots, "snapshot-backup-0")
		_, err := w.sweep.sweep(w.ctx)
		require.NoError(t, err)
		const enoughToDelete = 6
		return polls > enoughToDelete
	}
	s.backup(1, policy.RetentionAuto)
	require.Greater(t, polls, 1)
	w.clock = w.clock.Add(goneGrace)
	w.sweepUp()
	s.check()
	require.Equal(t, []string{"snapshot-backup-1"}, slices.Collect(maps.Keys(w.snapshots)))
}

// removeOrigin deletes the snapshot of uploadObjects.
func (w *world) removeOrigin() {
	vs, content := get[snapshotv1.VolumeSnapshot](w, appNamespace, "snap"), get[snapshotv1.VolumeSnapshotContent](w, "", "snapcontent-1")
	require.NoError(w.t, w.c.Delete(w.ctx, vs))
	for range 3 {
		w.step()
	}
	require.NotNil(w.t, content)
	w.requireNothingLeft([]string{"volume-src"}, nil)
}

// series is a series of backups of one volume, by number.
type series struct {
	*world
	// retains has the retentions of the backups that exist.
	retains map[int]policy.Retention
	// last is the newest backup whose snapshot was retained.
	last int
}

func (s *series) live() []int { return slices.Sorted(maps.Keys(s.retains)) }

func (s *series) backup(n int, retain policy.Retention) {
	s.t.Helper()
	name := fmt.Sprintf("backup-%d", n)
	uid := types.UID(name + "-uid")
	s.snapshots["snapshot-"+name] = true
	for _, object := range uploadObjects() {
		switch o := object.(type) {
		case *velerov1.Backup:
			o.Name, o.UID = name, uid
		case *snapshotv1.VolumeSnapshot:
			content := "content-" + name
			o.Name, o.UID, o.Status.BoundVolumeSnapshotContentName = name, uid, &content
		case *snapshotv1.VolumeSnapshotContent:
			handle, at := "snapshot-"+name, s.clock.UnixNano()
			o.Name, o.Status.SnapshotHandle, o.Status.CreationTime = "content-"+name, &handle, &at
			o.Spec.VolumeSnapshotRef.Name, o.Spec.VolumeSnapshotRef.UID = name, uid
		case *velerov2alpha1.DataUpload:
			o.Name, o.Spec.CSISnapshot.VolumeSnapshot = name, name
			o.OwnerReferences[0].Name, o.OwnerReferences[0].UID = name, uid
			o.Spec.DataMoverConfig = map[string]string{"parentSnapshot": "auto", "retainSnapshot": string(retain)}
		default:
			continue
		}
		copied, _ := object.DeepCopyObject().(client.Object)
		require.NoError(s.t, s.c.Create(s.ctx, copied))
		if content, ok := object.(*snapshotv1.VolumeSnapshotContent); ok {
			content.ResourceVersion = copied.GetResourceVersion()
			require.NoError(s.t, s.c.Status().Update(s.ctx, content))
		}
	}
	require.Equal(s.t, phase.Completed, s.run(s.uploads, name).Status.Phase)
	s.retains[n] = retain
	if retain != policy.RetentionNever {
		s.last = n
	}
}

// delete deletes a backup as a server without our plugin does, and lets the grace pass.
func (s *series) delete(n int) {
	s.t.Helper()
	s.vanish(n)
	s.sweepUp()
	s.clock = s.clock.Add(goneGrace)
}

// vanish removes a Backup with its DataUpload.
func (s *series) vanish(n int) {
	s.t.Helper()
	name := fmt.Sprintf("backup-%d", n)
	require.NoError(s.t, s.c.Delete(s.ctx, get[velerov1.Backup](s.world, veleroNamespace, name)))
	require.NoError(s.t, s.c.Delete(s.ctx, get[velerov2alpha1.DataUpload](s.world, veleroNamespace, name)))
	delete(s.retains, n)
}

// check compares the storage with the rules: all snapshots of always, and the newest that was
// ever retained. The one before it is gone, and does not come back when the newest is
// deleted.
func (s *series) check() {
	s.t.Helper()
	for n, retain := range s.retains {
		want := retain == policy.RetentionAlways || retain == policy.RetentionAuto && n == s.last
		require.Equal(s.t, want, s.snapshots[fmt.Sprintf("snapshot-backup-%d", n)], "backup %d, %s, newest is %d", n, retain, s.last)
	}
	require.Len(s.t, list[snapshotv1.VolumeSnapshotContentList](s.world).Items, len(s.snapshots))
	require.Len(s.t, list[snapshotv1.VolumeSnapshotList](s.world).Items, len(s.snapshots))
	require.LessOrEqual(s.t, len(s.snapshots), len(s.retains))
	for handle := range s.snapshots {
		require.True(s.t, slices.ContainsFunc(s.live(), func(n int) bool { return handle == fmt.Sprintf("snapshot-backup-%d", n) }), handle)
	}
	require.Empty(s.t, list[corev1.PodList](s.world).Items)
}
