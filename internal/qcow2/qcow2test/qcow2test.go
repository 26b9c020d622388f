// Package qcow2test lets QEMU judge what a qcow2 file holds.
package qcow2test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// QEMU runs a program of QEMU and returns what it prints. It skips the test if the program is
// not installed.
func QEMU(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skipf("%s is not installed (Debian: qemu-utils; make cluster-build installs it)", args[0])
	}
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
	return string(out)
}

// Raw is the disk of a file and those below it, as QEMU reads it.
func Raw(t testing.TB, path string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "raw")
	QEMU(t, "qemu-img", "convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", path, out)
	data, err := os.ReadFile(out)
	require.NoError(t, err)
	return data
}

// RequireSame compares without printing megabytes.
func RequireSame(t testing.TB, want, got []byte) {
	t.Helper()
	require.Equal(t, len(want), len(got))
	for i := range want {
		if want[i] != got[i] {
			require.Failf(t, "data differs", "at offset %d: want %#x, got %#x", i, want[i], got[i])
		}
	}
}
