package scenarios

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

const inPlace = "blockmover.io/in-place"

// TestInPlace restores into the PVCs of an application that exists: of its volumes, only what
// differs is written. Whatever happens, the PVCs keep their volumes.
func TestInPlace(t *testing.T) {
	s := newScenario(t)
	if os.Getenv("BLOCKMOVER_CSI_STATE") != "" {
		s.driver().requireBase() // then the base is a snapshot that is retained
	}
	app := s.app("in-place")
	want := s.sums(app)
	volumes := s.volumesOf(app.Namespace)
	backup := s.backup("in-place", append(perVolume.args(s), "--include-namespaces", app.Namespace)...)

	// While the application runs, nothing is written.
	require.NoError(t, app.Change(s.ctx))
	changed := s.sums(app)
	s.refuseInPlace(backup, "true", "", "uses PVC "+app.Namespace+"/"+kit.FilesPVC, "uses PVC "+app.Namespace+"/"+kit.DiskPVC)
	require.Empty(t, changed.Diff(s.sums(app)))

	require.NoError(t, app.Stop(s.ctx))
	s.refuseInPlace(backup, "yes", "", `annotation blockmover.io/in-place of the Restore is "yes", want true, any-volume or false`)
	// The storage tells what has changed since the base that the backup has left. The rest is not read.
	disk := s.restoreInPlace(backup, "true", "")[kit.DiskPVC]
	require.Contains(t, disk.Status.Message, "the storage told what has changed since repo snapshot")
	done := s.doneInPlace(disk) // one of the two places was a hole
	require.LessOrEqual(t, done.written+done.zeroed, int64(kit.ChangedDiskBytes*12/10))
	require.GreaterOrEqual(t, done.written+done.zeroed, int64(kit.ChangedDiskBytes*9/10))
	require.LessOrEqual(t, done.read, int64(kit.ChangedDiskBytes*12/10))
	s.requireWhole(app, want, volumes)
	require.NoError(t, s.kit.Wait(s.ctx, "event of the PVC", 30*time.Second, func(ctx context.Context) (bool, string, error) {
		events, err := s.kit.Kubectl(ctx, "-n", app.Namespace, "get", "events", "--field-selector", "reason=RestoredInPlace,involvedObject.name="+kit.DiskPVC, "-o", "name")
		return events != "", "no event RestoredInPlace", err
	}))
	s.interruptInPlace(app, backup, want, volumes)

	// Without the storage's help, all of the volume is compared: it is equal to the image, byte by byte.
	require.NoError(t, app.Stop(s.ctx))
	s.restoreInPlace(backup, "true", "") // the application has mounted the file system meanwhile
	s.hideMetadataService(s.driverOf(app.Namespace))
	for pvc, download := range s.restoreInPlace(backup, "true", "") {
		require.Contains(t, download.Status.Message, "the whole volume was compared: CBTUnavailable", pvc)
		done := s.doneInPlace(download)
		require.Zero(t, done.written+done.zeroed, pvc)
		require.Equal(t, done.size, done.read, pvc)
	}
	require.NoError(t, s.kit.Fsck(s.ctx, app.Namespace, kit.FilesPVC, s.kit.StorageClass, s.kit.StorageClass))
	s.requireWhole(app, want, volumes)

	s.refuseOtherVolumes(app.Namespace, backup, want)
	s.checkNothingLeft()
}

// interruptInPlace kills mover pods, cancels, and kills the manager.
func (s *scenario) interruptInPlace(app *kit.App, backup string, want kit.Sums, volumes map[string]string) {
	s.Helper()
	for _, component := range []string{"worker", "manager"} {
		require.NoError(s, app.Change(s.ctx))
		require.NoError(s, app.Stop(s.ctx))
		killed := make(chan error, 1)
		go func() { killed <- s.killPods(component) }()
		s.restoreInPlace(backup, "true", "")
		require.NoError(s, <-killed)
		s.requireWhole(app, want, volumes)
	}

	require.NoError(s, app.Change(s.ctx))
	require.NoError(s, app.Stop(s.ctx))
	name := s.name("in-place-canceled")
	canceled := make(chan error, 1)
	go func() { canceled <- s.cancelDownloads(name, 2) }()
	restore, err := s.kit.Restore(s.ctx, name, backup, inPlaceArgs("true", "")...)
	require.NoError(s, err)
	require.NoError(s, <-canceled)
	require.Equal(s, "PartiallyFailed", restore.Status.Phase)
	downloads, err := s.kit.DataDownloads(s.ctx, name)
	require.NoError(s, err)
	for pvc, download := range downloads {
		s.Logf("PVC %s: %s: %s", pvc, download.Status.Phase, download.Status.Message)
		require.Equal(s, "Canceled", download.Status.Phase)
		require.Regexp(s, "nothing was written to the volume|"+mixture, download.Status.Message)
	}
	s.backUpMixture(app, downloads)
	s.checkNothingLeft()
	s.restoreInPlace(backup, "true", "")
	s.requireWhole(app, want, volumes)
}

// mixture is what a DataDownload says of a volume that it has left half restored.
const mixture = "the volume may hold a mixture of old and restored data"

// backUpMixture backs up volumes of which a restore may have left a mixture: those fail, and the others do not.
func (s *scenario) backUpMixture(app *kit.App, downloads map[string]kit.Object) {
	s.Helper()
	name := s.name("in-place-mixture")
	s.deleteBackupInTheEnd(name)
	backup, err := s.kit.Backup(s.ctx, name, append(perVolume.args(s), "--include-namespaces", app.Namespace)...)
	require.NoError(s, err)
	uploads, err := s.kit.DataUploads(s.ctx, backup.Metadata.Name)
	require.NoError(s, err)
	phase := "Completed"
	for pvc, download := range downloads {
		if !strings.Contains(download.Status.Message, mixture) {
			require.Equal(s, "Completed", uploads[pvc].Status.Phase, uploads[pvc].Status.Message)
			continue
		}
		phase = "PartiallyFailed"
		require.Equal(s, "Failed", uploads[pvc].Status.Phase)
		require.Contains(s, uploads[pvc].Status.Message, "because DataDownload/"+s.kit.VeleroNamespace+"/"+download.Metadata.Name+" restored it in place and did not complete")
	}
	require.Equal(s, phase, backup.Status.Phase)
}

func (s *scenario) cancelDownloads(restore string, n int) error {
	seen := map[string]bool{}
	return s.kit.Wait(s.ctx, "DataDownloads to cancel", time.Minute, func(ctx context.Context) (bool, string, error) {
		downloads, err := s.kit.DataDownloads(ctx, restore)
		if err != nil {
			return false, "", err
		}
		for pvc, download := range downloads {
			if seen[pvc] || download.Status.Phase != "InProgress" && download.Status.Phase != "Prepared" {
				continue
			}
			if _, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "patch", "datadownloads.velero.io", download.Metadata.Name,
				"--type=merge", "-p", `{"spec":{"cancel":true}}`); err != nil {
				return false, "", err
			}
			seen[pvc] = true
		}
		return len(seen) == n, kit.Names(downloads), nil
	})
}

// refuseOtherVolumes restores into the PVCs of other namespaces.
func (s *scenario) refuseOtherVolumes(from, backup string, want kit.Sums) {
	s.Helper()
	// A copy has other volumes. To overwrite them takes another word.
	copied := s.namespace("in-place-copy")
	s.restore(backup, "--namespace-mappings", from+":"+copied)
	other, err := s.kit.AppIn(s.ctx, copied)
	require.NoError(s, err)
	require.NoError(s, other.Change(s.ctx))
	require.NoError(s, other.Stop(s.ctx))
	volumes := s.volumesOf(copied)
	mapping := from + ":" + copied
	s.refuseInPlace(backup, "true", mapping, "to overwrite another volume than the one that was backed up, set the annotation blockmover.io/in-place of the Restore to any-volume")
	s.restoreInPlace(backup, "any-volume", mapping)
	s.requireWhole(other, want, volumes)

	// One PVC is not bound, and the volume of the other is too small.
	bad := s.namespace("in-place-bad")
	require.NoError(s, s.kit.Apply(s.ctx, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n---\n%s\n---\n%s\n", bad,
		kit.PVC(bad, kit.FilesPVC, s.kit.WaitStorageClass, "Filesystem", kit.DiskSize), kit.PVC(bad, kit.DiskPVC, s.kit.StorageClass, "Block", 16<<20))))
	s.wait("volume of PVC disk", func(ctx context.Context) (bool, string, error) {
		phase, err := s.kit.Kubectl(ctx, "-n", bad, "get", "pvc", kit.DiskPVC, "-o", "jsonpath={.status.phase}")
		return phase == "Bound", phase, err
	})
	s.refuseInPlace(backup, "any-volume", from+":"+bad, "PVC "+bad+"/files is not bound to a volume", "expand the PVC first")
}

func inPlaceArgs(mode, mapping string) []string {
	args := []string{"--annotations", inPlace + "=" + mode, "--include-resources", "persistentvolumeclaims", "--existing-resource-policy", "update"}
	if mapping != "" {
		args = append(args, "--namespace-mappings", mapping)
	}
	return args
}

// restoreInPlace returns the DataDownloads by PVC.
func (s *scenario) restoreInPlace(backup, mode, mapping string) map[string]kit.Object {
	s.Helper()
	name := s.name(fmt.Sprintf("r%d", time.Now().UnixNano()%1000000))
	start := time.Now()
	require.NoError(s, s.kit.MustRestore(s.ctx, name, backup, inPlaceArgs(mode, mapping)...))
	downloads, err := s.kit.DataDownloads(s.ctx, name)
	require.NoError(s, err)
	require.NotEmpty(s, downloads)
	for pvc, download := range downloads {
		s.Logf("PVC %s: %s, after %.1f s", pvc, download.Status.Message, time.Since(start).Seconds())
	}
	return downloads
}

// doneInPlace is what a restore in place says that it has done, in bytes.
type doneInPlace struct{ written, zeroed, read, size int64 }

func (s *scenario) doneInPlace(download kit.Object) doneInPlace {
	s.Helper()
	var d doneInPlace
	_, err := fmt.Sscanf(download.Status.Message, "restored in place: %d bytes were written and %d zeroed, %d of %d were read",
		&d.written, &d.zeroed, &d.read, &d.size)
	require.NoError(s, err, download.Status.Message)
	return d
}

// driverOf returns the CSI driver of the volumes of a namespace.
func (s *scenario) driverOf(namespace string) string {
	s.Helper()
	claims, err := s.kit.List(s.ctx, "-n", namespace, "persistentvolumeclaims")
	require.NoError(s, err)
	var pv kit.Object
	require.NoError(s, s.kit.Get(s.ctx, &pv, "persistentvolume", claims[0].Spec.VolumeName))
	return pv.Spec.CSI.Driver
}

// refuseInPlace makes a restore that must say why it does nothing.
func (s *scenario) refuseInPlace(backup, mode, mapping string, why ...string) {
	s.Helper()
	name := s.name(fmt.Sprintf("r%d", time.Now().UnixNano()%1000000))
	restore, err := s.kit.Restore(s.ctx, name, backup, inPlaceArgs(mode, mapping)...)
	require.NoError(s, err)
	require.Equal(s, "PartiallyFailed", restore.Status.Phase)
	described, err := s.kit.Describe(s.ctx, "restore", name)
	require.NoError(s, err)
	for _, text := range why {
		require.Contains(s, strings.Join(strings.Fields(described), " "), text)
	}
	downloads, err := s.kit.DataDownloads(s.ctx, name)
	require.NoError(s, err)
	require.Empty(s, downloads)
}

// volumesOf returns what must stay of each PVC: its PersistentVolume, the handle of the volume, and
// the reclaim policy.
func (s *scenario) volumesOf(namespace string) map[string]string {
	s.Helper()
	claims, err := s.kit.List(s.ctx, "-n", namespace, "persistentvolumeclaims")
	require.NoError(s, err)
	found := map[string]string{}
	for _, claim := range claims {
		var pv kit.Object
		require.NoError(s, s.kit.Get(s.ctx, &pv, "persistentvolume", claim.Spec.VolumeName))
		found[claim.Metadata.Name] = strings.Join([]string{claim.Metadata.UID, pv.Metadata.Name, pv.Spec.CSI.VolumeHandle, pv.Spec.ReclaimPolicy, pv.Status.Phase}, " ")
	}
	require.Len(s, found, 2)
	return found
}

// requireWhole starts the application and checks that it has the content of the backup on the
// volumes that it had.
func (s *scenario) requireWhole(app *kit.App, want kit.Sums, volumes map[string]string) {
	s.Helper()
	require.NoError(s, app.Start(s.ctx))
	s.checkContent(app.Namespace, want)
	require.Equal(s, volumes, s.volumesOf(app.Namespace))
}
