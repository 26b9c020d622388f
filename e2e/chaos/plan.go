// Package chaos lets faults hit a cluster that makes backups and restores, and judges what comes
// out. `make chaos` runs it, on a cluster of the harness.
//
// A round is drawn from its seed: backups, restores and deletions of several applications, and
// faults of everything that they depend on, at random moments. Then the faults are over, and the
// judge looks. It knows Velero's API, the storage and stock kopia, and shares no code with
// Blockmover.
package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Operation is something that an administrator asks for.
type Operation struct {
	Kind string
	// App is the index of the application.
	App int
	// At is when it starts, from the start of the round.
	At time.Duration
	// Full asks for a full backup. PerVolume chooses by a volume policy, and not for the whole
	// backup.
	Full, PerVolume bool
	// Pick chooses among the backups that there are.
	Pick uint64
}

// Kinds of operations.
const (
	Backup  = "backup"
	Restore = "restore"
	Delete  = "delete"
	// InPlace restores into the volumes of the application, which is stopped for it.
	InPlace = "in-place"
)

// Fault is one fault of a round.
type Fault struct {
	Name string `json:"name"`
	// At is when it begins, from the start of the round, and For how long it lasts.
	At  time.Duration `json:"at"`
	For time.Duration `json:"for"`
	// Pick chooses what it hits.
	Pick uint64 `json:"-"`
}

// Round is what happens in one round.
type Round struct {
	Seed       uint64
	Operations []Operation
	Faults     []Fault
}

// Mix has how likely each fault is, beside the others. A fault of weight 0 does not happen.
type Mix map[string]int

// ParseMix reads a list like "worker=3,s3-cut". A name stands for itself, and for all faults that
// begin with it and a dash. Its weight is 1 if there is none. All that is not in the list has
// weight 0. An empty list is the default.
func ParseMix(text string) (Mix, error) {
	mix := Mix{}
	for _, f := range faults {
		if text == "" {
			mix[f.name] = f.weight
		}
	}
	for item := range strings.SplitSeq(text, ",") {
		if item == "" {
			continue
		}
		name, value, given := strings.Cut(item, "=")
		weight := 1
		if given {
			var err error
			if weight, err = strconv.Atoi(value); err != nil || weight < 0 {
				return nil, fmt.Errorf("parse fault mix: weight %q of %s is not a number from 0 on", value, name)
			}
		}
		found := false
		for _, f := range faults {
			if f.name == name || strings.HasPrefix(f.name, name+"-") {
				mix[f.name], found = weight, true
			}
		}
		if !found {
			return nil, fmt.Errorf("parse fault mix: there is no fault %q, only %s", name, strings.Join(faultNames(), ", "))
		}
	}
	total := 0
	for _, weight := range mix {
		total += weight
	}
	if total == 0 {
		return nil, fmt.Errorf("parse fault mix %q: no fault is left", text)
	}
	return mix, nil
}

func faultNames() []string {
	names := make([]string, 0, len(faults))
	for _, f := range faults {
		names = append(names, f.name)
	}
	return names
}

// Faults begin when there is something to hit, during span. longest is how long one lasts.
const (
	earliest = 4 * time.Second
	span     = 30 * time.Second
	longest  = 20 * time.Second
)

// Draw draws a round with so many faults.
func Draw(seed uint64, apps, count int, mix Mix) Round {
	random := rand.New(rand.NewPCG(seed, 0))
	r := Round{Seed: seed}
	between := func(limit time.Duration) time.Duration {
		return time.Duration(random.Int64N(int64(limit))).Round(time.Millisecond)
	}
	add := func(kind string, app int, limit time.Duration) {
		r.Operations = append(r.Operations, Operation{
			Kind: kind, App: app, At: between(limit), Full: random.IntN(5) == 0, PerVolume: random.IntN(2) == 0, Pick: random.Uint64(),
		})
	}
	// Each round backs up most applications, some of them twice.
	for _, app := range random.Perm(apps)[:apps-random.IntN(2)] {
		add(Backup, app, 10*time.Second)
	}
	if random.IntN(4) == 0 {
		add(Backup, random.IntN(apps), 15*time.Second)
	}
	for range 1 + random.IntN(3) {
		add(Restore, random.IntN(apps), 15*time.Second)
	}
	if random.IntN(2) == 0 {
		add(Delete, random.IntN(apps), 20*time.Second)
	}
	if app := random.IntN(apps); random.IntN(3) == 0 {
		// A stopped application has no hooks, and what is restored in place cannot be backed up.
		r.Operations = slices.DeleteFunc(r.Operations, func(o Operation) bool { return o.App == app && o.Kind == Backup })
		add(InPlace, app, 5*time.Second)
	}
	weighted := make([]string, 0, len(faults))
	for _, f := range faults {
		weighted = append(weighted, slices.Repeat([]string{f.name}, mix[f.name])...)
	}
	for len(r.Faults) < count {
		at := earliest + between(span)
		// One in three is a pair.
		n := 1 + max(0, random.IntN(3)-1)
		for range min(n, count-len(r.Faults)) {
			r.Faults = append(r.Faults, Fault{Name: weighted[random.IntN(len(weighted))], At: at, For: time.Second + between(longest), Pick: random.Uint64()})
		}
	}
	slices.SortStableFunc(r.Faults, func(a, b Fault) int { return int(a.At - b.At) })
	return r
}
