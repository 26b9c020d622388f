package scenarios

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// written are the volumes that the counter is written to, in this order, those of each driver
// in a row. Nobody writes to idle. The policy leaves out left, and leaves out unnamed by its
// name. All have one value of the group label.
var (
	written  = []string{"g1", "g2", "g3"}
	writtenA = []string{"a1", "a2"}
)

const (
	idle    = "g4"
	left    = "g5"
	unnamed = "g6"
)

// groupPolicy requires groups for the volumes of Blockmover.
const groupPolicy = `version: v1
volumePolicies:
- conditions: {pvcLabels: {take: "no"}}
  action: {type: skip}
- conditions: {csi: {}}
  action: {type: custom, parameters: {mover: blockmover, group: %s}}
namespacedFilterPolicies:
- namespaces: ["*"]
  resourceFilters: [{kinds: ["*"]}, {kinds: [persistentvolumeclaims], excludedNames: [` + unnamed + `]}]
`

// TestGroups backs up volumes while a writer writes an ascending counter to one after the
// other, without pause. The volumes of one label are on two drivers. So they are two groups,
// and each restored group shows one instant. Single snapshots of the same volumes do not. One
// driver needs the bases of deltas, so members of its groups are retained. The other does
// not.
func TestGroups(t *testing.T) {
	s := newScenario(t)
	d := s.driver()
	d.requireBase()
	g := newGroupsRun(s)
	args := append(s.policy(fmt.Sprintf(groupPolicy, "required")), "--include-namespaces", g.namespace)
	g.startWriter()

	// Two backups of the same volumes at the same time.
	first, second := s.name("groups-first"), s.name("groups-second")
	for _, name := range []string{first, second} {
		s.deleteBackupInTheEnd(name)
		_, err := s.kit.Velero(s.ctx, append([]string{"backup", "create", name}, args...)...)
		require.NoError(t, err)
	}
	for _, name := range []string{first, second} {
		require.NoError(t, s.kit.CompleteBackup(s.ctx, name))
		g.checkGrouped(name)
	}
	g.checkMembers(4)
	g.checkClean()

	// Between the groups one member grows and another one is replaced.
	parents, err := s.kit.DataUploads(s.ctx, second)
	require.NoError(t, err)
	_, err = s.kit.Kubectl(s.ctx, "-n", g.namespace, "patch", "pvc", "g2", "-p", `{"spec":{"resources":{"requests":{"storage":"24Mi"}}}}`)
	require.NoError(t, err)
	_, err = s.kit.Kubectl(s.ctx, "-n", g.namespace, "delete", "pvc", idle, "--timeout=30s")
	require.NoError(t, err)
	require.NoError(t, s.kit.Apply(s.ctx, groupClaim(g.namespace, idle, s.kit.StorageClass, "yes")))
	s.wait("g2 to have grown", func(ctx context.Context) (bool, string, error) {
		size, err := g.app.Exec(ctx, "blockdev --getsize64 /dev/g2")
		return strings.TrimSpace(size) == strconv.Itoa(24<<20), size, err
	})
	third := s.backup("groups-third", args...)
	uploads := g.checkGrouped(third)
	for _, name := range slices.Concat(written, writtenA) {
		result := uploads[name].Status.DataMoverResult
		require.Equal(t, "Incremental", result["kind"], "%s: %s", name, result["detail"])
		require.Equal(t, parents[name].Status.SnapshotID, result["parent"], name)
	}
	require.Equal(t, "Full VolumeReplaced", uploads[idle].Status.DataMoverResult["kind"]+" "+uploads[idle].Status.DataMoverResult["reason"])
	g.checkClean()
	// Of the groups of three backups, the storage keeps the newest: one snapshot of each
	// volume. It refuses to delete a member alone.
	g.waitStorage(d, len(written)+1)
	// Somebody deletes its content. The members know what it was.
	_, err = s.kit.Kubectl(s.ctx, "delete", "volumegroupsnapshotcontents", "--all", "--timeout=30s")
	require.NoError(t, err)

	// The same without groups: no PVC has the label. On a slow machine, all snapshots can be
	// taken between two writes, so this may need several backups.
	policyArgs := s.policy(fmt.Sprintf(groupPolicy, "preferred"))
	const tries = 3
	singlesDiffer := false
	backups := []string{second, third, first}
	for i := 0; i < tries && !singlesDiffer; i++ {
		singles := s.applyBackup(fmt.Sprintf("groups-singles-%d", i), g.namespace,
			fmt.Sprintf("volumeGroupSnapshotLabelKey: example.com/none, resourcePolicy: {kind: configmap, name: %s}", policyArgs[1]))
		backups = append(backups, singles)
		singlesDiffer = !ofOneInstant(g.restored(singles)[strings.Join(written, ",")])
	}
	require.True(t, singlesDiffer, "%d backups of single snapshots show one instant each: the test proves nothing", tries)
	g.stopWriter()

	// The backup has nothing of a group, so a cluster without the CRDs of groups can restore
	// it.
	described, err := s.kit.Describe(s.ctx, "backup", third)
	require.NoError(t, err)
	require.NotContains(t, described, "VolumeGroupSnapshot")
	restoreCRDs := g.deleteGroupCRDs()
	for _, name := range []string{first, third} {
		for volumes, counters := range g.restored(name) {
			require.True(t, ofOneInstant(counters), "backup %s: volumes %s show %v, which was never so", name, volumes, counters)
		}
	}
	restoreCRDs()
	s.checkNothingLeft()

	g.waitStorage(d, len(written)+1)
	for _, name := range backups {
		require.NoError(t, s.kit.DeleteBackup(s.ctx, name))
	}
	g.waitStorage(d, 0)
	s.checkNothingLeft()
}

// waitStorage waits until the storage has so many snapshots of the volumes of the group.
func (g *groupsRun) waitStorage(d *driverUnderTest, want int) {
	g.Helper()
	g.wait(fmt.Sprintf("%d snapshots in the storage", want), func(ctx context.Context) (bool, string, error) {
		var all []string
		for _, name := range append(slices.Clone(written), idle) {
			found, err := d.snapshots(ctx, g.namespace, name)
			if err != nil {
				return false, "", err
			}
			all = append(all, found...)
		}
		return len(all) == want, fmt.Sprint(all), nil
	})
}

// TestGroupFailures: whatever goes wrong, nothing of a group is left.
func TestGroupFailures(t *testing.T) {
	s := newScenario(t)
	g := newGroupsRun(s)
	d := s.driver()
	args := append(s.policy(fmt.Sprintf(groupPolicy, "required")), "--include-namespaces", g.namespace)

	// The storage takes no group.
	d.options(`{"requireBaseSnapshotForDelta": true, "groupSnapshotError": "INTERNAL: the pool is on fire"}`)
	name := s.name("groups-failing")
	s.deleteBackupInTheEnd(name)
	began := time.Now()
	backup, err := s.kit.Backup(s.ctx, name, append([]string{"--csi-snapshot-timeout", "12s"}, args...)...)
	require.NoError(t, err)
	require.Equal(t, "PartiallyFailed", backup.Status.Phase)
	require.Equal(t, 4, backup.Status.Errors, "one of each member of the group")
	t.Logf("the backup failed after %.1f s", time.Since(began).Seconds())
	described, err := s.kit.Describe(s.ctx, "backup", name)
	require.NoError(t, err)
	require.Contains(t, described, "the pool is on fire")
	require.Contains(t, described, "has failed for another member")
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(t, err)
	require.Len(t, uploads, len(writtenA), "the group of the other driver")
	d.options(`{"requireBaseSnapshotForDelta": true}`)
	require.NoError(g, g.kit.RestartMover(g.ctx)) // a new one sweeps at once
	g.checkClean()

	// Velero is killed between the stamps and the finalize phase.
	d.options(`{"requireBaseSnapshotForDelta": true, "snapshotDelay": "10s"}`)
	name = s.name("groups-killed")
	s.deleteBackupInTheEnd(name)
	_, err = s.kit.Velero(s.ctx, append([]string{"backup", "create", name}, args...)...)
	require.NoError(t, err)
	s.wait("stamps", func(ctx context.Context) (bool, string, error) {
		stamped, err := s.kit.List(ctx, "-n", g.namespace, "pvc", "-l", "blockmover.io/grouped")
		return len(stamped) > 0, "", err
	})
	_, err = s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "delete", "pod", "-l", "deploy=velero", "--grace-period=0", "--force")
	require.NoError(t, err)
	_, err = s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "rollout", "status", "deployment/velero", "--timeout=120s")
	require.NoError(t, err)
	s.wait("backup to be given up", func(ctx context.Context) (bool, string, error) {
		var o kit.Object
		err := s.kit.Get(ctx, &o, "-n", s.kit.VeleroNamespace, "backup.velero.io", name)
		return o.Status.Phase == "Failed", o.Status.Phase, err
	})
	// A starting Velero cancels the uploads of backups that it gives up.
	s.wait("uploads to end", func(ctx context.Context) (bool, string, error) {
		uploads, err := s.kit.DataUploads(ctx, name)
		for _, upload := range uploads {
			if !slices.Contains([]string{"Completed", "Canceled", "Failed"}, upload.Status.Phase) {
				return false, upload.Status.Phase, err
			}
		}
		return true, "", err
	})
	g.checkClean()
}

// groupsRun is the application with the volumes.
type groupsRun struct {
	*scenario
	namespace string
	app       *kit.App
	// logs are the logs of the drivers, with what was in them before.
	logs map[string]int
}

func newGroupsRun(s *scenario) *groupsRun {
	s.Helper()
	if os.Getenv("BLOCKMOVER_CSI_STATE") == "" {
		s.Skip("BLOCKMOVER_CSI_STATE is not set: this is not the harness's cluster")
	}
	g := &groupsRun{scenario: s, namespace: s.namespace("groups"), logs: map[string]int{}}
	for _, driver := range g.drivers() {
		g.logs[driver] = len(g.log(driver))
	}
	require.NoError(s, s.kit.Apply(s.ctx, groupsManifest(s.kit, g.namespace)))
	var err error
	g.app, err = s.kit.AppIn(s.ctx, g.namespace)
	require.NoError(s, err)
	return g
}

func (g *groupsRun) drivers() []string {
	return []string{os.Getenv("BLOCKMOVER_DRIVER_BLOCK"), os.Getenv("BLOCKMOVER_DRIVER_ALT")}
}

func groupClaim(namespace, name, class, take string) string {
	return "---\n" + kit.PVC(namespace, name, class, "Block", 16<<20, "velero.io/volume-group: db", fmt.Sprintf("take: %q", take)) + "\n"
}

func groupsManifest(k *kit.Kit, namespace string) string {
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", namespace)
	var mounts []kit.Mount
	for _, name := range slices.Concat(written, writtenA) {
		class := k.StorageClass
		if slices.Contains(writtenA, name) {
			class = k.OtherStorageClass
		}
		manifest += groupClaim(namespace, name, class, "yes")
		mounts = append(mounts, kit.Mount{Claim: name, Path: "/dev/" + name, Block: true})
	}
	manifest += groupClaim(namespace, idle, k.StorageClass, "yes") + groupClaim(namespace, left, k.StorageClass, "no") + groupClaim(namespace, unnamed, k.StorageClass, "yes")
	return manifest + "---\n" + k.Deployment(namespace, mounts...)
}

const stopFile = "/dev/stop-writing"

// startWriter writes the counter. Each write starts when the one before has reached the
// device.
func (g *groupsRun) startWriter() {
	g.Helper()
	_, err := g.app.Exec(g.ctx, fmt.Sprintf(`rm -f %s
(i=1; while [ ! -e %[1]s ]; do
  for v in %s; do printf '%%0512d' $i | dd of=/dev/$v bs=512 count=1 conv=notrunc,fsync 2>/dev/null; done
  i=$((i+1))
done) >/dev/null 2>&1 </dev/null &`, stopFile, strings.Join(slices.Concat(written, writtenA), " ")))
	require.NoError(g, err)
}

func (g *groupsRun) stopWriter() {
	g.Helper()
	_, err := g.app.Exec(g.ctx, "touch "+stopFile)
	require.NoError(g, err)
	counters := g.counters(g.app)
	g.Logf("the writer came to %v", counters)
	require.Greater(g, counters[strings.Join(written, ",")][0], 100, "a slow writer proves nothing")
}

// counters reads the counters from the volumes, for each driver.
func (g *groupsRun) counters(app *kit.App) map[string][]int {
	g.Helper()
	counters := map[string][]int{}
	for _, volumes := range [][]string{written, writtenA} {
		for _, name := range volumes {
			text, err := app.Exec(g.ctx, "dd if=/dev/"+name+" bs=512 count=1 2>/dev/null")
			require.NoError(g, err)
			counter, err := strconv.Atoi(strings.TrimLeft(text, "0"))
			require.NoError(g, err, "counter of %s", name)
			key := strings.Join(volumes, ",")
			counters[key] = append(counters[key], counter)
		}
	}
	return counters
}

// ofOneInstant reports whether counters that are written in turn can have been so at one
// instant: none is ahead of the one before it, and the first is ahead of the last by one at
// most.
func ofOneInstant(counters []int) bool {
	return slices.IsSortedFunc(counters, func(a, b int) int { return b - a }) && counters[0] <= counters[len(counters)-1]+1
}

// restored restores a backup into a namespace of its own and reads the counters.
func (g *groupsRun) restored(backup string) map[string][]int {
	g.Helper()
	target := g.scenario.namespace("copy-of-" + backup)
	g.restore(backup, "--namespace-mappings", g.namespace+":"+target)
	app, err := g.kit.AppIn(g.ctx, target)
	require.NoError(g, err)
	counters := g.counters(app)
	g.Logf("backup %s shows %v", backup, counters)
	require.NoError(g, g.kit.CheckStamps(g.ctx, target))
	return counters
}

// checkGrouped checks that a backup has one DataUpload for each member, of two groups by
// driver, and none of the volumes that the policy leaves out.
func (g *groupsRun) checkGrouped(backup string) map[string]kit.Object {
	g.Helper()
	uploads, err := g.kit.DataUploads(g.ctx, backup)
	require.NoError(g, err)
	require.Len(g, uploads, len(written)+len(writtenA)+1, kit.Names(uploads))
	groups := map[string][]string{}
	for _, name := range slices.Sorted(slices.Values(slices.Concat(written, writtenA, []string{idle}))) {
		require.Equal(g, "Completed", uploads[name].Status.Phase, uploads[name].Status.Message)
		group := uploads[name].Status.DataMoverResult["group"]
		require.True(g, strings.HasPrefix(group, "blockmover-group-"), "%s: group %q", name, group)
		groups[group] = append(groups[group], name)
	}
	require.Len(g, groups, 2, groups)
	for _, names := range groups {
		require.Contains(g, [][]string{append(slices.Clone(written), idle), writtenA}, names)
	}
	return uploads
}

// checkMembers checks how many groups the drivers took, and of which volumes.
func (g *groupsRun) checkMembers(want int) {
	g.Helper()
	handles := map[string]string{}
	for _, name := range slices.Concat(written, writtenA, []string{idle}) {
		handles[g.handle(name)] = name
	}
	count := 0
	for _, driver := range g.drivers() {
		for _, members := range g.log(driver)[g.logs[driver]:] {
			var names []string
			for _, handle := range members {
				names = append(names, handles[handle])
			}
			slices.Sort(names)
			require.Contains(g, [][]string{append(slices.Clone(written), idle), writtenA}, names, "members of a group of driver %s", driver)
			count++
		}
	}
	require.Equal(g, want, count, "groups")
}

func (g *groupsRun) handle(pvc string) string {
	g.Helper()
	var claim, volume kit.Object
	require.NoError(g, g.kit.Get(g.ctx, &claim, "-n", g.namespace, "pvc", pvc))
	require.NoError(g, g.kit.Get(g.ctx, &volume, "pv", claim.Spec.VolumeName))
	return volume.Spec.CSI.VolumeHandle
}

// log returns the members of each group that a driver has taken.
func (g *groupsRun) log(driver string) [][]string {
	g.Helper()
	file, err := os.Open(filepath.Join(os.Getenv("BLOCKMOVER_CSI_STATE"), driver, "groups.log"))
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(g, err)
	defer func() { _ = file.Close() }()
	var groups [][]string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var group struct{ VolumeIDs []string }
		require.NoError(g, json.Unmarshal(lines.Bytes(), &group))
		groups = append(groups, group.VolumeIDs)
	}
	return groups
}

// checkClean checks that nothing of a group is left, and that the PVCs have the labels that
// they had before.
func (g *groupsRun) checkClean() {
	g.Helper()
	g.wait("stamps to be gone", func(ctx context.Context) (bool, string, error) {
		err := g.kit.CheckStamps(ctx, g.namespace)
		return err == nil, fmt.Sprint(err), nil
	})
	g.checkNothingLeft()
	var claim kit.Object
	require.NoError(g, g.kit.Get(g.ctx, &claim, "-n", g.namespace, "pvc", written[0]))
	require.Equal(g, map[string]string{"velero.io/volume-group": "db", "take": "yes"}, claim.Metadata.Labels)
}

// deleteGroupCRDs deletes the CRDs of groups until the returned function is called or the
// test ends.
func (g *groupsRun) deleteGroupCRDs() (bring func()) {
	g.Helper()
	kinds := []string{"volumegroupsnapshots", "volumegroupsnapshotcontents", "volumegroupsnapshotclasses"}
	saved := ""
	for _, kind := range kinds {
		text, err := g.kit.Kubectl(g.ctx, "get", "crd", kind+".groupsnapshot.storage.k8s.io", "-o", "json")
		require.NoError(g, err)
		saved += bare(g.T, text) + "\n---\n"
	}
	classes, err := g.kit.Kubectl(g.ctx, "get", kinds[2], "-o", "json")
	require.NoError(g, err)
	for _, kind := range kinds {
		_, err := g.kit.Kubectl(g.ctx, "delete", "crd", kind+".groupsnapshot.storage.k8s.io", "--timeout=60s")
		require.NoError(g, err)
	}
	done := false
	bring = func() {
		if done {
			return
		}
		done = true
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := g.kit.Run(ctx, saved, "kubectl", "create", "-f", "-")
		require.NoError(g, err)
		require.NoError(g, g.kit.Wait(ctx, "group classes", time.Minute, func(ctx context.Context) (bool, string, error) {
			_, err := g.kit.Run(ctx, bare(g.T, classes), "kubectl", "apply", "-f", "-")
			return err == nil, fmt.Sprint(err), nil
		}))
	}
	g.Cleanup(bring)
	return bring
}

// bare returns an object, or a list of objects, without the fields of the API server.
func bare(t *testing.T, text string) string {
	t.Helper()
	var object map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &object))
	strip := func(o map[string]any) {
		metadata, _ := o["metadata"].(map[string]any)
		for _, key := range []string{"resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"} {
			delete(metadata, key)
		}
		delete(o, "status")
	}
	strip(object)
	if items, ok := object["items"].([]any); ok {
		for _, item := range items {
			o, _ := item.(map[string]any)
			strip(o)
		}
	}
	out, err := json.Marshal(object)
	require.NoError(t, err)
	return string(out)
}
