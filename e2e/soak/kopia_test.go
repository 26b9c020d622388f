package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

const password = "correct horse battery staple"

// stockKopia is kopia's own command line, as the user and host that own the
// maintenance.
type stockKopia struct {
	*testing.T
	ctx    context.Context
	binary string
	dir    string
}

func connectKopia(ctx context.Context, t *testing.T, binary, dir, repo string) stockKopia {
	t.Helper()
	k := stockKopia{T: t, ctx: ctx, binary: binary, dir: dir}
	k.run("repository", "connect", "filesystem", "--path", repo, "--override-username", "default", "--override-hostname", "default")
	return k
}

func (k stockKopia) run(args ...string) []byte {
	k.Helper()
	cmd := exec.CommandContext(k.ctx, k.binary, append([]string{"--config-file", filepath.Join(k.dir, "kopia.config")}, args...)...)
	cmd.Env = append(os.Environ(),
		"KOPIA_PASSWORD="+password, "KOPIA_CHECK_FOR_UPDATES=false",
		"KOPIA_CACHE_DIRECTORY="+filepath.Join(k.dir, "cache"), "KOPIA_LOG_DIR="+filepath.Join(k.dir, "log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var messages bytes.Buffer
	cmd.Stderr = &messages
	output, err := cmd.Output()
	require.NoError(k, err, "kopia %v: %s", args, &messages)
	return output
}

// snapshots lists all repo snapshots: the IDs of the complete ones, in ascending order, and
// the operations that have holds.
func (k stockKopia) snapshots() (ids, holds []string) {
	k.Helper()
	var list []struct {
		ID         string            `json:"id"`
		Incomplete string            `json:"incomplete"`
		Tags       map[string]string `json:"tags"`
	}
	require.NoError(k, json.Unmarshal(k.run("snapshot", "list", "--all", "--json", "--incomplete", "--max-results", "1000"), &list))
	for _, s := range list {
		if s.Incomplete == "" {
			ids = append(ids, s.ID)
		} else {
			holds = append(holds, s.Tags[repository.TagOperation])
		}
	}
	slices.Sort(ids)
	return ids, holds
}

// verify reads every byte of every repo snapshot from the repository. The cache could hide
// that something is lost there.
func (k stockKopia) verify() {
	k.Helper()
	k.run("cache", "clear")
	k.run("snapshot", "verify", "--verify-files-percent=100")
}

// restore makes a file of the volume of a repo snapshot, and returns its path. The next call
// replaces the file.
func (k stockKopia) restore(id string) string {
	k.Helper()
	dir := filepath.Join(k.dir, "restored")
	require.NoError(k, os.RemoveAll(dir))
	k.run("snapshot", "restore", id, dir)
	return filepath.Join(dir, "disk.raw")
}
