package operation

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
)

// FuzzAnnotations: whoever may write to the object may write these. What is read makes sense, and is written as it was read.
func FuzzAnnotations(f *testing.F) {
	f.Add(`{"number":2,"since":"2026-03-01T12:00:00Z","started":true,"barren":1}`, `{"phase":"Failed","message":"m","at":"2026-03-01T12:00:00Z"}`,
		`{"at":"2026-03-01T12:00:00Z","ok":true}`, `{"at":"2026-03-01T12:00:00Z","result":"ok","filesystem":"ext4"}`)
	f.Add(`{"number":0}`, `{"phase":"New"}`, `[]`, `null`)
	f.Add(``, ``, ``, ``)
	f.Fuzz(func(t *testing.T, attempt, outcome, verified, tested string) {
		annotations := map[string]string{
			identity.AnnotationAttempt: attempt, identity.AnnotationOutcome: outcome,
			identity.AnnotationVerified: verified, identity.AnnotationTested: tested,
		}
		for _, object := range objects(annotations) {
			var v *View
			fuzztest.Document(t, 2*(len(attempt)+len(outcome)), func() { v = Of(object) })
			require.GreaterOrEqual(t, v.Status.Attempt.Number, 1)
			require.True(t, v.Status.Outcome == nil || v.Status.Outcome.Phase.Terminal())

			var again Status
			written, err := v.Status.annotations()
			require.NoError(t, err)
			for key, value := range written {
				if value == "" {
					delete(written, key)
				}
			}
			require.NoError(t, again.readAnnotations(written))
			if v.Damage == nil {
				require.Equal(t, v.Status.Attempt, again.Attempt)
				require.Equal(t, v.Status.Outcome, again.Outcome)
			}
			// Nothing that is read may leave the phases.
			next := phase.Next(v.Status.Phase, phase.Observation{Now: noon, Created: noon, Attempt: again.Attempt, Outcome: again.Outcome}, phase.Limits{Attempts: 1})
			require.NotEmpty(t, next.Next)
			if v.Upload == nil {
				continue
			}
			fuzztest.Document(t, len(verified)+len(tested), func() {
				if found, err := v.VerifiedOf(); err == nil {
					requireSame(t, identity.AnnotationVerified, *found, found.String())
				}
				if found, err := v.TestedOf(); err == nil {
					requireSame(t, identity.AnnotationTested, *found, found.String())
				}
			})
		}
	})
}

func requireSame[T any](t *testing.T, key string, want T, text string) {
	t.Helper()
	again, err := decode[T](map[string]string{key: text}, key)
	require.NoError(t, err)
	require.Equal(t, want, *again)
}
