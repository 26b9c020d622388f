package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fieldManifest is a namespace with applications whose volumes are unusual: generic ephemeral
// volumes of a bare pod and of a Deployment, and an XFS.
const fieldManifest = `apiVersion: v1
kind: Namespace
metadata: {name: $NAMESPACE}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: $NAMESPACE}
spec: $SCRATCH
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: scratch, namespace: $NAMESPACE}
spec:
  selector: {matchLabels: {app: scratch}}
  template:
    metadata: {labels: {app: scratch}}
    spec: $SCRATCH
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: xfs, namespace: $NAMESPACE}
spec: {accessModes: [ReadWriteOnce], storageClassName: $XFS, resources: {requests: {storage: 320Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: $NAMESPACE}
spec:
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: app, image: $IMAGE, command: [sleep, "1000000"], volumeMounts: [{name: xfs, mountPath: /xfs}]}]
      volumes: [{name: xfs, persistentVolumeClaim: {claimName: xfs}}]
`

// scratchPod is the specification of a pod with a generic ephemeral volume.
const scratchPod = `{
  terminationGracePeriodSeconds: 0,
  containers: [{name: app, image: $IMAGE, command: [sleep, "1000000"], volumeMounts: [{name: scratch, mountPath: /scratch}]}],
  volumes: [{name: scratch, ephemeral: {volumeClaimTemplate: {spec: {
    accessModes: [ReadWriteOnce], storageClassName: $CLASS, resources: {requests: {storage: 16Mi}}}}}}]}`

// TestPodsStart restores applications beside their originals, on the same node. All pods start:
// those with generic ephemeral volumes make their own, and an XFS is mounted although it has the
// UUID of its original.
func TestPodsStart(t *testing.T) {
	s := newScenario(t)
	s.harness()
	class := s.storageClass("xfs", "csi.storage.k8s.io/fstype: xfs")
	namespace := s.namespace("field")
	manifest := strings.NewReplacer("$NAMESPACE", namespace, "$IMAGE", s.kit.ToolsImage, "$CLASS", s.kit.StorageClass, "$XFS", class).
		Replace(strings.ReplaceAll(fieldManifest, "$SCRATCH", scratchPod))
	require.NoError(t, s.kit.Apply(s.ctx, manifest))
	running := func(namespace string) {
		for _, args := range [][]string{
			{"wait", "pod", "--all", "--for=condition=Ready", "--timeout=120s"},
			{"wait", "deployment", "--all", "--for=condition=Available", "--timeout=60s"},
		} {
			_, err := s.kit.Kubectl(s.ctx, append([]string{"-n", namespace}, args...)...)
			require.NoError(t, err)
		}
	}
	running(namespace)
	in := func(namespace, command string) string {
		out, err := s.kit.Kubectl(s.ctx, "-n", namespace, "exec", "deployment/app", "--", "sh", "-c", command)
		require.NoError(t, err)
		return out
	}
	const sum = "cd /xfs && find . -type f | sort | xargs sha256sum"
	in(namespace, "mkdir /xfs/a && dd if=/dev/urandom of=/xfs/a/noise bs=64k count=64 && echo hello > /xfs/hello && sync")
	want := in(namespace, sum)

	backup := s.backup("field", append(s.policy(customPolicy), "--include-namespaces", namespace)...)
	uploads, err := s.kit.DataUploads(s.ctx, backup)
	require.NoError(t, err)
	require.Len(t, uploads, 1, "ephemeral volumes are not moved")
	target := s.namespace("field-copy")
	s.restore(backup, "--namespace-mappings", namespace+":"+target)
	running(target)
	require.Equal(t, want, in(target, sum))
	s.checkNothingLeft()
}

// storageClass makes a StorageClass of the driver under test until the end of the test. parameter is
// a line of YAML.
func (s *scenario) storageClass(base, parameter string) string {
	s.Helper()
	name := s.name(base)
	require.NoError(s, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: %s
parameters: {%s}
`, name, os.Getenv("BLOCKMOVER_DRIVER_BLOCK"), parameter)))
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Kubectl(ctx, "delete", "storageclass", name)
		require.NoError(s, err)
	})
	return name
}

// TestRefusedTarget restores into a namespace whose LimitRange refuses the PVC. Velero reports
// that, and the DataDownload does not wait for a PVC that never comes.
func TestRefusedTarget(t *testing.T) {
	s := newScenario(t)
	namespace, target := s.namespace("limit"), s.namespace("limit-copy")
	require.NoError(t, s.kit.Apply(s.ctx, disksManifest(s.kit, namespace, "disk", []string{"disk"})))
	_, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	backup := s.backup("limit", append(s.policy(customPolicy), "--include-namespaces", namespace)...)
	require.NoError(t, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: LimitRange
metadata: {name: small, namespace: %[1]s}
spec: {limits: [{type: PersistentVolumeClaim, max: {storage: 8Mi}}]}
`, target)))
	start := time.Now()
	restore, err := s.kit.Restore(s.ctx, s.name("limit-restore"), backup, "--namespace-mappings", namespace+":"+target)
	require.NoError(t, err)
	require.Equal(t, "PartiallyFailed", restore.Status.Phase)
	t.Logf("restore ended after %.0f s", time.Since(start).Seconds())
	described, err := s.kit.Describe(s.ctx, "restore", restore.Metadata.Name)
	require.NoError(t, err)
	require.Contains(t, described, "maximum storage usage per PersistentVolumeClaim is 8Mi")
	s.checkNothingLeft()
}

// TestWithoutSnapshotAPI restores in a cluster that does not serve VolumeSnapshots, as one that
// is made anew after a disaster may be. The manager starts there, and works.
func TestWithoutSnapshotAPI(t *testing.T) {
	s := newScenario(t)
	s.harness()
	namespace := s.namespace("bare")
	require.NoError(t, s.kit.Apply(s.ctx, disksManifest(s.kit, namespace, "disk", []string{"disk"})))
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	_, err = app.Exec(s.ctx, "dd if=/dev/urandom of=/dev/disk bs=64k count=128 conv=fsync")
	require.NoError(t, err)
	want := s.diskSums(app, []string{"disk"})
	backup := s.backup("bare", append(s.policy("version: v1\nvolumePolicies:\n- conditions: {}\n  action: {type: custom, parameters: {mover: blockmover, retainSnapshot: never}}\n"),
		"--include-namespaces", namespace)...)
	s.checkNothingLeft()

	s.withoutCRDs("snapshot.storage.k8s.io")
	target := s.namespace("bare-copy")
	s.restore(backup, "--namespace-mappings", namespace+":"+target)
	restored, err := s.kit.AppIn(s.ctx, target)
	require.NoError(t, err)
	require.Equal(t, want, s.diskSums(restored, []string{"disk"}))
}

// withoutCRDs deletes the CRDs of an API group until the test ends, with the classes that they
// define, and restarts the manager.
func (s *scenario) withoutCRDs(group string) {
	s.Helper()
	classes, err := s.kit.Kubectl(s.ctx, "get", "volumesnapshotclasses", "-o", "yaml")
	require.NoError(s, err)
	files, err := filepath.Glob(filepath.Join(os.Getenv("BLOCKMOVER_CACHE"), "crds", group+"_*.yaml"))
	require.NoError(s, err)
	require.NotEmpty(s, files)
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		for _, file := range files {
			_, err := s.kit.Kubectl(ctx, "apply", "--server-side", "-f", file)
			require.NoError(s, err)
		}
		_, err := s.kit.Kubectl(ctx, "wait", "crd", "volumesnapshotclasses."+group, "--for=condition=Established", "--timeout=60s")
		require.NoError(s, err)
		_, err = s.kit.Run(ctx, classes, "kubectl", "create", "-f", "-")
		require.NoError(s, err)
		require.NoError(s, s.kit.RestartMover(ctx))
	})
	for _, file := range files {
		_, err := s.kit.Kubectl(s.ctx, "delete", "--timeout=60s", "-f", file)
		require.NoError(s, err)
	}
	require.NoError(s, s.kit.RestartMover(s.ctx))
}
