package scenarios

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestBadInput makes backups that cannot succeed. Each must end in time, with an error that a
// person can act on, and leave nothing behind.
func TestBadInput(t *testing.T) {
	s := newScenario(t)
	app := s.app("bad")
	for _, c := range []struct {
		name       string
		parameters string
		want       []string
	}{
		{"unknown-parameter", "{mover: blockmover, bakupType: full}", []string{"bakupType"}},
		{"malformed-value", "{mover: blockmover, fullEvery: weekly}", []string{"fullEvery", "weekly"}},
		{"unknown-type", "{mover: blockmover, backupType: differential}", []string{"backupType", "differential", "full", "incremental"}},
		{"no-snapshot-class", "{mover: blockmover, snapshotClass: no-such-class}", []string{"no-such-class"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := &scenario{T: t, kit: s.kit, ctx: s.ctx, suffix: s.suffix}
			policy := fmt.Sprintf("version: v1\nvolumePolicies:\n- conditions: {csi: {}}\n  action: {type: custom, parameters: %s}\n", c.parameters)
			sub.checkFails(c.name, append(sub.policy(policy), "--include-namespaces", app.Namespace), c.want...)
		})
	}
}

// TestMoverNotInstalled makes a backup that no manager accepts. The plugin must notice it.
func TestMoverNotInstalled(t *testing.T) {
	s := newScenario(t)
	app := s.app("orphan")
	s.scaleManager(0)
	t.Cleanup(func() { s.scaleManager(1) })
	s.setAcceptTimeout("10s")
	args := append(perVolume.args(s), "--include-namespaces", app.Namespace)
	s.checkFails("orphan", args, "was not accepted within 10s", "blockmover manager")

	// In the other way the action is Velero's own. It waits until its item operation timeout,
	// and what it took is released when the mover is installed again.
	name := s.name("orphan-per-backup")
	s.deleteBackupInTheEnd(name)
	backup, err := s.kit.Backup(s.ctx, name, append(perBackup.args(s), "--include-namespaces", app.Namespace, "--item-operation-timeout", "20s")...)
	require.NoError(t, err)
	require.Equal(t, "PartiallyFailed", backup.Status.Phase)
	s.scaleManager(1)
	s.checkNothingLeft()
}

// setAcceptTimeout configures the PVC backup action through its ConfigMap.
func (s *scenario) setAcceptTimeout(timeout string) {
	s.Helper()
	name := s.name("accept-timeout")
	require.NoError(s, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata:
  name: %s
  namespace: %s
  labels: {velero.io/plugin-config: "", blockmover.io/pvc-backup: BackupItemActionV2}
data: {acceptTimeout: %s}
`, name, s.kit.VeleroNamespace, timeout)))
	s.deleteConfigMapInTheEnd(name)
}

// checkFails makes a backup that must end in an error with these words, in `velero backup
// describe` and `velero backup logs`.
func (s *scenario) checkFails(base string, args []string, words ...string) {
	s.Helper()
	name := s.name(base)
	s.deleteBackupInTheEnd(name)
	start := time.Now()
	backup, err := s.kit.Backup(s.ctx, name, args...)
	require.NoError(s, err)
	s.Logf("backup %s is %s after %.1f s", name, backup.Status.Phase, time.Since(start).Seconds())
	require.Equal(s, "PartiallyFailed", backup.Status.Phase)
	require.Positive(s, backup.Status.Errors)
	described, err := s.kit.Describe(s.ctx, "backup", name)
	require.NoError(s, err)
	for _, word := range words {
		require.Contains(s, described, word)
	}
	s.checkNothingLeft()
}

func (s *scenario) scaleManager(replicas int) {
	ctx, cancel := cleanupContext()
	defer cancel()
	_, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "scale", "deployment/blockmover", fmt.Sprintf("--replicas=%d", replicas))
	require.NoError(s, err)
	require.NoError(s, s.kit.Wait(ctx, "manager to scale", time.Minute, func(ctx context.Context) (bool, string, error) {
		var d kit.Object
		err := s.kit.Get(ctx, &d, "-n", s.kit.VeleroNamespace, "deployment", "blockmover")
		return d.Status.ReadyReplicas == replicas, fmt.Sprint(d.Status.ReadyReplicas), err
	}))
}
