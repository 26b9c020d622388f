package scenarios

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestRestoreElsewhere restores one backup to the StorageClass of another driver, and to one
// that waits for the first consumer, with the consumer in the same restore.
func TestRestoreElsewhere(t *testing.T) {
	s := newScenario(t)
	app := s.app("elsewhere")
	want := s.sums(app)
	backup := s.backup("elsewhere", append(perVolume.args(s), "--include-namespaces", app.Namespace)...)

	for _, class := range []string{s.kit.OtherStorageClass, s.kit.WaitStorageClass} {
		t.Run(class, func(t *testing.T) {
			sub := &scenario{T: t, kit: s.kit, ctx: s.ctx, suffix: s.suffix}
			sub.mapStorageClass(s.kit.StorageClass, class)
			target := sub.namespace("to-" + class)
			sub.restore(backup, "--namespace-mappings", app.Namespace+":"+target)
			sub.checkContent(target, want)
			sub.checkClass(target, class)
		})
	}

	// Over the application itself, which lives. It keeps its data, and the Restore says so.
	require.NoError(t, app.Change(s.ctx))
	want = s.sums(app)
	name := s.name("over")
	restore, err := s.kit.Restore(s.ctx, name, backup)
	require.NoError(t, err)
	require.Equal(t, "Completed", restore.Status.Phase)
	described, err := s.kit.Describe(s.ctx, "restore", name)
	require.NoError(t, err)
	events, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "get", "events", "--field-selector", "involvedObject.name="+name, "-o", "jsonpath={.items[*].message}")
	require.NoError(t, err)
	for _, claim := range []string{kit.FilesPVC, kit.DiskPVC} {
		require.Contains(t, described, "could not restore, PersistentVolumeClaim:"+claim+" already exists")
		require.Contains(t, events, "PVC "+app.Namespace+"/"+claim+" already exists: its data is not restored")
	}
	s.checkContent(app.Namespace, want)
	s.checkNothingLeft()
}

// restoreUnmounted restores a backup of namespace from into another one. First it restores
// only the volumes, so that e2fsck can check the file system before anything mounts it. Then
// it restores the rest, which finds its volumes, and checks the content.
func (s *scenario) restoreUnmounted(backup, from, base string, want kit.Sums) {
	s.Helper()
	target := s.namespace(base)
	mapping := from + ":" + target
	s.restore(backup, "--namespace-mappings", mapping, "--include-resources", "persistentvolumeclaims,persistentvolumes")
	require.NoError(s, s.kit.Fsck(s.ctx, target, kit.FilesPVC, s.kit.StorageClass, s.kit.StorageClass))
	s.restore(backup, "--namespace-mappings", mapping)
	s.checkContent(target, want)
}

// mapStorageClass makes restores replace one StorageClass by another.
func (s *scenario) mapStorageClass(from, to string) {
	s.Helper()
	name := s.name("change-storage-class")
	require.NoError(s, s.kit.MapStorageClass(s.ctx, name, from, to))
	s.deleteConfigMapInTheEnd(name)
}

// checkClass checks that the volumes of a restored application have a class, and that
// deleting them will delete the volumes in the storage.
func (s *scenario) checkClass(namespace, class string) {
	s.Helper()
	claims, err := s.kit.List(s.ctx, "-n", namespace, "persistentvolumeclaims")
	require.NoError(s, err)
	require.Len(s, claims, 2)
	for _, claim := range claims {
		require.Equal(s, class, claim.Spec.StorageClassName, claim)
		var volume kit.Object
		require.NoError(s, s.kit.Get(s.ctx, &volume, "persistentvolume", claim.Spec.VolumeName))
		require.Equal(s, class, volume.Spec.StorageClassName, volume)
		require.Equal(s, claim.Spec.VolumeMode, volume.Spec.VolumeMode, volume)
		require.Equal(s, "Delete", volume.Spec.ReclaimPolicy, volume)
		require.NotEmpty(s, volume.Metadata.Annotations["pv.kubernetes.io/provisioned-by"], volume)
	}
}

// TestMixedBackup has three volumes in one backup: one for Blockmover by policy, one for the
// built-in mover, and one that is skipped.
func TestMixedBackup(t *testing.T) {
	s := newScenario(t)
	namespace := s.namespace("mixed")
	require.NoError(t, s.kit.Apply(s.ctx, disksManifest(s.kit, namespace, "backup", mixedVolumes)))
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	_, err = app.Exec(s.ctx, `for v in ours theirs skipped; do dd if=/dev/urandom of=/dev/$v bs=1M count=8 conv=notrunc 2>/dev/null; done; sync`)
	require.NoError(t, err)
	want := s.diskSums(app, mixedVolumes)

	backup := s.backup("mixed", append(s.policy(mixedPolicy), "--include-namespaces", namespace, "--snapshot-move-data")...)
	uploads, err := s.kit.DataUploads(s.ctx, backup)
	require.NoError(t, err)
	require.Len(t, uploads, 2)
	require.Equal(t, "blockmover", uploads["ours"].Spec.DataMover)
	require.Equal(t, "Full", uploads["ours"].Status.DataMoverResult["kind"])
	require.NotEqual(t, "blockmover", uploads["theirs"].Spec.DataMover)
	for pvc, upload := range uploads {
		require.Equal(t, "Completed", upload.Status.Phase, pvc)
	}
	described, err := s.kit.Describe(s.ctx, "backup", backup)
	require.NoError(t, err)
	require.Contains(t, described, "blockmover")

	target := s.namespace("mixed-copy")
	s.restore(backup, "--namespace-mappings", namespace+":"+target)
	restored, err := s.kit.AppIn(s.ctx, target)
	require.NoError(t, err)
	have := s.diskSums(restored, mixedVolumes)
	require.Equal(t, want["ours"], have["ours"])
	require.Equal(t, want["theirs"], have["theirs"])
	require.NotEqual(t, want["skipped"], have["skipped"], "a skipped volume comes back empty")
	require.NoError(t, s.kit.CheckStamps(s.ctx, target))

	require.NoError(t, s.kit.DeleteBackup(s.ctx, backup))
	s.checkRepoSnapshots(namespace, nil)
	s.checkNothingLeft()
}

var mixedVolumes = []string{"ours", "theirs", "skipped"}

const mixedPolicy = `version: v1
volumePolicies:
- conditions: {pvcLabels: {backup: ours}}
  action: {type: custom, parameters: {mover: blockmover}}
- conditions: {pvcLabels: {backup: skipped}}
  action: {type: skip}
- conditions: {pvcLabels: {backup: theirs}}
  action: {type: snapshot}
`

// disksManifest is an application with a small disk for each name. The PVC has the name as a
// label.
func disksManifest(k *kit.Kit, namespace, label string, names []string) string {
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", namespace)
	var mounts []kit.Mount
	for _, name := range names {
		manifest += fmt.Sprintf(`---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s, namespace: %[2]s, labels: {%[4]s: %[1]s}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: %[3]s
  volumeMode: Block
  resources: {requests: {storage: 16Mi}}
`, name, namespace, k.StorageClass, label)
		mounts = append(mounts, kit.Mount{Claim: name, Path: "/dev/" + name, Block: true})
	}
	return manifest + "---\n" + k.Deployment(namespace, mounts...)
}

// diskSums reads the disks of an application of disksManifest.
func (s *scenario) diskSums(app *kit.App, names []string) map[string]string {
	s.Helper()
	sums := map[string]string{}
	for _, name := range names {
		sum, err := app.Exec(s.ctx, "sha256sum < /dev/"+name)
		require.NoError(s, err)
		sums[name] = sum
	}
	return sums
}
