// Package scenarios tests Blockmover on a real cluster, as its administrator uses it: with
// velero and kubectl on the command line. Stock kopia and e2fsck are the judges. `make e2e`
// runs it, on the harness's cluster or on the one that KUBECONFIG names.
package scenarios

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

func TestMain(m *testing.M) {
	if os.Getenv("KUBECONFIG") == "" {
		fmt.Fprintln(os.Stderr, "scenarios: KUBECONFIG is not set: run them with `make e2e`")
		os.Exit(2)
	}
	logf := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := kit.FromEnv(logf).Install(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "scenarios: install blockmover: %v\n", err)
		os.Exit(1)
	}
	if err := startMonitor(ctx, kit.FromEnv(logf)); err != nil {
		fmt.Fprintf(os.Stderr, "scenarios: %v\n", err)
		os.Exit(1)
	}
	code := m.Run()
	if monitor != nil {
		monitor.Stop()
	}
	if err := kit.SaveAudit(); err != nil {
		fmt.Fprintf(os.Stderr, "scenarios: save audit log: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// scenario is the view that one test has of the cluster. It gives things unique names, and
// removes them in the end.
type scenario struct {
	*testing.T
	kit *kit.Kit
	ctx context.Context
	// suffix makes the names unique on a cluster that was used before.
	suffix string
}

func newScenario(t *testing.T) *scenario {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	t.Cleanup(cancel)
	return &scenario{T: t, kit: kit.FromEnv(t.Logf), ctx: ctx, suffix: fmt.Sprintf("%06x", time.Now().UnixNano()/1000%0xffffff)}
}

// name makes a unique name for an object of this run.
func (s *scenario) name(base string) string { return base + "-" + s.suffix }

// namespace makes a unique name for a namespace, and deletes the namespace in the end.
func (s *scenario) namespace(base string) string {
	name := s.name(base)
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		require.NoError(s, s.kit.DeleteNamespace(ctx, name))
	})
	return name
}

// app starts an application with initial data.
func (s *scenario) app(base string) *kit.App {
	s.Helper()
	app, err := s.kit.NewApp(s.ctx, s.namespace(base))
	require.NoError(s, err)
	require.NoError(s, app.WriteInitial(s.ctx))
	return app
}

func (s *scenario) sums(app *kit.App) kit.Sums {
	s.Helper()
	sums, err := app.Sums(s.ctx)
	require.NoError(s, err)
	return sums
}

// backup makes a backup, fails unless it is Completed, and deletes it in the end.
func (s *scenario) backup(base string, args ...string) string {
	s.Helper()
	name := s.name(base)
	s.deleteBackupInTheEnd(name)
	start := time.Now()
	require.NoError(s, s.kit.MustBackup(s.ctx, name, args...))
	s.Logf("backup %s completed in %.1f s", name, time.Since(start).Seconds())
	return name
}

func (s *scenario) deleteBackupInTheEnd(name string) {
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		require.NoError(s, s.kit.EnsureNoBackup(ctx, name))
	})
}

// restore makes a restore, and fails unless it is Completed.
func (s *scenario) restore(backup string, args ...string) {
	s.Helper()
	name := s.name(fmt.Sprintf("r%d", time.Now().UnixNano()%1000000))
	start := time.Now()
	require.NoError(s, s.kit.MustRestore(s.ctx, name, backup, args...))
	s.Logf("restore of %s completed in %.1f s (%s)", backup, time.Since(start).Seconds(), strings.Join(args, " "))
}

// restoreTo restores a backup of namespace from into another one, and checks
// the content.
func (s *scenario) restoreTo(backup, from, base string, want kit.Sums) {
	s.Helper()
	target := s.namespace(base)
	s.restore(backup, "--namespace-mappings", from+":"+target)
	s.checkContent(target, want)
}

func (s *scenario) checkContent(namespace string, want kit.Sums) {
	s.Helper()
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(s, err)
	require.Empty(s, want.Diff(s.sums(app)), "restored content of namespace %s", namespace)
	require.NoError(s, s.kit.CheckStamps(s.ctx, namespace))
}

func (s *scenario) checkNothingLeft() {
	s.Helper()
	require.NoError(s, s.kit.WaitNoLeftovers(s.ctx))
}

// policy stores a volume policy, and returns the arguments of `velero backup create` for it.
func (s *scenario) policy(yaml string) []string {
	s.Helper()
	name := s.name(fmt.Sprintf("policy-%d", time.Now().UnixNano()%1000000))
	_, err := s.kit.Run(s.ctx, yaml, "kubectl", "-n", s.kit.VeleroNamespace, "create", "configmap", name, "--from-file=policy.yaml=/dev/stdin")
	require.NoError(s, err)
	s.deleteConfigMapInTheEnd(name)
	return []string{"--resource-policies-configmap", name}
}

func (s *scenario) deleteConfigMapInTheEnd(name string) {
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "delete", "configmap", name)
		require.NoError(s, err)
	})
}

// cleanupContext is for cleaning up after the context of a test has ended.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Minute)
}
