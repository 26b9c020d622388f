package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/blockmover/blockmover/internal/identity"
)

// IsOurs reports whether the parameters name Blockmover as the mover. If not, the `custom`
// policy is for another plugin.
func IsOurs(params map[string]any) bool {
	return slices.ContainsFunc(movers, func(mover string) bool { return params[keyMover] == mover || params[keyDataMover] == mover })
}

// maxTypos is how many letters a name may have wrong and still look like ours.
const maxTypos = 2

// CheckForeign returns an error if the parameters of a policy that is not ours look like a misspelled one of ours. Nobody
// else would back up its volumes, and the backup would be Completed without them.
func CheckForeign(params map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		text, _ := params[key].(string)
		for _, mover := range movers {
			if typos(strings.ToLower(text), mover) > maxTypos {
				continue
			}
			if key == keyMover || key == keyDataMover {
				return fmt.Errorf("parse volume policy parameters: %s: %s: want %s, or a name that is less like it", key, text, mover)
			}
			return fmt.Errorf("parse volume policy parameters: %s: unknown key, want %s: %s", key, keyMover, mover)
		}
	}
	return nil
}

// typos is the Levenshtein distance of two words.
func typos(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// movers are the movers that a policy may name.
var movers = []string{identity.DataMover, identity.MoverKubeVirt}

// MatchParameters returns the parameters by which a policy may name Blockmover, for callers
// that can only ask whether a policy has them.
func MatchParameters() []map[string]any {
	all := make([]map[string]any, 0, 2*len(movers))
	for _, mover := range movers {
		all = append(all, map[string]any{keyMover: mover}, map[string]any{keyDataMover: mover})
	}
	return all
}
