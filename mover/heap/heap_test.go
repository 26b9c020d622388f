package heap_test

import (
	"math"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/mover/heap"
)

// TestMain prints the limit of a process that has called KeepBelow: the runtime reads the variable when it starts.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_KEEP_BELOW") != "" {
		heap.KeepBelow()
		_, _ = os.Stdout.WriteString(strconv.FormatInt(debug.SetMemoryLimit(-1), 10))
		return
	}
	os.Exit(m.Run())
}

func TestKeepBelow(t *testing.T) {
	for limit, want := range map[string]int64{"": math.MaxInt64, "268435456": 241591905, "100MiB": 94371840} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_KEEP_BELOW=1", "GOMEMLIMIT="+limit)
		out, err := cmd.Output()
		require.NoError(t, err)
		require.Equal(t, strconv.FormatInt(want, 10), strings.TrimSpace(string(out)), limit)
	}
}

func TestPeak(t *testing.T) {
	peak, err := heap.Peak(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, peak, int64(1<<20))
	_, err = heap.Peak(-1)
	require.ErrorIs(t, err, os.ErrNotExist)
}
