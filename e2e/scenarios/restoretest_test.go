package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// restoreTestManifest is a namespace with an XFS that no pod uses any more, and a disk.
const restoreTestManifest = `apiVersion: v1
kind: Namespace
metadata: {name: $NAMESPACE}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: xfs, namespace: $NAMESPACE}
spec: {accessModes: [ReadWriteOnce], storageClassName: $XFS, resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: broken, namespace: $NAMESPACE}
spec: {accessModes: [ReadWriteOnce], storageClassName: $CLASS, volumeMode: Block, resources: {requests: {storage: 32Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, namespace: $NAMESPACE}
spec:
  restartPolicy: Never
  containers:
  - name: writer
    image: $IMAGE
    command: [sh, -ec, "
      dd if=/dev/urandom of=/xfs/noise bs=64k count=64; mkdir /xfs/a; for i in 1 2 3 4 5; do echo $i > /xfs/a/$i; done;
      mke2fs /dev/disk; yes Z | head -c 1048576 | dd of=/dev/disk bs=4096 seek=2 conv=notrunc; sync"]
    volumeMounts: [{name: xfs, mountPath: /xfs}]
    volumeDevices: [{name: broken, devicePath: /dev/disk}]
  volumes: [{name: xfs, persistentVolumeClaim: {claimName: xfs}}, {name: broken, persistentVolumeClaim: {claimName: broken}}]
`

// TestRestoreTest restores images onto scratch volumes, and checks what is on them: an ext4 in use, an
// XFS, a disk without a file system, and a file system that was broken before its backup.
func TestRestoreTest(t *testing.T) {
	s := newScenario(t)
	s.harness()
	app := s.app("restoretest")
	other := s.namespace("restoretest-other")
	class := s.storageClass("restoretest-xfs", "csi.storage.k8s.io/fstype: xfs")
	require.NoError(t, s.kit.Apply(s.ctx, strings.NewReplacer("$NAMESPACE", other, "$IMAGE", s.kit.ToolsImage, "$CLASS", s.kit.StorageClass, "$XFS", class).Replace(restoreTestManifest)))
	_, err := s.kit.Kubectl(s.ctx, "-n", other, "wait", "pod/writer", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
	require.NoError(t, err)
	_, err = s.kit.Kubectl(s.ctx, "-n", other, "delete", "pod/writer", "--timeout=60s")
	require.NoError(t, err)
	backup := s.backup("tested", append(s.policy("version: v1\nvolumePolicies:\n- conditions: {csi: {}}\n  action: {type: custom, parameters: {mover: blockmover, retainSnapshot: never}}\n"),
		"--include-namespaces", app.Namespace+","+other)...)

	velero := []string{"-n", s.kit.VeleroNamespace}
	plugin := func(args ...string) (string, error) {
		return s.kit.Kubectl(s.ctx, append(append([]string{"blockmover"}, velero...), args...)...)
	}
	pods := s.watch("pods", "-l", "app.kubernetes.io/component=reader")
	out, err := plugin("verify", "--restore-test", backup)
	t.Log(out)
	require.ErrorContains(t, err, "1 of 4 restore tests found errors or could not be made")
	want := map[string]string{
		app.Namespace + "/" + kit.FilesPVC: "ok +ext4", app.Namespace + "/" + kit.DiskPVC: "no file system",
		other + "/xfs": "ok +xfs", other + "/broken": "errors +ext4",
	}
	for volume, result := range want {
		require.Regexp(t, volume+" +"+backup+" +"+result, out)
	}
	for name, pod := range pods.end() {
		for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
			require.Equal(t, []string{"ALL"}, c.SecurityContext.Capabilities.Drop, name)
			require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, name)
			require.False(t, *c.SecurityContext.AllowPrivilegeEscalation, name)
			if c.Name == "check" {
				require.Empty(t, c.VolumeMounts, "%s: what looks at the bytes of a tenant has no token", name)
			}
		}
	}
	s.checkNothingLeft()
	s.checkNoJobs()

	chain, err := plugin("chain", other+"/broken", "-o", "json")
	require.NoError(t, err)
	var images []struct {
		Verified struct{ OK bool }
		Tested   struct{ Result, Filesystem, Detail string }
	}
	require.NoError(t, json.Unmarshal([]byte(chain), &images))
	require.Len(t, images, 1)
	require.True(t, images[0].Verified.OK, "the image has what the volume had")
	require.Equal(t, "errors", images[0].Tested.Result)
	require.NotEmpty(t, images[0].Tested.Detail)
	for _, volume := range []string{other + "/broken", app.Namespace + "/" + kit.FilesPVC} {
		text, err := plugin("chain", volume)
		require.NoError(t, err)
		t.Log(text)
	}
	events, err := s.kit.Kubectl(s.ctx, append(velero, "get", "events", "--field-selector", "involvedObject.name="+backup, "-o", "jsonpath={.items[*].reason}")...)
	require.NoError(t, err)
	require.Contains(t, events, "FileSystemErrors")
	metrics, err := s.kit.Kubectl(s.ctx, "get", "--raw", s.managerMetrics())
	require.NoError(t, err)
	require.Contains(t, metrics, "blockmover_broken_filesystems 1")
	require.Regexp(t, `blockmover_volume_last_restore_test_timestamp_seconds\{volume="files",volume_namespace="`+app.Namespace+`"\} [0-9.e+]+`, metrics)

	out, err = plugin("verify", "--restore-test", other+"/xfs", "--storage-class", "missing", "--timeout", "15s")
	t.Log(out)
	require.Error(t, err)
	s.checkNoJobs()
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Kubectl(ctx, "delete", "clusterrole/blockmover-restore-test", "clusterrolebinding/blockmover-restore-test")
		require.NoError(s, err)
	})
	require.Regexp(t, app.Namespace+"/"+kit.FilesPVC+" .* ok +ext4", s.runCronJob("blockmover-restore-test", "verify", "restore-test"))
	s.checkNothingLeft()
}

// managerMetrics is the path of the metrics of the manager that leads.
func (s *scenario) managerMetrics() string {
	s.Helper()
	pods, err := s.kit.List(s.ctx, "-n", s.kit.VeleroNamespace, "pods", "-l", "app.kubernetes.io/name=blockmover,app.kubernetes.io/component=manager")
	require.NoError(s, err)
	require.Len(s, pods, 1)
	return fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:8080/proxy/metrics", s.kit.VeleroNamespace, pods[0].Metadata.Name)
}

// checkNoJobs waits until no Job of the plugin is there.
func (s *scenario) checkNoJobs() {
	s.Helper()
	require.NoError(s, s.kit.Wait(s.ctx, "Jobs to be gone", time.Minute, func(ctx context.Context) (bool, string, error) {
		jobs, err := s.kit.List(ctx, "-n", s.kit.VeleroNamespace, "jobs", "-l", "app.kubernetes.io/component=reader")
		return len(jobs) == 0, fmt.Sprint(jobs), err
	}))
}
