package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/blockmover/blockmover/e2e/kit"
)

// judge looks at what a round has left.
type judge struct {
	*world
	result   *Result
	mu       sync.Mutex
	started  []*backup
	restores []*restore
}

// restore is one that the round has begun. Without a target, it is one in place.
type restore struct {
	name, target string
	of           *backup
}

// grace is how long what is left over may stay: the sweep comes every ten minutes.
const grace = 12 * time.Minute

func (j *judge) check(err error) bool {
	if err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.result.Wrong = append(j.result.Wrong, err.Error())
	}
	return err == nil
}

func (j *judge) judge(ctx context.Context) {
	if !j.check(j.allEnded(ctx)) {
		return
	}
	var wg sync.WaitGroup
	for _, b := range j.started {
		j.backups = append(j.backups, b) // also one that failed is deleted one day
		e, err := j.ended(ctx, "backup.velero.io", Backup, b.name)
		if j.check(err) && e.Phase == "Completed" {
			wg.Go(func() { j.check(j.sound(ctx, b, e)) })
		}
	}
	for _, r := range j.restores {
		e, err := j.ended(ctx, "restore.velero.io", Restore, r.name)
		j.check(err)
		wg.Go(func() {
			j.check(j.restored(ctx, r, e))
		})
	}
	wg.Wait()
	j.deletions(ctx)
	j.check(j.repositories(ctx))
	j.check(j.nothingLeft(ctx))
}

// allEnded waits for the end of all that runs.
func (j *judge) allEnded(ctx context.Context) error {
	return j.wait(ctx, "all operations to end", limit, func(ctx context.Context) (string, error) {
		for kinds, ended := range map[string][]string{"backups.velero.io,restores.velero.io": endedBackups, "datauploads,datadownloads": endedOperations} {
			list, err := j.kit.List(ctx, "-n", j.kit.VeleroNamespace, kinds)
			if err != nil {
				return "", err
			}
			for _, o := range list {
				if !slices.Contains(ended, o.Status.Phase) {
					return fmt.Sprintf("%s is %q: %s", o, o.Status.Phase, o.Status.Message), nil
				}
			}
		}
		return "", nil
	})
}

// ended notes the end of a Backup or a Restore.
func (j *judge) ended(ctx context.Context, resource, kind, name string) (Ended, error) {
	var o kit.Object
	if err := j.kit.Get(ctx, &o, "-n", j.kit.VeleroNamespace, resource, name); err != nil {
		return Ended{}, err
	}
	e := Ended{Kind: kind, Name: name, Phase: o.Status.Phase}
	list := j.kit.DataUploads
	if kind == Restore {
		list = j.kit.DataDownloads
	}
	volumes, err := list(ctx, name)
	if err != nil {
		return Ended{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		v := volumes[name]
		ev := EndedVolume{Name: name, Phase: v.Status.Phase, Message: v.Status.Message, Kind: v.Status.DataMoverResult["kind"], Reason: v.Status.DataMoverResult["reason"]}
		var attempt struct {
			Number                int
			BytesRead, ReadBefore int64
		}
		if text := v.Metadata.Annotations["blockmover.io/attempt"]; text != "" {
			if err := json.Unmarshal([]byte(text), &attempt); err != nil {
				return Ended{}, fmt.Errorf("decode attempt of %s: %w", v, err)
			}
		}
		ev.Attempts, ev.Read, ev.ReadBefore = attempt.Number, attempt.BytesRead, attempt.ReadBefore
		if ev.Phase != "Completed" && ev.Message == "" {
			j.check(fmt.Errorf("%s is %s and does not say why", v, ev.Phase))
		}
		if e.Phase == "Completed" && ev.Phase != "Completed" {
			j.check(fmt.Errorf("%s %s is Completed, and its %s is %s: %s", kind, e.Name, v, ev.Phase, ev.Message))
		}
		e.Volumes = append(e.Volumes, ev)
	}
	j.kit.Log("%s %s is %s: %+v", kind, e.Name, e.Phase, e.Volumes)
	j.result.Ended = append(j.result.Ended, e)
	return e, nil
}

// sound restores a Completed backup, with no fault about, and compares it with the ledger.
func (j *judge) sound(ctx context.Context, b *backup, e Ended) error {
	if len(e.Volumes) != len(b.app.volumes) {
		return fmt.Errorf("backup %s is Completed and has %d DataUploads of %d volumes", b.name, len(e.Volumes), len(b.app.volumes))
	}
	target := b.name + "-judge"
	if err := j.createRestore(ctx, target, b, target); err != nil {
		return err
	}
	if err := j.completed(ctx, target); err != nil {
		return err
	}
	if err := j.equal(ctx, b, target); err != nil {
		return err
	}
	b.sound = true
	return errors.Join(j.forget(ctx, target), j.kit.DeleteNamespace(ctx, target))
}

// forget deletes a Restore.
func (j *judge) forget(ctx context.Context, restore string) error {
	_, err := j.kit.Velero(ctx, "restore", "delete", restore, "--confirm")
	return err
}

// restored judges a restore that faults have hit. One in place that has not completed is repeated:
// whatever it has left, the same restore makes it whole.
func (j *judge) restored(ctx context.Context, r *restore, e Ended) error {
	namespace := r.target
	if namespace == "" {
		namespace = r.of.app.namespace
		if e.Phase != "Completed" {
			again := r.name + "-again"
			if err := errors.Join(j.createInPlace(ctx, again, r.of), j.completed(ctx, again), j.forget(ctx, again)); err != nil {
				return err
			}
			e.Phase = "Completed"
		}
		if err := j.scale(ctx, r.of.app, 1); err != nil {
			return err
		}
	}
	var errs error
	if e.Phase == "Completed" {
		errs = j.equal(ctx, r.of, namespace)
	}
	if r.target != "" {
		errs = errors.Join(errs, j.kit.DeleteNamespace(ctx, r.target))
	}
	r.of.used = false
	return errors.Join(errs, j.forget(ctx, r.name))
}

// completed waits for a restore with no fault about.
func (j *judge) completed(ctx context.Context, target string) error {
	var o kit.Object
	if err := j.wait(ctx, "restore "+target, 4*time.Minute, func(ctx context.Context) (string, error) {
		err := j.kit.Get(ctx, &o, "-n", j.kit.VeleroNamespace, "restore.velero.io", target)
		if slices.Contains(endedBackups, o.Status.Phase) {
			return "", err
		}
		return "phase " + o.Status.Phase, err
	}); err != nil {
		return err
	}
	if o.Status.Phase != "Completed" {
		described, err := j.kit.Describe(ctx, "restore", target)
		return errors.Join(fmt.Errorf("restore %s of a Completed backup, with no fault about, is %s: %s", target, o.Status.Phase, described), err)
	}
	return nil
}

// equal compares the content of a restored application with what the hook saw.
func (j *judge) equal(ctx context.Context, b *backup, namespace string) error {
	want, err := j.ledger(b.name)
	if err != nil {
		return err
	}
	if want == nil {
		return fmt.Errorf("backup %s is Completed, and its hook has not come to its end", b.name)
	}
	have, err := j.sums(ctx, namespace)
	if err != nil {
		return err
	}
	if !maps.Equal(want, have) {
		return fmt.Errorf("WRONG RESTORE of backup %s in namespace %s: there is %v, want %v", b.name, namespace, have, want)
	}
	return j.kit.CheckStamps(ctx, namespace)
}

// deletions waits until the backups are gone whose deletion was asked for. What a fault has kept
// from being deleted is asked for once more, as Velero says. Old backups go, too.
func (j *judge) deletions(ctx context.Context) {
	const most = 3
	for _, a := range j.apps {
		var of []*backup
		for _, b := range j.backups {
			if b.app == a && !b.deleting {
				of = append(of, b)
			}
		}
		for _, b := range of[:max(0, len(of)-most)] {
			b.deleting = true
		}
	}
	var keep []*backup
	for _, b := range j.backups {
		if !b.deleting {
			keep = append(keep, b)
			continue
		}
		if j.check(j.kit.EnsureNoBackup(ctx, b.name)) {
			continue
		}
		keep = append(keep, b)
	}
	j.backups = keep
}

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
			if known && upload.Status.Phase == "Completed" {
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

// operationOf is the tag of an image that names its DataUpload.
func operationOf(image kit.KopiaSnapshot) string {
	for key, value := range image.Tags {
		if strings.HasSuffix(key, "blockmover.io/operation-id") {
			return value
		}
	}
	return ""
}

// nothingLeft waits until there is nothing that no backup and no application needs, in the cluster
// and in the storage.
func (j *judge) nothingLeft(ctx context.Context) error {
	start := time.Now()
	err := j.wait(ctx, "nothing left behind", grace, func(ctx context.Context) (string, error) {
		found, err := j.kit.Leftovers(ctx)
		if err != nil {
			return "", err
		}
		stored, err := j.leftInStorage(ctx)
		found = append(found, stored...)
		return strings.Join(found, ", "), err
	})
	j.kit.Log("nothing is left after %.0f s", time.Since(start).Seconds())
	for _, a := range j.apps {
		j.check(j.kit.CheckStamps(ctx, a.namespace))
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
