package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestHelm lives with the chart instead of the kustomize base: install, back up, upgrade, restore,
// uninstall. Nothing stays. The base is there again after it, however it ends.
func TestHelm(t *testing.T) {
	s := newScenario(t)
	app := s.app("helm")
	sums := s.sums(app)
	backup := s.name("helm")
	s.deleteBackupInTheEnd(backup)
	s.checkNothingLeft()
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		// After a success there is neither a release nor the plugin.
		_, err := s.kit.Helm(ctx, "", "uninstall", "--ignore-not-found", "--wait", "--timeout", "2m")
		require.NoError(s, err)
		require.NoError(s, s.kit.Install(ctx))
	})
	require.NoError(t, s.kit.Uninstall(s.ctx))
	require.Empty(t, s.ours(), "the kustomize base leaves nothing")

	s.helm("", "install")
	manager := s.managerPod()
	pods := s.watchMoverPods()
	require.NoError(t, s.kit.MustBackup(s.ctx, backup, "--include-namespaces", app.Namespace, "--snapshot-move-data", "--data-mover", "blockmover"))
	s.checkFull(backup)
	s.checkNothingLeft()

	s.helm("{resources: {requests: {cpu: 20m}}, config: {podLabels: {helm: upgraded}}}", "upgrade")
	upgraded := s.managerPod()
	require.NotEqual(t, manager.Metadata.UID, upgraded.Metadata.UID, "other resources are another pod")
	s.restoreTo(backup, app.Namespace, "helm-copy", sums)
	pods.check()
	labels := map[string]int{}
	for _, pod := range pods.pods {
		labels[pod.Metadata.Labels["helm"]]++
	}
	require.Equal(t, map[string]int{"": 2, "upgraded": 2}, labels, "the pods of the restore have the configuration of the upgrade")
	doctor, err := s.kit.Kubectl(s.ctx, "blockmover", "-n", s.kit.VeleroNamespace, "doctor")
	require.NoError(t, err)
	t.Log(doctor)
	require.NoError(t, s.kit.DeleteBackup(s.ctx, backup))
	s.checkNothingLeft()

	start := time.Now()
	_, err = s.kit.Helm(s.ctx, "", "uninstall", "--wait", "--timeout", "2m")
	require.NoError(t, err)
	s.Logf("uninstalled in %.1f s", time.Since(start).Seconds())
	require.Empty(t, s.ours())
	server, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "get", "deployment", "velero", "-o", "jsonpath={.spec.template.spec.initContainers[*].image}")
	require.NoError(t, err)
	require.NotContains(t, server, s.kit.PluginImage)
}

// helm installs or upgrades the chart with values beside those of the images under test.
func (s *scenario) helm(values, command string) {
	s.Helper()
	mover, moverTag, _ := strings.Cut(s.kit.MoverImage, ":")
	plugin, pluginTag, _ := strings.Cut(s.kit.PluginImage, ":")
	start := time.Now()
	out, err := s.kit.Helm(s.ctx, values, command, s.kit.DeployDir, "--wait", "--timeout", "3m",
		"--set", "verify.enabled=true,kubevirt.enabled=true,plugin.install=true",
		"--set", "image.repository="+mover+",image.tag="+moverTag+",plugin.image.repository="+plugin+",plugin.image.tag="+pluginTag)
	require.NoError(s, err)
	s.Logf("helm %s took %.1f s:\n%s", command, time.Since(start).Seconds(), out)
}

// managerPod returns the one pod of the manager that is not being deleted.
func (s *scenario) managerPod() kit.Object {
	s.Helper()
	var pods []kit.Object
	s.wait("one manager", func(ctx context.Context) (bool, string, error) {
		var err error
		pods, err = s.kit.List(ctx, "-n", s.kit.VeleroNamespace, "pods", "-l", "app.kubernetes.io/name=blockmover,app.kubernetes.io/component=manager")
		return len(pods) == 1 && pods[0].Metadata.DeletionTimestamp == nil, fmt.Sprint(pods), err
	})
	return pods[0]
}

// ours returns all objects of the cluster that are labelled as parts of an installation, and the
// records of Helm.
func (s *scenario) ours() []kit.Object {
	s.Helper()
	kinds, err := s.kit.Kubectl(s.ctx, "api-resources", "--verbs=list,delete", "-o", "name")
	require.NoError(s, err)
	all := strings.Join(strings.Fields(kinds), ",")
	var found []kit.Object
	s.wait("pods to be gone", func(ctx context.Context) (bool, string, error) {
		var err error
		found, err = s.kit.List(ctx, all, "-A", "-l", "app.kubernetes.io/name=blockmover")
		running := 0
		for _, o := range found {
			if o.Kind == "Pod" {
				running++
			}
		}
		return running == 0, fmt.Sprint(found), err
	})
	records, err := s.kit.List(s.ctx, "secrets", "-A", "-l", "owner=helm,name=blockmover")
	require.NoError(s, err)
	return append(found, records...)
}
