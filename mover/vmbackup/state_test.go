package vmbackup

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// TestParseRefuses: a manager would release attempts, or double the size of a volume, for years.
func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{"attempt":4611686018427387904}`:             "attempt is 4611686018427387904, want 0 to 3",
		`{"attempt":-1}`:                              "attempt is -1",
		`{"attempt":1,"noSpace":4611686018427387904}`: "noSpace is 4611686018427387904, want 0 to 3",
		`{"attempt":1,"noSpace":-1}`:                  "noSpace is -1",
		`{"attempt":1,"ready":true}`:                  "has no files",
		`{`:                                           "read state of the backup of the VM",
	} {
		_, err := Parse(text)
		require.ErrorContains(t, err, want, text)
	}
}

// FuzzParse reads an annotation that whoever may write to the DataUpload may write.
func FuzzParse(f *testing.F) {
	f.Add("")
	f.Add(`{"attempt":2,"decided":true,"full":[{"reason":"NoParent","detail":"d"}],"files":{"backup":"b","checkpoint":"c","at":"2026-03-01T12:00:00Z","volume":"v"},"ready":true}`)
	f.Add(`{"attempt":-1,"noSpace":-1}`)
	f.Fuzz(func(t *testing.T, text string) {
		var s State
		var err error
		fuzztest.Document(t, len(text), func() { s, err = Parse(text) })
		if err != nil {
			require.Zero(t, s)
			return
		}
		require.False(t, s.Ready && s.Files == nil)
		require.Contains(t, []int{0, 1, 2, 3}, s.Attempt, "each is released")
		require.Contains(t, []int{0, 1, 2, 3}, s.NoSpace, "a volume doubles with each")
		again, err := Parse(s.String())
		require.NoError(t, err)
		require.Equal(t, s.String(), again.String())
	})
}
