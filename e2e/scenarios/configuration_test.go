package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// nodeAgentConfiguration is a configuration of Velero's node agent as users have it, and one variable
// of ours. With the proxy, nothing works but for what NO_PROXY has.
const nodeAgentConfiguration = `{
  "loadConcurrency": {"globalConfig": 2, "prepareQueueLength": 10},
  "privilegedFsBackup": true,
  "backupPVC": {"%[1]s": {"readWriteOncePod": true, "secretNames": ["driver-token"], "configMapNames": ["driver-kms"]}},
  "restorePVC": {"secretNames": ["driver-token"], "configMapNames": ["driver-kms"]},
  "cachePVC": {"storageClass": "%[1]s", "residentThresholdInMB": 1},
  "podResources": {"cpuRequest": "100m", "memoryRequest": "256Mi"},
  "env": [{"name": "HTTPS_PROXY", "value": "http://127.0.0.1:1"}, {"name": "HTTP_PROXY", "value": "http://127.0.0.1:1"}, {"name": "NO_PROXY", "value": "10.0.0.0/8"}]
}`

// TestConfiguration copies a block of the node agent's configuration, and makes a round trip with it:
// Secrets for the driver, a cache volume and proxies.
func TestConfiguration(t *testing.T) {
	s := newScenario(t)
	velero := s.kit.VeleroNamespace
	app := s.app("configuration")
	for _, object := range []string{"secret generic driver-token --from-literal=key=of-the-tenant", "configmap driver-kms --from-literal=vault=here"} {
		_, err := s.kit.Kubectl(s.ctx, append([]string{"-n", app.Namespace, "create"}, strings.Fields(object)...)...)
		require.NoError(t, err)
	}
	before, err := s.kit.Kubectl(s.ctx, "-n", velero, "get", "configmap", "blockmover-config", "-o", "jsonpath={.data.config\\.yaml}")
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		s.setConfiguration(ctx, before)
	})
	s.setConfiguration(s.ctx, fmt.Sprintf(nodeAgentConfiguration, s.kit.StorageClass))
	log, err := s.kit.Kubectl(s.ctx, "-n", velero, "logs", "deployment/blockmover", "--all-pods", "--prefix=false")
	require.NoError(t, err)
	require.Contains(t, log, "privilegedFsBackup")

	args := append(s.policy(customPolicy), "--include-namespaces", app.Namespace)
	fails := func(base, want string) {
		t.Helper()
		name := s.name(base)
		s.deleteBackupInTheEnd(name)
		backup, err := s.kit.Backup(s.ctx, name, args...)
		require.NoError(t, err)
		require.Equal(t, "PartiallyFailed", backup.Status.Phase)
		described, err := s.kit.Velero(s.ctx, "backup", "describe", name, "--details")
		require.NoError(t, err)
		require.Contains(t, described, want)
		s.checkNothingLeft()
	}
	fails("no-right", "grant it with the component deploy/copies")

	s.grantCopies()
	_, err = s.kit.Kubectl(s.ctx, "-n", velero, "create", "secret", "generic", "driver-token", "--from-literal=key=of-velero")
	require.NoError(t, err)
	fails("not-ours", "is no copy of ours")
	for command, refusal := range map[string]string{
		"delete secret driver-token":                        "only its copies",
		"label secret driver-token blockmover.io/copy=true": "only its copies",
		"create configmap forged --from-literal=a=b":        "only its copies",
		"get secret velero-repo-credentials":                "forbidden",
		"get secrets":                                       "forbidden",
	} {
		_, err = s.kit.Kubectl(s.ctx, append([]string{"-n", velero, "--as", "system:serviceaccount:" + velero + ":blockmover-manager"}, strings.Fields(command)...)...)
		require.ErrorContains(t, err, refusal, command)
	}
	kept, err := s.kit.Kubectl(s.ctx, "-n", velero, "get", "secret", "driver-token", "-o", "jsonpath={.data.key}{.metadata.labels}")
	require.NoError(t, err)
	require.Equal(t, "b2YtdmVsZXJv", kept, "of-velero, and no label")
	_, err = s.kit.Kubectl(s.ctx, "-n", velero, "delete", "secret", "driver-token")
	require.NoError(t, err)

	sums := s.sums(app)
	pods := s.watchMoverPods()
	copies := s.watch("secrets,configmaps", "-l", "blockmover.io/copy")
	caches := s.watch("persistentvolumeclaims", "-l", "velero.io/exclude-from-backup=true,!blockmover.io/operation")
	backup := s.backup("configured", args...)
	s.checkNothingLeft()
	s.restoreTo(backup, app.Namespace, "configuration-restored", sums)
	s.checkNothingLeft()
	pods.check()
	withCache := 0
	for name, pod := range pods.pods {
		env := map[string]string{}
		for _, v := range pod.Spec.Containers[0].Env {
			env[v.Name] = v.Value
		}
		require.Equal(t, "http://127.0.0.1:1", env["HTTPS_PROXY"], name)
		for _, v := range pod.Spec.Volumes {
			if v.Name == "home" && v.Ephemeral != nil {
				withCache++
			}
		}
	}
	require.Equal(t, 2, withCache, "the pods of the restore")
	require.Len(t, caches.end(), 2)
	seen := copies.end()
	require.Contains(t, seen, "driver-token")
	require.Contains(t, seen, "driver-kms")
	for _, c := range seen {
		require.Contains(t, []string{app.Namespace + "/" + c.Metadata.Name, "configuration-restored-" + s.suffix + "/" + c.Metadata.Name}, c.Metadata.Annotations["blockmover.io/copy-of"])
	}
}

// grantCopies installs the component that lets the manager copy what the scenario names.
func (s *scenario) grantCopies() {
	s.Helper()
	s.kit.Components = []string{"copies"}
	s.kit.Patches = `patches:
- target: {name: blockmover-manager-copies, kind: "(Cluster)?Role"}
  patch: |-
    - {op: replace, path: /rules/0/resourceNames, value: [driver-token]}
    - {op: replace, path: /rules/1/resourceNames, value: [driver-kms]}
# The configuration is that of the scenario.
- target: {kind: ConfigMap, name: blockmover-config}
  patch: "{apiVersion: v1, kind: any, metadata: {name: any}, $patch: delete}"
`
	require.NoError(s, s.kit.InstallMover(s.ctx))
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		for _, args := range [][]string{
			{"clusterrole", "blockmover-manager-copies"},
			{"clusterrolebinding", "blockmover-manager-copies"},
			{"validatingadmissionpolicy", "blockmover-copies"},
			{"validatingadmissionpolicybinding", "blockmover-copies"},
			{"-n", s.kit.VeleroNamespace, "role", "blockmover-manager-copies"},
			{"-n", s.kit.VeleroNamespace, "rolebinding", "blockmover-manager-copies"},
		} {
			_, err := s.kit.Kubectl(ctx, append([]string{"delete"}, args...)...)
			require.NoError(s, err)
		}
	})
}

// watch collects objects of Velero's namespace by name until end is called.
func (s *scenario) watch(args ...string) *objectWatch {
	ctx, stop := context.WithCancel(s.ctx)
	s.Cleanup(stop)
	w := &objectWatch{stop: stop, found: map[string]kit.Object{}}
	w.done.Go(func() {
		poll(ctx, func() {
			objects, err := s.kit.List(ctx, append([]string{"-n", s.kit.VeleroNamespace}, args...)...)
			if err != nil {
				return
			}
			for _, o := range objects {
				w.found[o.Metadata.Name] = o
			}
		})
	})
	return w
}
