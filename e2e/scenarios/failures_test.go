package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestFailuresAreSeen lets the storage refuse the volume that a backup reads, and the one that a
// restore writes. Both fail within a minute, and the words of the driver are where an
// administrator looks: in the description of the Backup or Restore, and in its events.
func TestFailuresAreSeen(t *testing.T) {
	s := newScenario(t)
	s.harness()
	const refusal = "blockSize" // the driver names the parameter
	class := s.storageClass("refused", refusal+`: "7"`)
	namespace := s.namespace("seen")
	require.NoError(t, s.kit.Apply(s.ctx, disksManifest(s.kit, namespace, "disk", []string{"disk"})))
	_, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	arguments := append(perVolume.args(s), "--include-namespaces", namespace)

	s.configure(fmt.Sprintf("backupPVC: {%s: {storageClass: %s}}", s.kit.StorageClass, class))
	failed := s.name("seen-failed")
	s.deleteBackupInTheEnd(failed)
	backup, err := s.kit.Backup(s.ctx, failed, arguments...)
	require.NoError(t, err)
	require.Equal(t, "PartiallyFailed", backup.Status.Phase)
	s.checkSeen("backup", backup, refusal)

	s.configure(fmt.Sprintf("restorePVC: {storageClass: {%s: %s}}", s.kit.StorageClass, class))
	good := s.backup("seen-good", arguments...)
	target := s.namespace("seen-copy")
	name := s.name("seen-restore")
	_, err = s.kit.Velero(s.ctx, "restore", "create", name, "--from-backup", good, "--namespace-mappings", namespace+":"+target)
	require.NoError(t, err)
	var restore kit.Object
	s.wait("restore of the volume to fail", func(ctx context.Context) (bool, string, error) {
		err := s.kit.Get(ctx, &restore, "-n", s.kit.VeleroNamespace, "restores.velero.io", name)
		return strings.Contains(restore.Status.Phase, "PartiallyFailed"), restore.Status.Phase, err
	})
	s.checkSeen("restore", restore, refusal)
	// Velero waits for the PVC until its resource timeout, or until it is gone.
	_, err = s.kit.Kubectl(s.ctx, "delete", "namespace", target)
	require.NoError(t, err)
	s.checkNothingLeft()
}

// checkSeen checks that the description of a Backup or Restore, and one of its events, have a text.
func (s *scenario) checkSeen(kind string, object kit.Object, text string) {
	s.Helper()
	described, err := s.kit.Describe(s.ctx, kind, object.Metadata.Name)
	require.NoError(s, err)
	require.Contains(s, described, text)
	s.wait("event", func(ctx context.Context) (bool, string, error) {
		notes, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "get", "events.events.k8s.io",
			"-o", fmt.Sprintf("jsonpath={.items[?(@.regarding.uid==%q)].note}", object.Metadata.UID))
		return strings.Contains(notes, text), notes, err
	})
}
