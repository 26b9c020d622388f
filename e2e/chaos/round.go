package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Result is what became of a round: a line of the log.
type Result struct {
	Seed uint64    `json:"seed"`
	At   time.Time `json:"at"`
	// Seconds are how long the operations took, with all waiting, and the judge.
	Seconds float64  `json:"seconds"`
	Hits    []Hit    `json:"faults"`
	Ended   []Ended  `json:"operations"`
	Wrong   []string `json:"wrong,omitempty"`
	// LeftByVelero is what Velero's own action has left of backups that are gone.
	LeftByVelero []string `json:"leftByVelero,omitempty"`
	// EndedByVelero are the backups that Velero has called Completed while their uploads ran.
	EndedByVelero []string `json:"endedByVelero,omitempty"`
	// StuckInVelero are the operations for which Velero's server had to be restarted.
	StuckInVelero []string `json:"stuckInVelero,omitempty"`
}

// Hit is a fault that has hit something, or missed.
type Hit struct {
	Fault
	What   string `json:"what,omitempty"`
	Missed string `json:"missed,omitempty"`
}

// Ended is an operation with its end.
type Ended struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Phase string `json:"phase"`
	// Why is what Velero says if it has not completed.
	Why []string `json:"why,omitempty"`
	// Volumes are its DataUploads or DataDownloads.
	Volumes []EndedVolume `json:"volumes,omitempty"`
}

// EndedVolume is the end of a DataUpload or DataDownload.
type EndedVolume struct {
	Name    string `json:"name"`
	Phase   string `json:"phase"`
	Message string `json:"message,omitempty"`
	Kind    string `json:"kind,omitempty"`
	Reason  string `json:"reason,omitempty"`
	// Attempts is how many mover pods it took, Read what the last one has read, and ReadBefore what those before it had.
	Attempts   int   `json:"attempts,omitempty"`
	Read       int64 `json:"read,omitempty"`
	ReadBefore int64 `json:"readBefore,omitempty"`
}

// limit is how long an operation may take after the last fault is over.
const limit = 8 * time.Minute

var (
	endedBackups    = []string{"Completed", "PartiallyFailed", "Failed", "FailedValidation", "Deleting"}
	endedOperations = []string{"Completed", "Failed", "Canceled"}
)

// round runs a round, and judges it.
func (w *world) round(ctx context.Context, r Round) Result {
	start := time.Now()
	result := Result{Seed: r.Seed, At: start.UTC()}
	wrong := func(err error) bool {
		if err != nil {
			result.Wrong = append(result.Wrong, err.Error())
		}
		return err != nil
	}
	for _, a := range w.apps {
		if wrong(w.writes(ctx, a, true, r.Seed)) {
			return result
		}
	}
	time.Sleep(2 * time.Second) // they write
	j := &judge{world: w, result: &result}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, o := range r.Operations {
		wg.Go(func() {
			time.Sleep(time.Until(start.Add(o.At)))
			err := j.begin(ctx, fmt.Sprintf("c%d-%d", r.Seed, i), o)
			mu.Lock()
			defer mu.Unlock()
			wrong(err)
		})
	}
	for _, f := range r.Faults {
		wg.Go(func() {
			time.Sleep(time.Until(start.Add(f.At)))
			hit, err := w.inject(ctx, f)
			mu.Lock()
			defer mu.Unlock()
			result.Hits = append(result.Hits, hit)
			wrong(err)
		})
	}
	wg.Wait()
	if len(result.Wrong) > 0 {
		return result
	}
	if wrong(w.settle(ctx)) {
		return result
	}
	for _, a := range w.apps {
		if wrong(w.writes(ctx, a, false, r.Seed)) {
			return result
		}
	}
	j.judge(ctx)
	for _, a := range w.apps { // a backup that failed leaves its hook's pause
		if a.vm {
			continue
		}
		_, err := w.kit.Kubectl(ctx, "-n", a.namespace, "exec", "deploy/app", "--", "rm", "-f", "/ctl/pause")
		wrong(err)
	}
	result.Seconds = time.Since(start).Seconds()
	return result
}

// inject lets a fault happen, and heals it after its time. An error is one of healing: then the
// cluster is not what it was.
func (w *world) inject(ctx context.Context, f Fault) (Hit, error) {
	i := slices.IndexFunc(faults, func(k kind) bool { return k.name == f.Name })
	what, heal, err := faults[i].inject(ctx, w, f)
	hit := Hit{Fault: f, What: what}
	if err != nil {
		hit.Missed = err.Error()
	}
	w.kit.Log("fault %s %s for %s: %s", f.Name, what, f.For, hit.Missed)
	if heal == nil {
		return hit, nil
	}
	time.Sleep(f.For)
	return hit, w.wait(ctx, "end of fault "+f.Name, time.Minute, func(ctx context.Context) (string, error) { return "", heal(ctx) })
}

// begin starts an operation.
func (j *judge) begin(ctx context.Context, name string, o Operation) error {
	a := j.apps[o.App]
	switch o.Kind {
	case Backup:
		b := &backup{name: name, app: a, sums: a.sums}
		j.mu.Lock()
		j.started = append(j.started, b)
		j.mu.Unlock()
		return j.createBackup(ctx, name, a, o)
	case Restore:
		of := j.pick(a, o.Pick)
		if of == nil {
			return nil
		}
		target := name + "-copy"
		j.mu.Lock()
		j.restores = append(j.restores, &restore{name: name, of: of, target: target})
		j.mu.Unlock()
		return j.createRestore(ctx, name, of, target)
	case InPlace:
		of := j.pick(a, o.Pick)
		if of == nil {
			return nil
		}
		if err := j.scale(ctx, a, 0); err != nil {
			return err
		}
		j.mu.Lock()
		j.restores = append(j.restores, &restore{name: name, of: of})
		j.mu.Unlock()
		return j.createInPlace(ctx, name, of)
	case Delete:
		of := j.pickToDelete(a, o.Pick)
		if of == nil {
			return nil
		}
		return j.wait(ctx, "deletion of "+of.name+" to be asked for", 2*time.Minute, func(ctx context.Context) (string, error) {
			return "", j.deleteBackup(ctx, of)
		})
	}
	return fmt.Errorf("there is no operation %q", o.Kind)
}

func (w *world) deleteBackup(ctx context.Context, b *backup) error {
	_, err := w.kit.Velero(ctx, "backup", "delete", b.name, "--confirm")
	return err
}

// pick chooses a sound backup of an application.
func (j *judge) pick(a *application, pick uint64) *backup {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []*backup
	for _, b := range j.backups {
		if b.app == a && b.sound && !b.deleting {
			found = append(found, b)
		}
	}
	if len(found) == 0 {
		return nil
	}
	b := found[pick%uint64(len(found))]
	b.used = true
	return b
}

// pickToDelete chooses one that nobody restores, of at least two.
func (j *judge) pickToDelete(a *application, pick uint64) *backup {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []*backup
	for _, b := range j.backups {
		if b.app == a && !b.deleting && !b.used {
			found = append(found, b)
		}
	}
	if len(found) < 2 {
		return nil
	}
	b := found[pick%uint64(len(found))]
	b.deleting = true
	return b
}

// evidence keeps what somebody needs who looks for the cause.
func (w *world) evidence(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs error
	for name, args := range map[string][]string{
		"operations.yaml": {"-n", w.kit.VeleroNamespace, "get", "backups.velero.io,restores.velero.io,datauploads,datadownloads,deletebackuprequests,backuprepositories", "-o", "yaml"},
		"objects.yaml":    {"get", "volumesnapshots,volumesnapshotcontents,volumegroupsnapshots,volumegroupsnapshotcontents,pvc,pods,events", "-A", "-o", "yaml"},
		"volumes.yaml":    {"get", "pv", "-o", "yaml"},
	} {
		out, err := w.kit.Kubectl(ctx, append(args, "--ignore-not-found")...)
		errs = errors.Join(errs, err, os.WriteFile(filepath.Join(dir, name), []byte(out), 0o600))
	}
	logs, err := filepath.Glob(filepath.Join(w.state, "pod-logs", w.kit.VeleroNamespace+"_*"))
	for _, log := range append(logs, filepath.Join(w.state, "logs")) {
		errs = errors.Join(errs, os.CopyFS(filepath.Join(dir, strings.ReplaceAll(filepath.Base(log), ":", "_")), os.DirFS(log)))
	}
	return errors.Join(errs, err)
}
