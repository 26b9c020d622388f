package scenarios

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/blockmover/blockmover/e2e/kit"
)

// retainedVolumes are named after their retention.
var retainedVolumes = []string{"auto", "always", "never"}

// retainedPolicy selects by the label of the PVC.
func retainedPolicy() string {
	policy := "version: v1\nvolumePolicies:\n"
	for _, rule := range retainedVolumes {
		policy += fmt.Sprintf("- conditions: {pvcLabels: {retain: %s}}\n  action: {type: custom, parameters: {mover: blockmover, retainSnapshot: %[1]s}}\n", rule)
	}
	return policy
}

const (
	// envRetainedBackups is how many backups TestRetainedSnapshots makes. envRetainedSeed
	// decides which of them it deletes when.
	envRetainedBackups = "BLOCKMOVER_RETAINED_BACKUPS"
	envRetainedSeed    = "BLOCKMOVER_RETAINED_SEED"

	defaultRetainedBackups = 6
	// With this seed, 20 backups are up to seven at a time, and sometimes none.
	defaultRetainedSeed = 2
	// plannedBackups are those that are not random.
	plannedBackups = 4
)

// TestRetainedSnapshots makes and deletes backups of three volumes with three retentions,
// with a driver that needs the base of a delta. After each it asks the driver for its
// snapshots: one of the volume with auto, one for each backup with always, none with never,
// and none in the end.
//
// The first backups are deleted by plan. Then more are made and deleted in any order.
func TestRetainedSnapshots(t *testing.T) {
	backups, seed := fromEnv(t, envRetainedBackups, defaultRetainedBackups), fromEnv(t, envRetainedSeed, defaultRetainedSeed)
	require.GreaterOrEqual(t, backups, plannedBackups, envRetainedBackups)
	s := newScenario(t)
	d := s.driver()
	d.requireBase()
	namespace := s.namespace("retained")
	require.NoError(t, s.kit.Apply(s.ctx, disksManifest(s.kit, namespace, "retain", retainedVolumes)))
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	args := append(s.policy(retainedPolicy()), "--include-namespaces", namespace)
	r := &retainedRun{scenario: s, driver: d, app: app, namespace: namespace, args: args}

	r.write(0)
	first := r.backup("first")
	r.expect(first, kinds{"auto": "Full NoParent", "always": "Full NoParent", "never": "Full NoParent"})
	r.count(1, 1)
	r.write(1)
	second := r.backup("second")
	r.expect(second, kinds{"auto": "Incremental ", "always": "Incremental ", "never": "Full DeltaFailed"})
	r.count(1, 2)

	// Deleting an older backup does not change the newest: not its base, and, as the restore
	// in the end shows, not its data (oadp-operator#2255).
	require.NoError(t, s.kit.DeleteBackup(s.ctx, first))
	r.count(1, 1)
	r.write(2)
	third := r.backup("third")
	r.expect(third, kinds{"auto": "Incremental ", "always": "Incremental ", "never": "Full DeltaFailed"})
	r.count(1, 2)

	// A base goes with its backup. The image before it has none.
	require.NoError(t, s.kit.DeleteBackup(s.ctx, third))
	r.count(0, 1)
	r.write(3)
	fourth := r.backup("fourth")
	r.expect(fourth, kinds{"auto": "Full DeltaFailed", "always": "Incremental ", "never": "Full DeltaFailed"})
	r.count(1, 2)

	r.exhaust(map[string]int{"auto": 1, "always": 2})
	r.losePair(second, "always")
	require.NoError(t, s.kit.DeleteBackup(s.ctx, second))
	r.count(1, 1)
	s.checkNothingLeft()

	r.live, r.base = []string{fourth}, fourth
	t.Logf("%d more backups, %s=%d", backups-plannedBackups, envRetainedSeed, seed)
	r.rounds(backups-plannedBackups, rand.New(rand.NewPCG(uint64(seed), 0))) //nolint:gosec // chance that can be repeated
	r.checkForgotten()
}

// TestGroupMember moves a member of each of two groups that somebody else has made, as
// Velero's own action does. Members have no class, and their contents name the group. They
// are exposed, and the driver reports their blocks, the second time the changed ones. Their
// storage snapshots are deleted, although the sidecar does not delete members of a group.
func TestGroupMember(t *testing.T) {
	s := newScenario(t)
	d := s.driver()
	namespace := s.namespace("member")
	d.options(`{"requireBaseSnapshotForDelta": false, "refuseMemberDelete": false}`) // the group is not ours to delete
	require.NoError(t, s.kit.Apply(s.ctx, disksManifest(s.kit, namespace, "group", []string{"disk"})))
	_, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	first := s.moveGroupMember(d, namespace, "first")
	require.Equal(t, "NoParent", first.Status.DataMoverResult["reason"])
	require.NotContains(t, first.Status.DataMoverResult["detail"], "AllocatedFailed")
	second := s.moveGroupMember(d, namespace, "second")
	require.Equal(t, "Incremental", second.Status.DataMoverResult["kind"], second.Status.DataMoverResult["detail"])
	require.Equal(t, first.Status.SnapshotID, second.Status.DataMoverResult["parent"])
	s.wait("storage snapshots to be deleted", func(ctx context.Context) (bool, string, error) {
		left, err := d.snapshots(ctx, namespace, "disk")
		return len(left) == 0, fmt.Sprint(left), err
	})
	s.checkNothingLeft()
}

// moveGroupMember makes a group of the disk in a namespace, moves its only member, and
// deletes the group as soon as the mover has re-homed the member.
func (s *scenario) moveGroupMember(d *driverUnderTest, namespace, base string) kit.Object {
	s.Helper()
	require.NoError(s, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: %s, namespace: %s}
spec:
  volumeGroupSnapshotClassName: %s
  source: {selector: {matchLabels: {group: disk}}}
`, base, namespace, s.kit.StorageClass)))
	var members, contents []kit.Object
	var err error
	s.wait("members of the group", func(ctx context.Context) (bool, string, error) {
		if members, err = s.kit.List(ctx, "-n", namespace, "volumesnapshots"); err != nil {
			return false, "", err
		}
		contents, err = s.kit.List(ctx, "volumegroupsnapshotcontents")
		return len(members) == 1 && len(contents) == 1, fmt.Sprint(members, contents), err
	})

	name := s.name("member-" + base)
	s.createUpload(d, name, namespace, "disk", members[0].Metadata.Name)
	// The group is deleted once the mover has its member. It leaves the storage snapshot to
	// it.
	s.wait("re-homed VolumeSnapshot", func(ctx context.Context) (bool, string, error) {
		pairs, err := s.kit.List(ctx, "-n", s.kit.VeleroNamespace, "volumesnapshots")
		return len(pairs) == 1, fmt.Sprint(pairs), err
	})
	_, err = s.kit.Kubectl(s.ctx, "patch", "volumegroupsnapshotcontent", contents[0].Metadata.Name, "--type=merge", "-p", `{"spec":{"deletionPolicy":"Retain"}}`)
	require.NoError(s, err)
	_, err = s.kit.Kubectl(s.ctx, "-n", namespace, "delete", "volumegroupsnapshot", base, "--timeout=60s")
	require.NoError(s, err)
	_, err = s.kit.Kubectl(s.ctx, "delete", "volumegroupsnapshotcontent", contents[0].Metadata.Name, "--timeout=60s")
	require.NoError(s, err)

	upload := s.waitUpload(name)
	s.wait("origin to be gone", func(ctx context.Context) (bool, string, error) {
		left, err := s.kit.List(ctx, "-n", namespace, "volumesnapshots")
		return len(left) == 0, fmt.Sprint(left), err
	})
	return upload
}

// createUpload makes a DataUpload of a VolumeSnapshot without a backup. It labels the
// VolumeSnapshot as Velero labels its own: the manager may delete no others. more has further
// fields of the spec, one line each.
func (s *scenario) createUpload(d *driverUnderTest, name, namespace, pvc, volumeSnapshot string, more ...string) {
	s.Helper()
	_, err := s.kit.Kubectl(s.ctx, "-n", namespace, "label", "volumesnapshot", volumeSnapshot, kit.LabelBackup+"="+name)
	require.NoError(s, err)
	require.NoError(s, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: velero.io/v2alpha1
kind: DataUpload
metadata: {name: %s, namespace: %s}
spec:
  snapshotType: CSI
  csiSnapshot: {volumeSnapshot: %s, storageClass: %s, driver: %s}
  sourcePVC: %s
  sourceNamespace: %s
  datamover: blockmover
  backupStorageLocation: default
  operationTimeout: 2m
  %s
`, name, s.kit.VeleroNamespace, volumeSnapshot, s.kit.StorageClass, d.name, pvc, namespace, strings.Join(more, "\n  "))))
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "delete", "datauploads.velero.io", name)
		require.NoError(s, err)
	})
}

// waitUpload waits for a DataUpload, and fails unless it is Completed.
func (s *scenario) waitUpload(name string) kit.Object {
	s.Helper()
	var upload kit.Object
	s.wait("DataUpload to end", func(ctx context.Context) (bool, string, error) {
		err := s.kit.Get(ctx, &upload, "-n", s.kit.VeleroNamespace, "datauploads.velero.io", name)
		return upload.Status.Phase == "Completed" || upload.Status.Phase == "Failed", upload.Status.Phase + ": " + upload.Status.Message, err
	})
	require.Equal(s, "Completed", upload.Status.Phase, upload.Status.Message)
	return upload
}

// wait waits for something that takes seconds.
func (s *scenario) wait(what string, check func(context.Context) (bool, string, error)) {
	s.Helper()
	require.NoError(s, s.kit.Wait(s.ctx, what, 90*time.Second, check))
}

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	number, err := strconv.Atoi(text)
	require.NoError(t, err, name)
	return number
}

// retainedRun is the application whose snapshots are counted.
type retainedRun struct {
	*scenario
	driver    *driverUnderTest
	app       *kit.App
	namespace string
	args      []string
	// live are the backups that exist. base is the one whose snapshot is kept by auto, or "".
	live []string
	base string
}

// rounds makes some backups. After one of three it deletes some of those that exist, or all.
// In the end it restores the newest, and deletes all.
func (r *retainedRun) rounds(n int, rnd *rand.Rand) {
	r.Helper()
	for i := range n {
		r.write((plannedBackups + i) % 8)
		r.backupRound(fmt.Sprintf("round-%d", i+1))
		if i == n-1 || rnd.IntN(3) > 0 {
			continue
		}
		for range rnd.IntN(len(r.live)) + 1 {
			r.deleteAny(rnd)
		}
	}
	want := r.diskSums(r.app, retainedVolumes)
	target := r.scenario.namespace("retained-copy")
	r.restore(r.live[len(r.live)-1], "--namespace-mappings", r.namespace+":"+target)
	restored, err := r.kit.AppIn(r.ctx, target)
	require.NoError(r, err)
	require.Equal(r, want, r.diskSums(restored, retainedVolumes))
	for len(r.live) > 0 {
		r.deleteAny(rnd)
	}
}

// backupRound makes a backup, which becomes the base of the volume with auto.
func (r *retainedRun) backupRound(base string) {
	r.Helper()
	want := kinds{"auto": "Full NoParent", "always": "Full NoParent", "never": "Full NoParent"}
	if len(r.live) > 0 {
		want = kinds{"auto": "Full DeltaFailed", "always": "Incremental ", "never": "Full DeltaFailed"}
	}
	if r.base != "" {
		want["auto"] = "Incremental "
	}
	name := r.backup(base)
	r.expect(name, want)
	r.live, r.base = append(r.live, name), name
	r.countLive()
}

func (r *retainedRun) deleteAny(rnd *rand.Rand) {
	r.Helper()
	i := rnd.IntN(len(r.live))
	name := r.live[i]
	require.NoError(r, r.kit.DeleteBackup(r.ctx, name))
	r.live = slices.Delete(r.live, i, i+1)
	if name == r.base {
		r.base = ""
	}
	r.Logf("deleted backup %s, which was number %d of %d", name, i+1, len(r.live)+1)
	r.countLive()
}

func (r *retainedRun) countLive() {
	r.Helper()
	auto := 0
	if r.base != "" {
		auto = 1
	}
	r.count(auto, len(r.live))
	r.checkNothingLeft()
}

// checkForgotten checks that no object in Velero's namespace is about the volumes, now that
// all backups are deleted.
func (r *retainedRun) checkForgotten() {
	r.Helper()
	r.wait("operations to be gone", func(ctx context.Context) (bool, string, error) {
		left, err := r.kit.Kubectl(ctx, "-n", r.kit.VeleroNamespace, "get", "datauploads.velero.io,datadownloads.velero.io",
			"-o", fmt.Sprintf("jsonpath={.items[?(@.spec.sourceNamespace==%q)].metadata.name}", r.namespace))
		return left == "", left, err
	})
}

func (r *retainedRun) backup(base string) string {
	return r.scenario.backup("retained-"+base, r.args...)
}

// write changes one place of each volume, each time another one.
func (r *retainedRun) write(place int) {
	r.Helper()
	for _, name := range retainedVolumes {
		_, err := r.app.Exec(r.ctx, fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=1M seek=%d count=1 conv=notrunc 2>/dev/null; sync", name, 2*place))
		require.NoError(r, err)
	}
}

// kinds has "kind reason" for each volume.
type kinds map[string]string

// expect checks the kinds and reasons of a backup.
func (r *retainedRun) expect(backup string, want kinds) {
	r.Helper()
	uploads, err := r.kit.DataUploads(r.ctx, backup)
	require.NoError(r, err)
	for _, name := range retainedVolumes {
		result := uploads[name].Status.DataMoverResult
		require.Equal(r, want[name], result["kind"]+" "+result["reason"], "%s: %s", name, result["detail"])
	}
}

// count waits until the driver has that many snapshots of the volumes, and Kubernetes has an
// object for each.
func (r *retainedRun) count(auto, always int) {
	r.Helper()
	want := fmt.Sprintf("auto %d, always %d, never 0, VolumeSnapshots %d", auto, always, auto+always)
	require.NoError(r, r.kit.Wait(r.ctx, "snapshots: "+want, time.Minute, func(ctx context.Context) (bool, string, error) {
		have := ""
		for _, name := range retainedVolumes {
			snapshots, err := r.driver.snapshots(ctx, r.namespace, name)
			if err != nil {
				return false, "", err
			}
			have += fmt.Sprintf("%s %d, ", name, len(snapshots))
		}
		pairs, err := r.kit.List(ctx, "-n", r.kit.VeleroNamespace, "volumesnapshots", "-l", "blockmover.io/retained,blockmover.io/volume-namespace="+r.namespace)
		have += fmt.Sprintf("VolumeSnapshots %d", len(pairs))
		return have == want, have, err
	}))
	r.Logf("there are: %s", want)
}

// exhaust lets the storage take only one snapshot of a volume. The error of the backup must
// say which volumes, and what to do.
func (r *retainedRun) exhaust(retained map[string]int) {
	r.Helper()
	r.driver.options(`{"requireBaseSnapshotForDelta": true, "maxSnapshotsPerVolume": 1}`)
	name := r.name("retained-exhausted")
	r.deleteBackupInTheEnd(name)
	backup, err := r.kit.Backup(r.ctx, name, append([]string{"--csi-snapshot-timeout", "10s"}, r.args...)...)
	require.NoError(r, err)
	require.Equal(r, "PartiallyFailed", backup.Status.Phase)
	described, err := r.kit.Describe(r.ctx, "backup", name)
	require.NoError(r, err)
	require.Contains(r, described, "ResourceExhausted")
	require.Contains(r, described, "raise the limit of the storage, or delete backups, or set retainSnapshot to auto or never")
	for volume, n := range retained {
		require.Contains(r, described, fmt.Sprintf("blockmover retains %d snapshots of volume %s/%s", n, r.namespace, volume))
	}
	uploads, err := r.kit.DataUploads(r.ctx, name)
	require.NoError(r, err)
	require.Len(r, uploads, 1, "that of the volume that retains none")
	// The snapshotter's sidecar gives up a snapshot only when it gets another answer than
	// this. It asks again when the object changes, which otherwise takes up to 5 minutes.
	r.driver.options(`{"requireBaseSnapshotForDelta": true}`)
	_, err = r.kit.Kubectl(r.ctx, "annotate", "volumesnapshotcontents", "--all", "e2e.blockmover.io/try=again")
	require.NoError(r, err)
	r.checkNothingLeft()
	require.NoError(r, r.kit.DeleteBackup(r.ctx, name))
}

// losePair deletes the VolumeSnapshot of a backup and leaves the snapshot in the storage, as
// somebody may do who cleans up by hand.
func (r *retainedRun) losePair(backup, name string) {
	r.Helper()
	pairs, err := r.kit.List(r.ctx, "-n", r.kit.VeleroNamespace, "volumesnapshots", "-l", "blockmover.io/backup="+backup+",blockmover.io/volume="+name)
	require.NoError(r, err)
	require.Len(r, pairs, 1)
	pair := pairs[0].Metadata.Name
	_, err = r.kit.Kubectl(r.ctx, "patch", "volumesnapshotcontent", pair, "--type=merge", "-p", `{"spec":{"deletionPolicy":"Retain"}}`)
	require.NoError(r, err)
	_, err = r.kit.Kubectl(r.ctx, "-n", r.kit.VeleroNamespace, "delete", "volumesnapshot", pair, "--timeout=30s")
	require.NoError(r, err)
	_, err = r.kit.Kubectl(r.ctx, "delete", "volumesnapshotcontent", pair, "--timeout=30s")
	require.NoError(r, err)
}

// driverUnderTest is the harness's CSI driver behind the StorageClass.
type driverUnderTest struct {
	*scenario
	name string
	// file is its options.json.
	file string
	api  csi.ControllerClient
}

// harness returns the directory of the harness's CSI drivers. On another cluster, the test is
// skipped.
func (s *scenario) harness() string {
	s.Helper()
	state := os.Getenv("BLOCKMOVER_CSI_STATE")
	if state == "" {
		s.Skip("BLOCKMOVER_CSI_STATE is not set: this is not the harness's cluster")
	}
	return state
}

// driver is for tests that change the behaviour of the harness's driver. On another cluster
// they are skipped.
func (s *scenario) driver() *driverUnderTest {
	s.Helper()
	state := s.harness()
	d := &driverUnderTest{scenario: s, name: os.Getenv("BLOCKMOVER_DRIVER_BLOCK")}
	d.file = filepath.Join(state, d.name, "options.json")
	before, err := os.ReadFile(d.file)
	require.NoError(s, err)
	s.Cleanup(func() { d.options(string(before)) })
	socket := filepath.Join(os.Getenv("BLOCKMOVER_KUBELET_ROOT"), "plugins", d.name, "csi.sock")
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(s, err)
	s.Cleanup(func() { _ = connection.Close() })
	d.api = csi.NewControllerClient(connection)
	return d
}

// options replaces the whole file. The driver reads it at each call.
func (d *driverUnderTest) options(text string) {
	require.NoError(d, os.WriteFile(d.file+".new", []byte(text), 0o600))
	require.NoError(d, os.Rename(d.file+".new", d.file))
}

// requireBase makes the driver need the base of a delta, and say so.
func (d *driverUnderTest) requireBase() {
	d.Helper()
	d.options(`{"requireBaseSnapshotForDelta": true}`)
	d.declareBase(d.ctx, "null") // absent means that it is required
	d.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		d.declareBase(ctx, "false")
	})
}

func (d *driverUnderTest) declareBase(ctx context.Context, value string) {
	_, err := d.kit.Kubectl(ctx, "patch", "snapshotmetadataservice", d.name, "--type=merge", "-p", `{"spec":{"requireBaseSnapshotForDelta":`+value+`}}`)
	require.NoError(d, err)
}

// snapshots are the snapshots that the storage has of the volume of a PVC.
func (d *driverUnderTest) snapshots(ctx context.Context, namespace, pvc string) ([]string, error) {
	var claim, volume kit.Object
	if err := d.kit.Get(ctx, &claim, "-n", namespace, "persistentvolumeclaim", pvc); err != nil {
		return nil, err
	}
	if err := d.kit.Get(ctx, &volume, "persistentvolume", claim.Spec.VolumeName); err != nil {
		return nil, err
	}
	list, err := d.api.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SourceVolumeId: volume.Spec.CSI.VolumeHandle})
	if err != nil {
		return nil, fmt.Errorf("list snapshots of driver %s: %w", d.name, err)
	}
	var handles []string
	for _, entry := range list.GetEntries() {
		handles = append(handles, entry.GetSnapshot().GetSnapshotId())
	}
	return handles, nil
}
