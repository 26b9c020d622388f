package controller

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A hop is a step of ours that persists something. The tests of hops kill the process that takes a
// step, after each call that persisted something: the call had its effect, nobody has seen its
// answer, and nothing that the process would have done next happens. A new process, which knows
// nothing, begins again. docs/design.md has the tables of the hops. Each call must belong to a hop
// of its table, and each hop must have a call.

// call is a call that has persisted something.
type call struct {
	// by is the process that made it.
	by process
	// verb and kind are "create" and "Pod", or for a worker only a verb.
	verb, kind      string
	namespace, name string
	// diff is what a patch changes, as JSON.
	diff string
}

// process is a process that can be killed.
type process string

const (
	plugin    process = "plugin"
	finalizer process = "plugin: finalize"
	manager   process = "manager"
	sweeping  process = "sweep"
	worker    process = "worker"
)

// is reports whether a call changes objects of a kind in one of the given ways.
func (c call) is(kind string, verbs ...string) bool {
	return c.kind == kind && slices.Contains(verbs, c.verb)
}

// sets reports whether a patch gives any of the fields or keys a value.
func (c call) sets(keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool {
		return strings.Contains(c.diff, `"`+key+`":`) && !strings.Contains(c.diff, `"`+key+`":null`)
	})
}

// touches reports whether a patch changes or removes any of the fields or keys.
func (c call) touches(keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return strings.Contains(c.diff, `"`+key+`":`) })
}

func (c call) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s %s/%s %s", c.by, c.verb, c.kind, c.namespace, c.name, c.diff))
}

// killer counts calls and says when their process is killed.
type killer struct {
	mu sync.Mutex
	// hopsOf names the hops of a call. It is nil while nothing is counted.
	hopsOf func(call) []string
	// only, if not "", is the process that is killed.
	only process
	// plan has the calls after which a process is killed. Each is counted from the kill before.
	plan  []int
	calls int
	// all counts all calls.
	all int
	// hops counts the calls of each hop. strange has the calls that belong to none.
	hops    map[string]int
	strange []string
}

// persisted notes a call, and reports whether its process is killed.
func (k *killer) persisted(c call) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all++
	if k.hopsOf == nil {
		return false
	}
	hops := k.hopsOf(c)
	if len(hops) == 0 {
		k.strange = append(k.strange, c.String())
	}
	for _, hop := range hops {
		k.hops[hop]++
	}
	if k.only != "" && c.by != k.only {
		return false
	}
	k.calls++
	if len(k.plan) == 0 || k.calls != k.plan[0] {
		return false
	}
	k.plan, k.calls = k.plan[1:], 0
	return true
}

// way is a way through the processes. It makes a world, goes the way, and checks what came of it.
type way struct {
	// only, if not "", is the process that is killed.
	only   process
	hopsOf func(call) []string
	world  func(t *testing.T) *hopWorld
	run    func(h *hopWorld)
	check  func(h *hopWorld)
}

// pairs is how many pairs of kills are tried for each flow.
const pairs = 8

// killEach goes the way without a kill, then with a kill after each call, and then with some pairs
// of kills. It adds the hops of all ways to seen: a hop of a failed backup needs a kill.
func (f way) killEach(t *testing.T, seen map[string]int) {
	t.Helper()
	k := f.try(t)
	if t.Failed() {
		return
	}
	calls := k.calls
	require.Positive(t, calls)
	count := func(k *killer) {
		for hop, n := range k.hops {
			seen[hop] += n
		}
	}
	count(k)
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for n := 1; n <= calls && !t.Failed(); n += stride {
		count(f.try(t, n))
	}
	if f.only != "" {
		return
	}
	random := rand.New(rand.NewPCG(1, uint64(calls)))
	for range pairs / stride {
		if t.Failed() {
			return
		}
		f.try(t, 1+random.IntN(calls), 1+random.IntN(calls))
	}
	t.Logf("%d kills, and %d pairs of kills", calls, pairs)
}

// try goes the way with the kills of a plan. What waits for the time to pass does not wait long.
func (f way) try(t *testing.T, plan ...int) (k *killer) {
	t.Helper()
	t.Run(fmt.Sprintf("killed after %v", plan), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := f.world(t)
			k = &h.killer
			k.hopsOf, k.only, k.plan, k.calls, k.hops = f.hopsOf, f.only, plan, 0, map[string]int{}
			f.run(h)
			k.hopsOf = nil
			require.Empty(t, k.strange, "these calls belong to no hop")
			require.LessOrEqual(t, len(k.plan), max(0, len(plan)-1), "the process did not come so far")
			f.check(h)
		})
	})
	return k
}

// live runs a process, and reports whether it came to its end.
func (h *hopWorld) live(by process, do func()) bool {
	h.t.Helper()
	h.by = by
	ended := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
		ended = true
	}()
	<-done
	if h.t.Failed() {
		h.t.FailNow()
	}
	return ended
}

// observe kills the process after a call to the API server.
func (h *hopWorld) observe(verb string, object client.Object, diff string) {
	kind := object.GetObjectKind().GroupVersionKind().Kind
	if kind == "" {
		kind = reflect.TypeOf(object).Elem().Name()
	}
	if h.persisted(call{h.by, verb, kind, object.GetNamespace(), object.GetName(), diff}) {
		runtime.Goexit()
	}
}

// requireTable compares the hops that were seen with a table of docs/design.md: that with the given
// number below a heading. Hops that persist nothing are not seen.
func requireTable(t *testing.T, heading string, number int, seen map[string]int) {
	t.Helper()
	if t.Failed() {
		return
	}
	tables := hopTables(t)[heading]
	require.Greater(t, len(tables), number, "docs/design.md has no such table of hops below %q", heading)
	require.ElementsMatch(t, tables[number], slices.Collect(maps.Keys(seen)), "the hops of docs/design.md and those that were seen")
}

var rowOfHops = regexp.MustCompile(`^\| ([^|]+) \| ([^|]+) \|`)

// hopTables returns the names of the hops of docs/design.md, by heading and table.
func hopTables(t *testing.T) map[string][][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/design.md")
	require.NoError(t, err)
	tables := map[string][][]string{}
	heading, inside := "", false
	for line := range strings.Lines(string(text)) {
		row := rowOfHops.FindStringSubmatch(line)
		switch {
		case strings.HasPrefix(line, "## "):
			heading, inside = strings.TrimSpace(line[3:]), false
		case row == nil:
			inside = inside && strings.HasPrefix(line, "|---")
		case row[1] == "hop":
			tables[heading], inside = append(tables[heading], nil), true
		case inside && !strings.HasPrefix(row[2], "nothing"):
			last := len(tables[heading]) - 1
			tables[heading][last] = append(tables[heading][last], row[1])
		}
	}
	return tables
}

// TestHopsAreTested: each table of hops in docs/design.md has a test here.
func TestHopsAreTested(t *testing.T) {
	found := map[string]int{}
	for heading, tables := range hopTables(t) {
		found[heading] = len(tables)
	}
	require.Equal(t, map[string]int{wayOfABackup: 2, wayOfARestore: 1, wayInPlace: 1, wayOfADeletion: 1}, found)
}

// The headings of docs/design.md with tables of hops.
const (
	wayOfABackup   = "The way of one backup, and what persists after each hop"
	wayOfARestore  = "The way of one restore"
	wayInPlace     = "The way of a restore in place"
	wayOfADeletion = "The way of a deletion"
)
