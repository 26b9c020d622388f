package datapath

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

// TestWindow: the bytes in flight are those that a checkpoint leaves room for.
func TestWindow(t *testing.T) {
	for _, o := range []Options{{}, {Workers: 1}, {Workers: 16}, {Workers: 64}, {ReadSize: 64 << 20}, {ReadSize: 1 << 30}, {ReadSize: 1}} {
		o = o.withDefaults(1 << 20)
		w := window(o)
		require.Positive(t, w)
		require.LessOrEqual(t, w, 2*int64(o.Workers))
		if w > 1 {
			require.LessOrEqual(t, w*o.ReadSize, int64(repository.MaxInFlight))
		}
	}
}
