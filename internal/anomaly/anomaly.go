// Package anomaly compares what a backup found with the history of its volume, for one shape: much has
// changed, and none of it can be compressed. Encryption by an attacker looks like that.
//
// It is a rule, not a model. An increment is suspicious if
//
//   - it has at least a tenth of the volume, and five times the median of the increments before it, and
//   - at least 9 of 10 of its new bytes cannot be compressed, and of the median not more than 7 of 10.
//
// It needs three increments to compare with. It says nothing of volumes whose data never can be
// compressed (pictures, encrypted file systems), and it is wrong about somebody who copies archives or
// films onto a volume of texts.
package anomaly

import (
	"fmt"
	"slices"
)

// Figures are what an increment of a volume was. All are bytes.
type Figures struct {
	// Size is that of the volume.
	Size int64
	// Changed were read because they had changed, and New of them were new to the repository.
	Changed, New int64
	// Incompressible of the new ones cannot be compressed.
	Incompressible int64
}

const (
	// least is how many increments it takes to know what is usual, and most how many are looked at.
	least, most = 3, 10

	changedShare   = 0.1
	changedFactor  = 5
	incompressible = 0.9
	usual          = 0.7
)

// Suspect says why an increment is suspicious, or returns "". before are the earlier increments of the
// volume, oldest first; the last ones count.
func Suspect(before []Figures, now Figures) string {
	before = slices.DeleteFunc(slices.Clone(before), func(f Figures) bool { return f.Size <= 0 })
	if before = before[max(0, len(before)-most):]; len(before) < least || now.Size <= 0 || now.New <= 0 {
		return ""
	}
	changed := median(before, func(f Figures) float64 { return share(f.Changed, f.Size) })
	random := median(before, func(f Figures) float64 { return share(f.Incompressible, f.New) })
	nowChanged, nowRandom := share(now.Changed, now.Size), share(now.Incompressible, now.New)
	if nowChanged < changedShare || nowChanged < changedFactor*changed || nowRandom < incompressible || random > usual {
		return ""
	}
	return fmt.Sprintf("%.0f %% of the volume has changed, of which %.0f %% cannot be compressed; usual are %.1f %% and %.0f %%",
		100*nowChanged, 100*nowRandom, 100*changed, 100*random)
}

// share is a part of a whole, and 0 of nothing.
func share(part, whole int64) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

func median(all []Figures, value func(Figures) float64) float64 {
	values := make([]float64, len(all))
	for i, f := range all {
		values[i] = value(f)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
