package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// envOutage is how long TestObjectStoreAway keeps the object store away.
const envOutage = "BLOCKMOVER_OUTAGE"

// TestObjectStoreAway kills the S3 server in the middle of a backup and of a restore, for longer
// than a request is repeated. Both complete, and nobody has to do anything.
func TestObjectStoreAway(t *testing.T) {
	s := newScenario(t)
	s.harness()
	outage := 75 * time.Second
	if text := os.Getenv(envOutage); text != "" {
		var err error
		outage, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	app := s.app("away")
	want := s.sums(app)
	s.limitRate("8Mi")

	name := s.name("away")
	s.deleteBackupInTheEnd(name)
	_, err := s.kit.Velero(s.ctx, append([]string{"backup", "create", name}, append(perVolume.args(s), "--include-namespaces", app.Namespace)...)...)
	require.NoError(t, err)
	s.outageDuring("datauploads.velero.io", "velero.io/backup-name="+name, outage)
	require.NoError(t, s.kit.CompleteBackup(s.ctx, name))

	// Velero validates a location once a minute, and restores from none that was away.
	_, err = s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "wait", "backupstoragelocations.velero.io/default",
		"--for=jsonpath={.status.phase}=Available", "--timeout=150s")
	require.NoError(t, err)

	target := s.namespace("away-copy")
	restore := s.name("away-restore")
	_, err = s.kit.Velero(s.ctx, "restore", "create", restore, "--from-backup", name, "--namespace-mappings", app.Namespace+":"+target)
	require.NoError(t, err)
	s.outageDuring("datadownloads.velero.io", "velero.io/restore-name="+restore, outage)
	require.NoError(t, s.kit.Wait(s.ctx, "restore to complete", 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		var o kit.Object
		err := s.kit.Get(ctx, &o, "-n", s.kit.VeleroNamespace, "restores.velero.io", restore)
		return o.Status.Phase == "Completed", o.Status.Phase, err
	}))
	s.checkContent(target, want)
	s.checkNothingLeft()
}

// outageDuring kills the S3 server as soon as an operation moves data, and starts it again.
func (s *scenario) outageDuring(kind, selector string, outage time.Duration) {
	s.Helper()
	s.wait("bytes to be moved", func(ctx context.Context) (bool, string, error) {
		out, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "get", kind, "-l", selector, "-o", "jsonpath={.items[*].status.progress.bytesDone}")
		for _, done := range strings.Fields(out) {
			if n, _ := strconv.ParseInt(done, 10, 64); n > 16<<20 {
				return true, out, nil
			}
		}
		return false, out, err
	})
	restart := s.kill("versitygw")
	time.Sleep(outage)
	out, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "get", kind, "-l", selector,
		"-o", `jsonpath={range .items[*]}{.status.phase} {.status.progress.bytesDone}/{.status.progress.totalBytes} {.metadata.annotations.blockmover\.io/attempt}{"\n"}{end}`)
	require.NoError(s, err)
	s.Logf("after %s without the object store:\n%s", outage, out)
	restart()
}

// kill kills a component of the harness's cluster, and returns what lets it start again.
func (s *scenario) kill(component string) (restart func()) {
	s.Helper()
	s.harness()
	state := os.Getenv("BLOCKMOVER_CLUSTER_STATE")
	text, err := os.ReadFile(filepath.Join(state, "status.json"))
	require.NoError(s, err)
	var status struct {
		Components []struct {
			Name string
			PID  int
		}
	}
	require.NoError(s, json.Unmarshal(text, &status))
	for _, c := range status.Components {
		if c.Name != component {
			continue
		}
		hold := filepath.Join(state, "hold", component)
		require.NoError(s, os.WriteFile(hold, nil, 0o600))
		let := func() {
			if err := os.Remove(hold); err != nil && !errors.Is(err, os.ErrNotExist) {
				s.Errorf("let %s start again: %v", component, err)
			}
		}
		s.Cleanup(let)
		require.NoError(s, syscall.Kill(c.PID, syscall.SIGKILL))
		return let
	}
	s.Fatalf("there is no component %s", component)
	return nil
}

// limitRate limits mover pods until the end of the test.
func (s *scenario) limitRate(rate string) {
	s.Helper()
	var config struct{ Data map[string]string }
	text, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "get", "configmap", "blockmover-config", "-o", "json")
	require.NoError(s, err)
	require.NoError(s, json.Unmarshal([]byte(text), &config))
	before := config.Data["config.yaml"]
	configure := func(ctx context.Context, document string) {
		patch, err := json.Marshal(map[string]any{"data": map[string]string{"config.yaml": document}})
		require.NoError(s, err)
		for _, args := range [][]string{
			{"patch", "configmap", "blockmover-config", "--type=merge", "-p", string(patch)},
			{"rollout", "restart", "deployment/blockmover"},
			{"rollout", "status", "deployment/blockmover", "--timeout=120s"},
		} {
			_, err := s.kit.Kubectl(ctx, append([]string{"-n", s.kit.VeleroNamespace}, args...)...)
			require.NoError(s, err)
		}
	}
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		configure(ctx, before)
	})
	configure(s.ctx, fmt.Sprintf("%s\nrateLimit: %s\n", before, rate))
}
