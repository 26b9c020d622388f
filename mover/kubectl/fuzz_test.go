package kubectl

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// FuzzLog takes any text for the log of a Job. Only whole lines of at most a MiB are looked at, and no more memory is taken than that.
func FuzzLog(f *testing.F) {
	f.Add("reading\n{\"snapshotID\":\"k1\",\"ok\":true,\"size\":5,\"damage\":[{\"offset\":1,\"length\":2,\"error\":\"e\"}]}\n", uint8(0))
	f.Add("a\n", uint8(3))
	f.Fuzz(func(t *testing.T, text string, longer uint8) {
		// A line that has no end.
		log := text + strings.Repeat("x", int(longer)<<18) + "\n" + text
		fuzztest.Document(t, len(text)+1<<14, func() {
			require.NoError(t, eachLine(strings.NewReader(log), func(line string) error {
				require.LessOrEqual(t, len(line), 1<<20)
				require.NotContains(t, line, "\n")
				require.Contains(t, log, line)
				_, _ = parseVerification(line)
				return nil
			}))
		})
	})
}
