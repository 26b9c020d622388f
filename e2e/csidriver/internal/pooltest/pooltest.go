// Package pooltest gives tests a pool that leaves nothing behind.
package pooltest

import (
	"os"
	"testing"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/pool"
)

// size is that of a test's pool, which is sparse: 8 GiB.
const size = 8 << 30

// Open returns a new pool and its state directory. It is skipped without root.
// When the test ends, all that stands on the pool is unmounted and detached.
func Open(t *testing.T) (*pool.Pool, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a pool is mounted from a loop device, which needs root")
	}
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := pool.Cleanup(dir); err != nil {
			t.Errorf("clean up pool: %v", err)
		}
	})
	opened, err := pool.Open(dir, size)
	if err != nil {
		t.Fatalf("open pool: %v", err)
	}
	return opened, dir
}
