package controller

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// seeds is how often chaos is tried. The tests of hops kill at each step; here it is several faults at
// once, and lost pods, and an end at any time.
const seeds = 10

// TestUploadChaos lets calls fail at random, mover pods vanish, and the DataUpload be
// canceled or deleted at some moment. In every case the source stays, and nothing else does.
func TestUploadChaos(t *testing.T) {
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := uploadWorld(t)
			w.chaos(seed, w.uploads, "du", func() client.Object { return w.dataUpload() })
			w.requireNothingLeft([]string{"volume-src"}, nil)
		})
	}
}

// TestDownloadChaos does the same. In the end the target has the volume, or there is none.
func TestDownloadChaos(t *testing.T) {
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := downloadWorld(t)
			w.chaos(seed, w.downs, "dd", func() client.Object { return w.operation(w.downs, "dd").Object() })
			requireAllOrNothing(t, w)
		})
	}
}

// chaos runs an operation to its end and sweeps.
func (w *world) chaos(seed uint64, e *engine, name string, object func() client.Object) {
	w.t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	w.faults.random = random
	w.podEnds = func(pod *corev1.Pod) bool {
		if random.IntN(10) == 0 {
			require.NoError(w.t, w.c.Delete(w.ctx, pod))
			return false
		}
		return random.IntN(3) == 0
	}
	interruption, at := random.IntN(3), random.IntN(40)
	const rounds = 200
	for round := range rounds {
		_, _ = e.Reconcile(w.ctx, requestFor(name)) // its errors are the chaos
		if random.IntN(2) == 0 {
			w.step()
		}
		if round == at && interruption == 1 {
			w.cancel(object())
		}
		if round == at && interruption == 2 {
			require.NoError(w.t, w.c.Delete(w.ctx, object()))
			break
		}
		if w.operation(e, name).Status.Phase.Terminal() {
			break
		}
	}
	if interruption != 2 {
		op := w.operation(e, name)
		require.True(w.t, op.Status.Phase.Terminal(), "phase %q: %s", op.Status.Phase, op.Status.Message)
	}
	w.faults.random = nil
	w.sweepUp()
}
