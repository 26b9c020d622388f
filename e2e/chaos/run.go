package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/blockmover/blockmover/e2e/kit"
)

// Options are those of a run.
type Options struct {
	// Log has a line of JSON for each round. A run goes on after the last one.
	Log string
	// Seed is that of the first round; 0 is the one after the last in the log.
	Seed uint64
	// Duration is for how long rounds begin, and Rounds how many, if it is not 0.
	Duration time.Duration
	Rounds   int
	// Faults is how many a round has.
	Faults int
	Mix    Mix
	// KeepGoing goes on after a round in which something was wrong.
	KeepGoing bool
}

// Run runs rounds, and returns an error if something was wrong in one.
func Run(ctx context.Context, k *kit.Kit, o Options) (err error) {
	before, err := readLog(o.Log)
	if err != nil {
		return err
	}
	seed := o.Seed
	if seed == 0 {
		seed = 1
		for _, r := range before {
			seed = max(seed, r.Seed+1)
		}
	}
	w, err := newWorld(ctx, k)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	var results []Result
	end := time.Now().Add(o.Duration)
	for ; ctx.Err() == nil && time.Now().Before(end) && (o.Rounds == 0 || len(results) < o.Rounds); seed++ {
		round := Draw(seed, len(w.apps), o.Faults, o.Mix)
		k.Log("round %d: %+v", seed, round.Operations)
		r := w.round(ctx, round)
		if ctx.Err() != nil { // it was interrupted, so it says nothing
			break
		}
		results = append(results, r)
		if err := appendLog(o.Log, r); err != nil {
			return err
		}
		if len(r.Wrong) > 0 {
			dir := filepath.Join(filepath.Dir(o.Log), fmt.Sprintf("seed-%d", seed))
			k.Log("round %d: WRONG: %q; evidence is in %s", seed, r.Wrong, dir)
			if err := w.evidence(ctx, dir); err != nil {
				k.Log("collect evidence: %v", err)
			}
			if !o.KeepGoing {
				break
			}
		}
		k.Log("round %d took %.0f s", seed, r.Seconds)
	}
	k.Log("this run: %s", Summarize(results))
	all, err := readLog(o.Log)
	if err != nil {
		return err
	}
	k.Log("all runs of %s: %s", o.Log, Summarize(all))
	if s := Summarize(results); s.Wrong > 0 {
		return fmt.Errorf("%d of %d rounds were wrong", s.Wrong, s.Rounds)
	}
	return ctx.Err()
}

// Summary adds up results.
type Summary struct {
	Rounds, Wrong, Faults, Missed int
	// Backups, Restores and the volumes of both, by phase.
	Backups, Restores, Volumes map[string]int
	// Again are the volumes that took more than one mover pod, and Zero those of them that read
	// everything again.
	Again, Zero int
}

// Summarize adds up results.
func Summarize(results []Result) Summary {
	s := Summary{Backups: map[string]int{}, Restores: map[string]int{}, Volumes: map[string]int{}}
	for _, r := range results {
		s.Rounds++
		if len(r.Wrong) > 0 {
			s.Wrong++
		}
		for _, h := range r.Hits {
			if h.Missed != "" {
				s.Missed++
			} else {
				s.Faults++
			}
		}
		for _, e := range r.Ended {
			if e.Kind == Backup {
				s.Backups[e.Phase]++
			} else {
				s.Restores[e.Phase]++
			}
			for _, v := range e.Volumes {
				s.Volumes[v.Phase]++
				if v.Attempts > 1 {
					s.Again++
					if v.ReadBefore > 0 && v.Read >= v.ReadBefore {
						s.Zero++
					}
				}
			}
		}
	}
	return s
}

// String is a line of text.
func (s Summary) String() string {
	return fmt.Sprintf("%d rounds, %d wrong; %d faults hit, %d had nothing to hit; backups %v; restores %v; volumes %v, of which %d took several mover pods, and %d began anew after some data was read",
		s.Rounds, s.Wrong, s.Faults, s.Missed, s.Backups, s.Restores, s.Volumes, s.Again, s.Zero)
}

func appendLog(file string, r Result) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make directory of the log: %w", err)
	}
	log, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	_, err = log.Write(append(line, '\n'))
	return errors.Join(err, log.Close())
}

func readLog(file string) ([]Result, error) {
	log, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer func() { _ = log.Close() }()
	var results []Result
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var r Result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("read log %s: %w", file, err)
		}
		results = append(results, r)
	}
	return results, lines.Err()
}
