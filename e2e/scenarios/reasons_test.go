package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// The volumes of TestReasons. The first four are disks of one application, the
// others have no pod.
const (
	audited   = "audited"   // all that is called unchanged is compared
	trusting  = "trusting"  // nothing is
	due       = "due"       // a full image is due each time
	resized   = "resized"   // grows and shrinks
	replaced  = "replaced"  // is deleted and made again
	untracked = "untracked" // is of a driver without a SnapshotMetadataService
)

var reasonDisks = []string{audited, trusting, due, resized}

const reasonsPolicy = `version: v1
volumePolicies:
- conditions: {pvcLabels: {disk: audited}}
  action: {type: custom, parameters: {mover: blockmover, audit: 100%}}
- conditions: {pvcLabels: {disk: trusting}}
  action: {type: custom, parameters: {mover: blockmover, audit: 0}}
- conditions: {pvcLabels: {disk: due}}
  action: {type: custom, parameters: {mover: blockmover, fullEvery: 1s}}
- conditions: {csi: {}}
  action: {type: custom, parameters: {mover: blockmover}}
`

// TestReasons makes backups while the storage misbehaves, and looks for the reason of each
// image in the four places. In the end every restored byte is right, except for the volume
// whose policy has no audit.
//
// TestRepositoryReasons has the reasons that lie in the repository, and TestBackupType has
// ForcedFull.
func TestReasons(t *testing.T) {
	s := newScenario(t)
	r := newReasonsRun(s, reasonDisks, reasonsPolicy)
	s.hideMetadataService(os.Getenv("BLOCKMOVER_DRIVER_ALT"))
	require.NoError(t, s.kit.Apply(s.ctx, kit.PVC(r.app.Namespace, replaced, s.kit.StorageClass, "Block", 1<<20)+"\n---\n"+
		kit.PVC(r.app.Namespace, untracked, s.kit.OtherStorageClass, "Block", 1<<20)))
	for _, name := range []string{replaced, untracked} {
		r.volumeOf(name)
	}
	r.fill(reasonDisks)

	first := r.backup("first", nil, "")
	for _, name := range append(slices.Clone(reasonDisks), replaced) {
		r.expect(first, name, "Full", "NoParent")
	}
	r.expect(first, untracked, "Full", "NoParent", "CBTUnavailable")

	// The storage forgets the first of two places that changed.
	for _, name := range []string{audited, trusting, due} {
		r.write(name, 1<<20, 64<<10)
		r.write(name, 9<<20, 64<<10)
	}
	r.replace()
	second := r.backup("second", options{"omitChangedBlocks": 1}, "")
	upload := r.expect(second, audited, "Full", "AuditFailed")
	require.Contains(t, upload.Status.DataMoverResult["detail"], fmt.Sprintf("chunk at offset %d unchanged", 1<<20))
	require.Positive(t, number(t, upload.Status.DataMoverResult, "bytesAudited"))
	warned, err := s.kit.WarnedOf(s.ctx, upload, "AuditFailed")
	require.NoError(t, err)
	require.True(t, warned, "AuditFailed is a Warning")
	r.expect(second, trusting, "Incremental")
	r.expect(second, due, "Full", "FullDue")
	upload = r.expect(second, resized, "Incremental")
	require.EqualValues(t, 16, number(t, upload.Status.DataMoverResult, "chunksAudited"), "1% is at least 16 chunks")
	r.expect(second, replaced, "Full", "VolumeReplaced")
	r.expect(second, untracked, "Full", "CBTUnavailable")
	want := s.diskSums(r.app, reasonDisks)
	have := r.restored(second, reasonDisks)
	require.NotEqual(t, want[trusting], have[trusting], "without an audit, nobody notices: this is the damage that it prevents")
	delete(want, trusting)
	delete(have, trusting)
	require.Equal(t, want, have)

	third := r.backup("third", options{"refuseDelta": true, "refuseAllocated": true}, "disk="+audited)
	r.expect(third, audited, "Full", "DeltaFailed", "AllocatedFailed")

	// 4096 changed blocks in messages of 1024.
	r.write(audited, 4<<20, 2<<20)
	r.grow(resized, 20<<20+4096)
	r.write(resized, 20<<20, 4096)
	fourth := r.backup("fourth", options{"blockSize": 512, "breakStreamAfterMessages": 1}, "disk in ("+audited+","+resized+")")
	upload = r.expect(fourth, audited, "Incremental")
	require.EqualValues(t, 3, number(t, upload.Status.DataMoverResult, "resumptions"))
	upload = r.expect(fourth, resized, "Incremental")
	require.EqualValues(t, 20<<20+4096, number(t, upload.Status.DataMoverResult, "volumeSize"))

	r.write(audited, 8<<20, 4<<20)
	const shrunk = 12<<20 + 512
	fifth := r.backup("fifth", options{
		"blockSize": 512, "breakStreamAfterMessages": 3, "shrinkTo": map[string]int64{r.volumeOf(resized).Spec.CSI.VolumeHandle: shrunk},
	}, "")
	upload = r.expect(fifth, audited, "Incremental")
	require.EqualValues(t, 2, number(t, upload.Status.DataMoverResult, "resumptions"))
	upload = r.expect(fifth, resized, "Incremental")
	require.EqualValues(t, shrunk, number(t, upload.Status.DataMoverResult, "volumeSize"))
	want = s.diskSums(r.app, []string{audited, due})
	want[resized] = r.diskHead(r.app, shrunk)
	have = r.restored(fifth, reasonDisks)
	have[resized] = r.diskHead(r.copy, shrunk)
	delete(have, trusting)
	require.Equal(t, want, have)
	r.checkRestIsZero(r.copy, shrunk)
	s.checkNothingLeft()
	r.restoreSmaller(fifth)
}

// reasonsRun is the application whose volumes are backed up.
type reasonsRun struct {
	*scenario
	driver *driverUnderTest
	// app is the application, and copy the last one that was restored.
	app, copy *kit.App
	args      []string
}

// options are those of the test driver, by their keys in its file.
type options map[string]any

// newReasonsRun starts an application with these disks. The policy selects them by the label
// "disk".
func newReasonsRun(s *scenario, disks []string, policy string) *reasonsRun {
	s.Helper()
	r := &reasonsRun{scenario: s, driver: s.driver()}
	r.behave(nil)
	namespace := s.namespace("reasons")
	require.NoError(s, s.kit.Apply(s.ctx, disksManifest(s.kit, namespace, "disk", disks)))
	var err error
	r.app, err = s.kit.AppIn(s.ctx, namespace)
	require.NoError(s, err)
	r.args = append(s.policy(policy), "--include-namespaces", namespace)
	return r
}

// fill writes the first content of disks.
func (r *reasonsRun) fill(disks []string) {
	r.Helper()
	for _, name := range disks {
		r.write(name, 0, 3<<20)
		r.write(name, 10<<20, 4<<20)
	}
}

// behave replaces the driver's options.
func (r *reasonsRun) behave(o options) {
	all := options{"requireBaseSnapshotForDelta": false}
	maps.Copy(all, o)
	text, err := json.Marshal(all)
	require.NoError(r, err)
	r.driver.options(string(text))
}

// hideMetadataService deletes the SnapshotMetadataService of a driver until the test ends.
func (s *scenario) hideMetadataService(driver string) {
	s.Helper()
	const kind = "snapshotmetadataservices.cbt.storage.k8s.io"
	saved, err := s.kit.Kubectl(s.ctx, "get", kind, driver, "-o", `jsonpath={"apiVersion: "}{.apiVersion}{"\nkind: "}{.kind}{"\nmetadata: {name: "}{.metadata.name}{"}\nspec: "}{.spec}`)
	require.NoError(s, err)
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		require.NoError(s, s.kit.Apply(ctx, saved))
	})
	_, err = s.kit.Kubectl(s.ctx, "delete", kind, driver)
	require.NoError(s, err)
}

// write writes random bytes to a place of a disk.
func (r *reasonsRun) write(disk string, offset, length int64) {
	r.Helper()
	const block = 4096
	_, err := r.app.Exec(r.ctx, fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=%d seek=%d count=%d conv=notrunc 2>/dev/null; sync",
		disk, block, offset/block, length/block))
	require.NoError(r, err)
}

// backup makes a backup of the volumes that a selector selects, or of all, while the driver
// misbehaves in this way.
func (r *reasonsRun) backup(base string, o options, selector string) string {
	r.Helper()
	args := r.args
	if selector != "" {
		args = append([]string{"--selector", selector}, args...)
	}
	r.behave(o)
	defer r.behave(nil)
	return r.scenario.backup("reasons-"+base, args...)
}

// expect checks the kind and the reason of the image of a volume, in all four places.
func (r *reasonsRun) expect(backup, name, kind string, reasons ...string) kit.Object {
	r.Helper()
	uploads, err := r.kit.DataUploads(r.ctx, backup)
	require.NoError(r, err)
	r.expectUpload(uploads[name], kind, reasons...)
	return uploads[name]
}

func (r *reasonsRun) expectUpload(upload kit.Object, kind string, reasons ...string) {
	r.Helper()
	name, result := upload.Spec.SourcePVC, upload.Status.DataMoverResult
	require.Equal(r, "Completed", upload.Status.Phase, "%s: %s", name, upload.Status.Message)
	require.Equal(r, kind, result["kind"], "%s: %s", name, result["detail"])
	if len(reasons) == 0 {
		require.Empty(r, result["reason"], "%s: %s", name, result["detail"])
		return
	}
	require.NoError(r, r.kit.CheckReasons(r.ctx, upload, reasons...))
}

// replace deletes a PVC with its volume and makes another one with the same name.
func (r *reasonsRun) replace() {
	r.Helper()
	before := r.volumeOf(replaced).Metadata.Name
	_, err := r.kit.Kubectl(r.ctx, "-n", r.app.Namespace, "delete", "pvc", replaced, "--timeout=60s")
	require.NoError(r, err)
	require.NoError(r, r.kit.Apply(r.ctx, kit.PVC(r.app.Namespace, replaced, r.kit.StorageClass, "Block", 1<<20)))
	require.NotEqual(r, before, r.volumeOf(replaced).Metadata.Name)
}

// volumeOf waits for the PersistentVolume of a PVC.
func (r *reasonsRun) volumeOf(pvc string) kit.Object {
	r.Helper()
	var claim, volume kit.Object
	require.NoError(r, r.kit.Wait(r.ctx, "PVC "+pvc+" to be bound", time.Minute, func(ctx context.Context) (bool, string, error) {
		err := r.kit.Get(ctx, &claim, "-n", r.app.Namespace, "pvc", pvc)
		return claim.Status.Phase == "Bound", claim.Status.Phase, err
	}))
	require.NoError(r, r.kit.Get(r.ctx, &volume, "persistentvolume", claim.Spec.VolumeName))
	return volume
}

// grow expands a disk and waits until the application sees it.
func (r *reasonsRun) grow(disk string, size int64) {
	r.Helper()
	_, err := r.kit.Kubectl(r.ctx, "-n", r.app.Namespace, "patch", "pvc", disk, "--type=merge",
		"-p", fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":"%d"}}}}`, size))
	require.NoError(r, err)
	require.NoError(r, r.kit.Wait(r.ctx, "disk to grow", time.Minute, func(ctx context.Context) (bool, string, error) {
		out, err := r.kit.Kubectl(ctx, "-n", r.app.Namespace, "get", "pvc", disk, "-o", "jsonpath={.status.capacity.storage}")
		if err != nil {
			return false, "", err
		}
		bytes, err := r.app.Exec(ctx, "blockdev --getsize64 /dev/"+disk)
		return strings.TrimSpace(bytes) == fmt.Sprint(size), out + " " + bytes, err
	}))
}

// diskHead hashes the first bytes of the disk "resized".
func (r *reasonsRun) diskHead(app *kit.App, length int64) string {
	r.Helper()
	sum, err := app.Exec(r.ctx, fmt.Sprintf("head -c %d /dev/%s | sha256sum", length, resized))
	require.NoError(r, err)
	return sum
}

// checkRestIsZero checks that a restored disk is zero beyond the image.
func (r *reasonsRun) checkRestIsZero(app *kit.App, length int64) {
	r.Helper()
	rest, err := app.Exec(r.ctx, fmt.Sprintf("tail -c +%d /dev/%s | tr -d '\\000' | wc -c; wc -c < /dev/%[2]s", length+1, resized))
	require.NoError(r, err)
	require.Equal(r, fmt.Sprintf("0\n%d\n", 20<<20+4096), rest, "the PVC is as large as it was asked to be")
}

// restored restores a backup into another namespace and reads disks of it.
func (r *reasonsRun) restored(backup string, disks []string) map[string]string {
	r.Helper()
	target := r.namespace("reasons-copy" + fmt.Sprint(time.Now().UnixNano()%1000))
	r.restore(backup, "--namespace-mappings", r.app.Namespace+":"+target)
	var err error
	r.copy, err = r.kit.AppIn(r.ctx, target)
	require.NoError(r, err)
	return r.diskSums(r.copy, disks)
}

// restoreSmaller uses a resource modifier to make the target of a restore ask for less than the
// volume had. It keeps what it asks for, and gets a volume that the image fits into.
func (r *reasonsRun) restoreSmaller(backup string) {
	r.Helper()
	modifier := r.name("smaller")
	_, err := r.kit.Run(r.ctx, `version: v1
resourceModifierRules:
- conditions: {groupResource: persistentvolumeclaims}
  patches: [{operation: replace, path: /spec/resources/requests/storage, value: "\"8388608\""}]
`, "kubectl", "-n", r.kit.VeleroNamespace, "create", "configmap", modifier, "--from-file=modifiers.yaml=/dev/stdin")
	require.NoError(r, err)
	r.deleteConfigMapInTheEnd(modifier)
	target := r.namespace("reasons-small")
	_, err = r.kit.Velero(r.ctx, "restore", "create", r.name("smaller"), "--from-backup", backup, "--resource-modifier-configmap", modifier,
		"--selector", "disk="+due, "--namespace-mappings", r.app.Namespace+":"+target)
	require.NoError(r, err)
	r.wait("a volume for a target that asks for less", func(ctx context.Context) (bool, string, error) {
		out, err := r.kit.Kubectl(ctx, "-n", target, "get", "pvc", "-o", "jsonpath={.items[*].spec.resources.requests.storage} {.items[*].status.capacity.storage}")
		return strings.TrimSpace(out) == "8388608 16Mi", out, err
	})
	r.checkNothingLeft()
}
