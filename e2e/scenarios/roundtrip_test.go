package scenarios

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// A door is one of the two ways to Blockmover; see docs/design.md.
type door struct {
	name string
	// args are arguments of `velero backup create`.
	args func(*scenario) []string
}

// customPolicy gives every CSI volume to Blockmover.
const customPolicy = `version: v1
volumePolicies:
- conditions: {csi: {}}
  action:
    type: custom
    parameters: {mover: blockmover}
`

var (
	perBackup = door{"per-backup", func(*scenario) []string {
		return []string{"--snapshot-move-data", "--data-mover", "blockmover"}
	}}
	perVolume = door{"per-volume", func(s *scenario) []string { return s.policy(customPolicy) }}
)

func TestRoundTripPerBackup(t *testing.T) { roundTrip(newScenario(t), perBackup) }
func TestRoundTripPerVolume(t *testing.T) { roundTrip(newScenario(t), perVolume) }

// roundTrip is the main job. It makes a full and an incremental backup, restores both into
// the same namespace and into another one, deletes the older one, and restores the newer one
// again. Everything is compared byte by byte, and read by stock kopia, too.
func roundTrip(s *scenario, d door) {
	app := s.app(d.name)
	args := append(d.args(s), "--include-namespaces", app.Namespace)
	pods := s.watchMoverPods()

	firstSums := s.sums(app)
	first := s.backup(d.name+"-full", args...)
	s.checkNothingLeft()
	full := s.checkFull(first)

	require.NoError(s, app.Change(s.ctx))
	secondSums := s.sums(app)
	require.NotEmpty(s, firstSums.Diff(secondSums))
	second := s.backup(d.name+"-incremental", args...)
	s.checkNothingLeft()
	incremental := s.checkIncremental(second, full)

	s.checkStockKopia(app.Namespace, map[string]kit.Sums{
		full[kit.DiskPVC].Status.SnapshotID:        firstSums,
		incremental[kit.DiskPVC].Status.SnapshotID: secondSums,
	})

	s.restoreTo(first, app.Namespace, d.name+"-copy1", firstSums)
	s.restoreUnmounted(second, app.Namespace, d.name+"-copy2", secondSums)
	for _, backup := range []struct {
		name string
		want kit.Sums
	}{{first, firstSums}, {second, secondSums}} {
		require.NoError(s, s.kit.DeleteNamespace(s.ctx, app.Namespace))
		s.restore(backup.name)
		s.checkContent(app.Namespace, backup.want)
	}
	s.checkNothingLeft()
	pods.check()

	require.NoError(s, s.kit.DeleteBackup(s.ctx, first))
	s.checkRepoSnapshots(app.Namespace, incremental)
	s.restoreTo(second, app.Namespace, d.name+"-copy3", secondSums)
	require.NoError(s, s.kit.DeleteBackup(s.ctx, second))
	s.checkRepoSnapshots(app.Namespace, nil)
	s.checkNothingLeft()
}

// checkFull checks the results in the DataUploads of a first backup.
func (s *scenario) checkFull(backup string) map[string]kit.Object {
	s.Helper()
	uploads := s.uploads(backup)
	for pvc, upload := range uploads {
		result := upload.Status.DataMoverResult
		s.Logf("%s: %v", pvc, result)
		require.Equal(s, "Full", result["kind"], pvc)
		require.Equal(s, "NoParent", result["reason"], pvc)
		require.Positive(s, number(s, result, "bytesUploaded"), pvc)
	}
	return uploads
}

// checkIncremental checks that an incremental backup read and uploaded about the chunks that
// changed, and that it names its parent.
func (s *scenario) checkIncremental(backup string, parents map[string]kit.Object) map[string]kit.Object {
	s.Helper()
	// Two places of 1 MiB, each aligned to a chunk. A file system also writes its journal,
	// bitmaps and inode tables, in chunks of 1 MiB each.
	most := map[string]int64{kit.DiskPVC: kit.ChangedDiskBytes + 1<<20, kit.FilesPVC: 16 << 20}
	uploads := s.uploads(backup)
	for pvc, upload := range uploads {
		result := upload.Status.DataMoverResult
		s.Logf("%s: %v", pvc, result)
		require.Equal(s, "Incremental", result["kind"], "%s: %s", pvc, result["detail"])
		require.Equal(s, parents[pvc].Status.SnapshotID, result["parent"], pvc)
		require.LessOrEqual(s, number(s, result, "bytesRead"), most[pvc], "%s: bytes read", pvc)
		require.LessOrEqual(s, number(s, result, "bytesUploaded"), most[pvc], "%s: bytes uploaded", pvc)
	}
	require.GreaterOrEqual(s, number(s, uploads[kit.DiskPVC].Status.DataMoverResult, "bytesUploaded"), int64(kit.ChangedDiskBytes))
	return uploads
}

// uploads returns the two DataUploads of the backup of an App, both Completed.
func (s *scenario) uploads(backup string) map[string]kit.Object {
	s.Helper()
	return s.nUploads(backup, 2)
}

// nUploads returns the DataUploads of a backup of n volumes, all Completed.
func (s *scenario) nUploads(backup string, n int) map[string]kit.Object {
	s.Helper()
	uploads, err := s.kit.DataUploads(s.ctx, backup)
	require.NoError(s, err)
	require.Len(s, uploads, n)
	for pvc, upload := range uploads {
		require.Equal(s, "blockmover", upload.Spec.DataMover, pvc)
		require.Equal(s, "Completed", upload.Status.Phase, pvc)
		require.NotEmpty(s, upload.Status.SnapshotID, pvc)
	}
	return uploads
}

func number(t require.TestingT, result map[string]string, key string) int64 {
	n, err := strconv.ParseInt(result[key], 10, 64)
	require.NoError(t, err, "dataMoverResult[%s]", key)
	return n
}

// checkStockKopia lists, verifies and restores the repo snapshots with stock kopia.
func (s *scenario) checkStockKopia(namespace string, disks map[string]kit.Sums) {
	s.Helper()
	stock, err := s.kit.StockKopia(s.ctx, namespace, s.TempDir())
	require.NoError(s, err)
	list, err := stock.Snapshots(s.ctx)
	require.NoError(s, err)
	require.Len(s, list, 4, "two backups of two volumes")
	require.NoError(s, stock.Verify(s.ctx))
	for id, want := range disks {
		path, err := stock.RestoreDisk(s.ctx, id, s.TempDir())
		require.NoError(s, err)
		require.Equal(s, want.Disk, hashDisk(s, path, kit.DiskSize), "disk.raw of repo snapshot %s", id)
	}
}

// hashDisk hashes the volume in a restored disk.raw, without the padding, which must be zero.
func hashDisk(s *scenario, path string, size int64) string {
	f, err := os.Open(path)
	require.NoError(s, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.CopyN(h, f, size)
	require.NoError(s, err)
	padding, err := io.ReadAll(f)
	require.NoError(s, err)
	require.Less(s, len(padding), 1<<20)
	require.Equal(s, make([]byte, len(padding)), padding)
	return hex.EncodeToString(h.Sum(nil))
}

// checkRepoSnapshots checks that the repository of a namespace has the repo snapshots of
// these DataUploads and no others, and that kopia finds them whole.
func (s *scenario) checkRepoSnapshots(namespace string, uploads map[string]kit.Object) {
	s.Helper()
	want := []string{}
	for _, upload := range uploads {
		want = append(want, upload.Status.SnapshotID)
	}
	stock, err := s.kit.StockKopia(s.ctx, namespace, s.TempDir())
	require.NoError(s, err)
	list, err := stock.Snapshots(s.ctx)
	require.NoError(s, err)
	have := []string{}
	for _, snapshot := range list {
		have = append(have, snapshot.ID)
	}
	require.ElementsMatch(s, want, have)
	require.NoError(s, stock.Verify(s.ctx))
}
