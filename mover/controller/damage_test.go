package controller

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// damages are annotations that cannot be read.
var damages = map[string]struct{ key, value string }{
	"attempt is garbage":         {identity.AnnotationAttempt, "garbage"},
	"attempt has no number":      {identity.AnnotationAttempt, `{"started":true}`},
	"outcome is garbage":         {identity.AnnotationOutcome, "garbage"},
	"outcome has an odd phase":   {identity.AnnotationOutcome, `{"phase":"Sideways"}`},
	"outcome has a phase of now": {identity.AnnotationOutcome, `{"phase":"InProgress"}`},
}

// eachDamage damages an operation after each number of reconciliations on its way to the end,
// and calls check with the operation as it was before.
func eachDamage(t *testing.T, makeWorld func(*testing.T) *world, engineOf func(*world) *engine, name string, check func(w *world, was *operation.View, key string)) {
	t.Helper()
	for title, damage := range damages {
		for n, ended := 0, false; !ended; n++ {
			t.Run(fmt.Sprintf("%s after %d", title, n), func(t *testing.T) {
				w := makeWorld(t)
				e := engineOf(w)
				w.reconcileTimes(e, name, n)
				was := w.operation(e, name)
				if ended = was.Status.Phase.Terminal(); ended {
					require.Greater(t, n, 5, "the operation ended too soon to mean anything")
				}
				object, ok := was.Object().DeepCopyObject().(client.Object)
				require.True(t, ok)
				kube.SetAnnotation(object, damage.key, damage.value)
				w.update(object)
				require.Error(t, w.operation(e, name).Damage)
				_, err := w.sweep.sweep(w.ctx)
				require.NoError(t, err)
				check(w, was, damage.key)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// requireDamageReported checks how a damaged operation ended: as it was about to, if its
// outcome is decided and readable, otherwise as Failed.
func requireDamageReported(t *testing.T, was, is *operation.View, key string) {
	t.Helper()
	switch {
	case was.Status.Phase.Terminal():
		require.Equal(t, was.Status.Phase, is.Status.Phase)
	case was.Status.Outcome != nil && key == identity.AnnotationAttempt:
		require.Equal(t, was.Status.Outcome.Phase, is.Status.Phase)
	default:
		require.Equal(t, phase.Failed, is.Status.Phase)
		require.Contains(t, is.Status.Message, "read annotation "+key)
	}
}

// TestDamagedUploadFailsAlone: an upload whose annotations cannot be read fails, and the
// upload that waits for its slot completes.
func TestDamagedUploadFailsAlone(t *testing.T) {
	makeWorld := func(t *testing.T) *world {
		t.Helper()
		w := uploadWorld(t, anotherUpload()...)
		w.snapshots["snapshot-2"] = true
		w.uploads.live = edited(w.uploads.live, func(c *config.Config) { c.LoadConcurrency.GlobalConfig = 1 })
		return w
	}
	eachDamage(t, makeWorld, func(w *world) *engine { return w.uploads }, "du", func(w *world, was *operation.View, key string) {
		requireDamageReported(w.t, was, w.run(w.uploads, "du"), key)
		other := w.run(w.uploads, "du-2")
		require.Equal(w.t, phase.Completed, other.Status.Phase, other.Status.Message)
		w.sweepUp()
		w.requireNothingLeft([]string{"volume-src"}, nil)
	})
}

// TestDamagedDownloadLosesNoVolume: in the end the target has the volume, or there is none.
func TestDamagedDownloadLosesNoVolume(t *testing.T) {
	makeWorld := func(t *testing.T) *world {
		t.Helper()
		return downloadWorld(t)
	}
	eachDamage(t, makeWorld, func(w *world) *engine { return w.downs }, "dd", func(w *world, was *operation.View, key string) {
		requireDamageReported(w.t, was, w.run(w.downs, "dd"), key)
		w.sweepUp()
		requireAllOrNothing(w.t, w)
	})
}

// TestDamagedHoldsUpNobody: a new upload that is secured does not hold up a younger one if it
// can never start.
func TestDamagedHoldsUpNobody(t *testing.T) {
	for title, damage := range damages {
		t.Run(title, func(t *testing.T) {
			all := queued(t, "+", "+")
			require.False(t, hasSlot(all[1], all, nil, slots{total: 1}))
			kube.SetAnnotation(all[0].Upload, damage.key, damage.value)
			all[0] = operation.Of(all[0].Upload)
			require.True(t, hasSlot(all[1], all, nil, slots{total: 1}))
		})
	}
}
