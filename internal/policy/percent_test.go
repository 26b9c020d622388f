package policy

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPercent(t *testing.T) {
	for text, want := range map[string]Percent{"1%": 1, "0%": 0, "0": 0, "100%": 100, "0.5%": 0.5, "7%": 7, "1e-3%": 0.001} {
		got, err := ParsePercent(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		back, err := ParsePercent(got.String())
		require.NoError(t, err, got)
		require.Equal(t, got, back)
	}
	for _, text := range []string{"", "%", "1", "0.0", "101%", "100.1%", "-1%", "-0%", "NaN%", "Inf%", "1 %", "1%%", "one%", "true"} {
		_, err := ParsePercent(text)
		require.ErrorContains(t, err, "want a percentage", text)
	}
	require.Equal(t, "1%", DefaultAudit.String())
}

func FuzzParsePercent(f *testing.F) {
	f.Add("0.5%")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePercent(text)
		if err != nil {
			return
		}
		if back, err := ParsePercent(p.String()); err != nil || back != p {
			t.Fatalf("%q is %v, and that is %v again: %v", text, p, back, err)
		}
	})
}
