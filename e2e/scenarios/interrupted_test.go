package scenarios

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestKilledMoverPod kills a mover pod in its work: the upload is tried again.
func TestKilledMoverPod(t *testing.T) { killDuringBackup(newScenario(t), "killed-mover", "worker") }

// TestKilledManager kills the manager while a mover pod works: the next one goes
// on where it was.
func TestKilledManager(t *testing.T) { killDuringBackup(newScenario(t), "killed-manager", "manager") }

// killDuringBackup kills the pods of one component as soon as a mover pod is
// seen. The backup has to be complete for all that.
func killDuringBackup(s *scenario, base, component string) {
	app := s.app(base)
	want := s.sums(app)
	killed := make(chan error, 1)
	go func() { killed <- s.killPods(component) }()
	backup := s.backup(base, append(perVolume.args(s), "--include-namespaces", app.Namespace)...)
	require.NoError(s, <-killed)
	s.restoreTo(backup, app.Namespace, base+"-copy", want)
	s.checkNothingLeft()
}

func (s *scenario) killPods(component string) error {
	return s.kit.Wait(s.ctx, "a mover pod", time.Minute, func(ctx context.Context) (bool, string, error) {
		pods, err := s.kit.List(ctx, "-n", s.kit.VeleroNamespace, "pods", "-l", "blockmover.io/operation")
		if err != nil || len(pods) == 0 {
			return false, "none", err
		}
		_, err = s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "delete", "pods", "--force", "--grace-period=0",
			"-l", "app.kubernetes.io/component="+component)
		return err == nil, "", err
	})
}

// TestFailedBackup kills Velero's server after the data is in the repository, and before the backup is
// written. When such a backup is deleted, Velero does not call our delete item action. No image is left.
func TestFailedBackup(t *testing.T) {
	s := newScenario(t)
	app := s.app("failed")
	// Velero comes to it last, and waits for its hook.
	require.NoError(t, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: zzz-slow
  namespace: %s
  annotations:
    pre.hook.backup.velero.io/command: '["sleep", "600"]'
    pre.hook.backup.velero.io/timeout: 10m
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: slow, image: %q, imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}]
`, app.Namespace, s.kit.ToolsImage)))
	_, err := s.kit.Kubectl(s.ctx, "-n", app.Namespace, "wait", "pod/zzz-slow", "--for=condition=Ready", "--timeout=60s")
	require.NoError(t, err)
	for _, d := range []door{perBackup, perVolume} {
		name := s.name("failed-" + d.name)
		s.deleteBackupInTheEnd(name)
		_, err := s.kit.Velero(s.ctx, append([]string{"backup", "create", name, "--include-namespaces", app.Namespace}, d.args(s)...)...)
		require.NoError(t, err)
		s.wait("images to be complete", func(ctx context.Context) (bool, string, error) {
			uploads, err := s.kit.DataUploads(ctx, name)
			complete := 0
			for _, u := range uploads {
				if u.Status.Phase == "Completed" {
					complete++
				}
			}
			return complete == 2, kit.Names(uploads), err
		})
		_, err = s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "delete", "pods", "-l", "deploy=velero", "--force", "--grace-period=0")
		require.NoError(t, err)
		s.wait("backup to be failed", func(ctx context.Context) (bool, string, error) {
			var o kit.Object
			err := s.kit.Get(ctx, &o, "-n", s.kit.VeleroNamespace, "backup.velero.io", name)
			return o.Status.Phase == "Failed", "phase " + o.Status.Phase, err
		})
		require.NoError(t, s.kit.DeleteBackup(s.ctx, name))
		s.checkRepoSnapshots(app.Namespace, nil)
		s.checkNothingLeft()
	}
}

// TestCancel cancels the uploads of a backup as soon as they are there. The
// backup says so, nothing is left, and a restore refuses to guess.
func TestCancel(t *testing.T) {
	s := newScenario(t)
	app := s.app("cancel")
	name := s.name("cancel")
	s.deleteBackupInTheEnd(name)
	canceled := make(chan error, 1)
	go func() { canceled <- s.cancelUploads(name, 2) }()
	backup, err := s.kit.Backup(s.ctx, name, append(perVolume.args(s), "--include-namespaces", app.Namespace)...)
	require.NoError(t, err)
	require.NoError(t, <-canceled)
	require.Equal(t, "PartiallyFailed", backup.Status.Phase)
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(t, err)
	for pvc, upload := range uploads {
		require.Equal(t, "Canceled", upload.Status.Phase, pvc)
		require.Empty(t, upload.Status.SnapshotID, pvc)
	}
	s.checkNothingLeft()

	restore, err := s.kit.Restore(s.ctx, s.name("cancel"), name, "--namespace-mappings", app.Namespace+":"+s.namespace("cancel-copy"))
	require.NoError(t, err)
	require.Equal(t, "PartiallyFailed", restore.Status.Phase)
	described, err := s.kit.Describe(s.ctx, "restore", restore.Metadata.Name)
	require.NoError(t, err)
	require.Contains(t, described, "the backup of this volume did not complete")
	s.checkNothingLeft()
}

// cancelUploads asks the mover to stop the first n DataUploads of a backup, each
// as soon as it is seen.
func (s *scenario) cancelUploads(backup string, n int) error {
	return s.kit.Wait(s.ctx, "DataUploads to cancel", time.Minute, func(ctx context.Context) (bool, string, error) {
		uploads, err := s.kit.DataUploads(ctx, backup)
		if err != nil {
			return false, "", err
		}
		for _, upload := range uploads {
			if upload.Spec.Cancel {
				continue
			}
			if _, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "patch", "datauploads.velero.io", upload.Metadata.Name,
				"--type=merge", "-p", `{"spec":{"cancel":true}}`); err != nil {
				return false, "", err
			}
		}
		return len(uploads) == n, kit.Names(uploads), nil
	})
}
