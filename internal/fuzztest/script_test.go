package fuzztest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const fuzzModule = "module example.org/fuzzed\n\ngo 1.24\n"

// TestScript runs hack/fuzz.sh on a module of its own.
func TestScript(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds a module")
	}
	script, err := filepath.Abs("../../hack/fuzz.sh")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte(fuzzModule), 0o600))
	targets, err := os.ReadFile("testdata/targets.txt")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "fuzzed_test.go"), targets, 0o600))
	run := func(pick string) (string, error) {
		cmd := exec.CommandContext(t.Context(), script, "50x", pick)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "FUZZ_MEMORY=512", "GOMAXPROCS=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %v\n%s", pick, err, out)
		return string(out), err
	}

	out, err := run("Fine")
	require.NoError(t, err)
	require.Contains(t, out, "[1/1] . FuzzFine\n")
	require.Contains(t, out, "1 fuzz targets, 50x each: 0 failed\n")
	require.NoDirExists(t, filepath.Join(dir, "testdata"), "new inputs are not in the tree")

	out, err = run("Fails|Fine")
	require.Error(t, err)
	require.Contains(t, out, "The input that fails is ./testdata/fuzz/FuzzFails/")
	require.Contains(t, out, "2 fuzz targets, 50x each: 1 failed\n        . FuzzFails\n")

	out, err = run("Runaway")
	require.Error(t, err)
	require.Contains(t, out, "terminated unexpectedly", "the process with the limit, and not the machine")

	_, err = run("Nothing")
	require.Error(t, err)
}
