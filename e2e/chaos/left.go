package chaos

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/blockmover/blockmover/e2e/kit"
)

// grace is how long what is left over may stay: the sweep comes every ten minutes.
const grace = 12 * time.Minute

// repositories has stock kopia read all images, and compares them with the DataUploads.
func (j *judge) repositories(ctx context.Context) error {
	uploads, err := j.kit.List(ctx, "-n", j.kit.VeleroNamespace, "datauploads")
	if err != nil {
		return err
	}
	for _, a := range j.apps {
		if !slices.ContainsFunc(j.started, func(b *backup) bool { return b.app == a }) {
			continue
		}
		if err := j.repository(ctx, a, uploads); err != nil {
			return err
		}
	}
	return nil
}

func (j *judge) repository(ctx context.Context, a *application, uploads []kit.Object) error {
	dir, err := os.MkdirTemp("", "chaos-kopia-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	kopia, err := j.kit.StockKopia(ctx, a.namespace, dir)
	if err != nil {
		if strings.Contains(err.Error(), "repository not initialized") { // no backup has come so far
			return nil
		}
		return err
	}
	if err := kopia.Verify(ctx); err != nil {
		return err
	}
	images, err := kopia.Snapshots(ctx)
	if err != nil {
		return err
	}
	j.checkImages(a, images, uploads)
	return nil
}

// checkImages checks that each image is that of one DataUpload, and that no DataUpload has two.
func (j *judge) checkImages(a *application, images []kit.KopiaSnapshot, uploads []kit.Object) {
	byID, byUID := map[string]kit.Object{}, map[string]kit.Object{}
	for _, u := range uploads {
		byUID[u.Metadata.UID] = u
		if u.Status.Phase == "Completed" {
			byID[u.Status.SnapshotID] = u
		}
	}
	seen := map[string]string{}
	for _, image := range images {
		operation := operationOf(image)
		upload, known := byUID[operation]
		if image.IncompleteReason != "" {
			if known && upload.Status.Phase == "Completed" && startedAfter(uploads, upload) {
				j.check(fmt.Errorf("namespace %s: incomplete image %s of %s, which is Completed", a.namespace, image.ID, upload))
			}
			continue
		}
		if other, twice := seen[operation]; twice {
			j.check(fmt.Errorf("namespace %s: images %s and %s are of one operation %s", a.namespace, other, image.ID, operation))
		}
		seen[operation] = image.ID
		if _, found := byID[image.ID]; !found && !known {
			j.check(fmt.Errorf("namespace %s: image %s (%v) is of no DataUpload", a.namespace, image.ID, image.Tags))
		}
	}
}

// startedAfter reports whether an upload of the same namespace began after another one had ended. kopia can bring an
// incomplete image back when two backups compact the manifests of a repository at once. The next one removes it.
func startedAfter(uploads []kit.Object, ended kit.Object) bool {
	return slices.ContainsFunc(uploads, func(u kit.Object) bool {
		return u.Spec.SourceNamespace == ended.Spec.SourceNamespace && u.Status.Phase == "Completed" &&
			u.Status.StartTimestamp.After(ended.Status.CompletionTimestamp)
	})
}

// operationOf is the tag of an image that names its DataUpload.
func operationOf(image kit.KopiaSnapshot) string {
	for key, value := range image.Tags {
		if strings.HasSuffix(key, "blockmover.io/operation-id") {
			return value
		}
	}
	return ""
}

// removeVelerosOwn deletes what Velero's own action has left of backups that are gone, and notes it. If
// Velero's server is killed between the VolumeSnapshot and the DataUpload, nobody ever deletes it.
func (j *judge) removeVelerosOwn(ctx context.Context) error {
	snapshots, err := j.kit.List(ctx, "volumesnapshots", "-A", "-l", kit.LabelBackup)
	if err != nil {
		return err
	}
	backups, err := j.kit.List(ctx, "-n", j.kit.VeleroNamespace, "backups.velero.io")
	if err != nil {
		return err
	}
	for _, o := range snapshots {
		isThere := slices.ContainsFunc(backups, func(b kit.Object) bool { return b.Metadata.Name == o.Metadata.Labels[kit.LabelBackup] })
		if isThere || !strings.HasPrefix(o.Metadata.Name, "velero-") {
			continue
		}
		j.result.LeftByVelero = append(j.result.LeftByVelero, o.String())
		if _, err := j.kit.Kubectl(ctx, "-n", o.Metadata.Namespace, "delete", "volumesnapshot", o.Metadata.Name, "--ignore-not-found"); err != nil {
			return err
		}
	}
	return nil
}

// nothingLeft waits until there is nothing that no backup and no application needs, in the cluster
// and in the storage.
func (j *judge) nothingLeft(ctx context.Context) error {
	start := time.Now()
	before := ""
	err := j.wait(ctx, "nothing left behind", grace, func(ctx context.Context) (string, error) {
		found, err := j.kit.Leftovers(ctx)
		if err != nil {
			return "", err
		}
		stored, err := j.leftInStorage(ctx)
		seen := strings.Join(append(found, stored...), ", ")
		if seen != before {
			j.kit.Log("left after %.0f s: %s", time.Since(start).Seconds(), seen)
			before = seen
		}
		return seen, err
	})
	for _, a := range j.apps {
		j.check(j.kit.CheckStamps(ctx, a.namespace, a.disksIn(a.namespace)...))
	}
	return err
}

// leftInStorage lists volumes and snapshots of the drivers that no object of the cluster names.
func (j *judge) leftInStorage(ctx context.Context) ([]string, error) {
	out, err := j.kit.Kubectl(ctx, "get", "persistentvolumes,volumesnapshotcontents", "-o",
		"jsonpath={range .items[*]}{.spec.csi.volumeHandle} {.status.snapshotHandle} {.spec.source.snapshotHandle} {end}")
	if err != nil {
		return nil, err
	}
	known := strings.Fields(out)
	groups, err := j.kit.Kubectl(ctx, "get", "volumegroupsnapshotcontents", "-o", "jsonpath={.items[*]}")
	if err != nil {
		return nil, err
	}
	var found []string
	for name, driver := range j.storage {
		volumes, err := driver.ListVolumes(ctx, &csi.ListVolumesRequest{})
		if err != nil {
			return nil, fmt.Errorf("list volumes of driver %s: %w", name, err)
		}
		for _, e := range volumes.GetEntries() {
			if id := e.GetVolume().GetVolumeId(); !slices.Contains(known, id) {
				found = append(found, "volume "+id+" of driver "+name)
			}
		}
		snapshots, err := driver.ListSnapshots(ctx, &csi.ListSnapshotsRequest{})
		if err != nil {
			return nil, fmt.Errorf("list snapshots of driver %s: %w", name, err)
		}
		for _, e := range snapshots.GetEntries() {
			// The members of a group that is held up by one of them are deleted with it.
			if id := e.GetSnapshot().GetSnapshotId(); !slices.Contains(known, id) && !strings.Contains(groups, id) {
				found = append(found, "snapshot "+id+" of driver "+name)
			}
		}
	}
	return found, nil
}
