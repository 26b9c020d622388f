package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

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
		j.backups = append(j.backups, b)
		e, err := j.ended(ctx, "backup.velero.io", Backup, b.name)
		if j.check(err) && e.Phase == "Completed" && !slices.Contains(j.result.EndedByVelero, b.name) {
			wg.Go(func() { j.check(j.sound(ctx, b, e)) })
		} else {
			// Until then, it holds what Velero itself has left.
			b.deleting = true
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
	j.check(j.removeVelerosOwn(ctx))
	j.check(j.repositories(ctx))
	j.check(j.nothingLeft(ctx))
}

// allEnded waits for the end of all that runs.
func (j *judge) allEnded(ctx context.Context) error {
	return j.wait(ctx, "all operations to end", limit, func(ctx context.Context) (string, error) {
		var running []string
		for kinds, ended := range map[string][]string{"backups.velero.io,restores.velero.io": endedBackups, "datauploads,datadownloads": endedOperations} {
			list, err := j.kit.List(ctx, "-n", j.kit.VeleroNamespace, kinds)
			if err != nil {
				return "", err
			}
			for _, o := range list {
				if slices.Contains(ended, o.Status.Phase) {
					continue
				}
				running = append(running, fmt.Sprintf("%s is %q: %s", o, o.Status.Phase, o.Status.Message))
				if err := errors.Join(j.restartStuckVelero(ctx, o), j.cancelHopeless(ctx, o, list)); err != nil {
					return "", err
				}
			}
		}
		return strings.Join(running, ", "), nil
	})
}

// restartStuckVelero does what an administrator has to do if Velero has given up an operation while the API
// server was away: it tries for a while to write the end, and never again, or it has panicked. When it starts,
// it calls the operation Failed. The result notes it.
func (j *judge) restartStuckVelero(ctx context.Context, o kit.Object) error {
	if o.Kind != "Backup" && o.Kind != "Restore" {
		return nil // those are not Velero's to end
	}
	log, err := j.kit.Kubectl(ctx, "-n", j.kit.VeleroNamespace, "logs", "deployment/velero", "-c", "velero")
	if err != nil {
		return err
	}
	for line := range strings.Lines(log) {
		gaveUp := strings.Contains(strings.ToLower(line), "error updating "+strings.ToLower(o.Kind)+"'s") && strings.Contains(line, "/"+o.Metadata.Name+" ")
		panicked := strings.Contains(line, "Observed a panic") && strings.Contains(line, " name="+o.Metadata.Name+" ")
		if !gaveUp && !panicked {
			continue
		}
		j.result.StuckInVelero = append(j.result.StuckInVelero, o.String())
		_, err := j.kit.Kubectl(ctx, "-n", j.kit.VeleroNamespace, "delete", "pods", "-l", "deploy=velero")
		return errors.Join(err, j.settle(ctx))
	}
	return nil
}

// cancelHopeless cancels a DataDownload that waits for a pod which cannot be scheduled any more, because the
// DataDownload of another volume of the same restore was canceled or has failed.
func (j *judge) cancelHopeless(ctx context.Context, o kit.Object, all []kit.Object) error {
	if o.Kind != "DataDownload" || o.Spec.Cancel || !strings.Contains(o.Status.Message, "waits for its first consumer") {
		return nil
	}
	restore := o.Metadata.Labels[kit.LabelRestore]
	if !slices.ContainsFunc(all, func(other kit.Object) bool {
		return other.Kind == o.Kind && other.Metadata.Labels[kit.LabelRestore] == restore && (other.Status.Phase == "Canceled" || other.Status.Phase == "Failed")
	}) {
		return nil
	}
	_, err := j.kit.Kubectl(ctx, "-n", o.Metadata.Namespace, "patch", "datadownload", o.Metadata.Name, "--type=merge", "-p", `{"spec":{"cancel":true}}`)
	return err
}

// ended notes the end of a Backup or a Restore.
func (j *judge) ended(ctx context.Context, resource, kind, name string) (Ended, error) {
	var o kit.Object
	if err := j.kit.Get(ctx, &o, "-n", j.kit.VeleroNamespace, resource, name); err != nil {
		return Ended{}, err
	}
	e := Ended{Kind: kind, Name: name, Phase: o.Status.Phase}
	if e.Phase != "Completed" {
		e.Why = j.why(ctx, kind, o)
	}
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
		if kind == Backup && e.Phase == "Completed" {
			j.noteEarly(o, v)
		}
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
		if e.Phase == "Completed" && ev.Phase != "Completed" && !slices.Contains(j.result.EndedByVelero, e.Name) {
			j.check(fmt.Errorf("%s %s is Completed, and its %s is %s: %s", kind, e.Name, v, ev.Phase, ev.Message))
		}
		e.Volumes = append(e.Volumes, ev)
	}
	j.kit.Log("%s %s is %s: %+v %q", kind, e.Name, e.Phase, e.Volumes, e.Why)
	j.result.Ended = append(j.result.Ended, e)
	return e, nil
}

// noteEarly notes a Completed backup that has ended before one of its uploads. Velero 1.18 takes an operation for failed when its action
// cannot reach the API server, and forgets that if it cannot write it then: the Backup is Completed, and has the DataUpload as it was at
// that time.
func (j *judge) noteEarly(backup, upload kit.Object) {
	name := backup.Metadata.Name
	if upload.Status.CompletionTimestamp.After(backup.Status.CompletionTimestamp) && !slices.Contains(j.result.EndedByVelero, name) {
		j.result.EndedByVelero = append(j.result.EndedByVelero, name)
	}
}

// why collects what Velero says about an operation that has not completed.
func (j *judge) why(ctx context.Context, kind string, o kit.Object) []string {
	const most, longest = 8, 600
	why := slices.DeleteFunc([]string{o.Status.FailureReason}, func(s string) bool { return s == "" })
	why = append(why, o.Status.ValidationErrors...)
	if text, err := j.kit.Describe(ctx, kind, o.Metadata.Name); err == nil {
		// What Velero lists as errors ends with an empty line.
		if _, list, found := strings.Cut(text, "\nErrors:"); found {
			list, _, _ = strings.Cut(list, "\n\n")
			why = append(why, strings.Join(strings.Fields(list), " "))
		}
	}
	text, err := j.kit.Velero(ctx, kind, "logs", o.Metadata.Name)
	if err != nil { // a server that was killed leaves no log
		return why
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, "level=error") && len(why) < most {
			why = append(why, line[:min(len(line), longest)])
		}
	}
	return why
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
	if err := j.kit.CompleteRestore(ctx, target); err != nil {
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
			if err := errors.Join(j.createInPlace(ctx, again, r.of), j.kit.CompleteRestore(ctx, again), j.forget(ctx, again)); err != nil {
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

// equal compares the content of a restored application with what the hook saw.
func (j *judge) equal(ctx context.Context, b *backup, namespace string) error {
	want, err := j.ledger(b)
	if err != nil {
		return err
	}
	if want == nil {
		return fmt.Errorf("backup %s is Completed, and its hook has not come to its end", b.name)
	}
	have, err := j.sums(ctx, b.app, namespace)
	if err != nil {
		return err
	}
	if !maps.Equal(want, have) {
		return fmt.Errorf("WRONG RESTORE of backup %s in namespace %s: there is %v, want %v", b.name, namespace, have, want)
	}
	return j.kit.CheckStamps(ctx, namespace, b.app.disksIn(namespace)...)
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
