package anomaly

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSuspect(t *testing.T) {
	const gib = 1 << 30
	// quiet is an increment of a volume of texts: one percent, of which little cannot be compressed.
	quiet := Figures{Size: 100 * gib, Changed: gib, New: gib, Incompressible: gib / 10}
	// films are never compressible.
	films := Figures{Size: 100 * gib, Changed: gib, New: gib, Incompressible: gib}
	encrypted := Figures{Size: 100 * gib, Changed: 60 * gib, New: 60 * gib, Incompressible: 60 * gib}
	times := func(n int, f Figures) (all []Figures) {
		for range n {
			all = append(all, f)
		}
		return all
	}
	for name, tc := range map[string]struct {
		before  []Figures
		now     Figures
		suspect bool
	}{
		"encrypted":                    {times(5, quiet), encrypted, true},
		"as usual":                     {times(5, quiet), quiet, false},
		"no history":                   {times(2, quiet), encrypted, false},
		"always films":                 {times(5, films), encrypted, false},
		"much, but compressible":       {times(5, quiet), Figures{Size: 100 * gib, Changed: 60 * gib, New: 60 * gib, Incompressible: 30 * gib}, false},
		"little":                       {times(5, quiet), Figures{Size: 100 * gib, Changed: 9 * gib, New: 9 * gib, Incompressible: 9 * gib}, false},
		"a volume that changes a lot":  {times(5, Figures{Size: 100 * gib, Changed: 30 * gib, New: 30 * gib}), encrypted, false},
		"nothing new":                  {times(5, quiet), Figures{Size: 100 * gib, Changed: 60 * gib}, false},
		"one outlier in the history":   {append(times(4, quiet), encrypted), encrypted, true},
		"it has become usual":          {append(times(4, quiet), times(6, encrypted)...), encrypted, false},
		"only the last ones count":     {append(times(50, films), times(10, quiet)...), encrypted, true},
		"no sizes":                     {times(5, Figures{}), Figures{}, false},
		"a history without any figure": {times(5, Figures{Size: gib}), Figures{Size: gib, Changed: gib, New: gib, Incompressible: gib}, true},
	} {
		require.Equal(t, tc.suspect, Suspect(tc.before, tc.now) != "", name)
	}
	require.Equal(t, "60 % of the volume has changed, of which 100 % cannot be compressed; usual are 1.0 % and 10 %", Suspect(times(3, quiet), encrypted))
}
