package scenarios

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestBackupType gives Velero's CRDs the fields of newer versions, as docs/install.md says,
// and asks for full images by them: in both ways of a backup, in a Schedule beside another
// one of the same volume, and with a value that is not valid.
func TestBackupType(t *testing.T) {
	s := newScenario(t)
	s.upgradeCRDs()
	namespace := s.namespace("backup-type")
	require.NoError(t, s.kit.Apply(s.ctx, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n---\n%s",
		namespace, kit.PVC(namespace, "data", s.kit.StorageClass, "Block", 8<<20))))
	// A PVC that is not bound has nothing to back up.
	require.NoError(t, s.kit.Wait(s.ctx, "claim is bound", kit.OperationTimeout, func(ctx context.Context) (bool, string, error) {
		var claim kit.Object
		err := s.kit.Get(ctx, &claim, "-n", namespace, "pvc", "data")
		return claim.Status.Phase == "Bound", claim.Status.Phase, err
	}))
	policyArgs := s.policy(customPolicy)
	door := "snapshotMoveData: true, datamover: blockmover"
	ours := fmt.Sprintf("resourcePolicy: {kind: configmap, name: %s}", policyArgs[1])

	first := s.backup("type-first", append(policyArgs, "--include-namespaces", namespace)...)
	s.checkType(first, "Full", "NoParent")
	second := s.backup("type-second", append(policyArgs, "--include-namespaces", namespace)...)
	s.checkType(second, "Incremental", "")

	upload := s.checkType(s.applyBackup("type-full", namespace, "backupType: full, "+ours), "Full", "ForcedFull")
	require.Equal(t, "none", upload.Spec.ParentSnapshot)
	s.checkType(s.applyBackup("type-door", namespace, "backupType: FULL, "+door), "Full", "ForcedFull")

	err := s.kit.Apply(s.ctx, s.backupManifest("type-wrong", namespace, "backupType: differential, "+ours))
	require.ErrorContains(t, err, "spec.backupType")

	// Two Schedules of one volume. The one with full images says so in its template. Velero
	// 1.18 drops that when it makes a Backup from the template.
	for name, template := range map[string]string{"weekly": "backupType: Full, " + ours, "daily": ours, "door": "backupType: Full, " + door} {
		require.NoError(t, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: velero.io/v1
kind: Schedule
metadata: {name: %s, namespace: %s}
spec:
  schedule: "0 1 * * *"
  paused: true
  template: {includedNamespaces: [%s], storageLocation: default, ttl: 1h, %s}
`, s.name(name), s.kit.VeleroNamespace, namespace, template)))
		s.Cleanup(func() {
			ctx, cancel := cleanupContext()
			defer cancel()
			_, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "delete", "schedule.velero.io", s.name(name))
			require.NoError(t, err)
		})
	}
	s.checkType(s.backup("type-weekly", "--from-schedule", s.name("weekly")), "Full", "ForcedFull")
	s.checkType(s.backup("type-weekly-door", "--from-schedule", s.name("door")), "Full", "ForcedFull")
	s.checkType(s.backup("type-daily", "--from-schedule", s.name("daily")), "Incremental", "")
	s.checkNothingLeft()
}

// upgradeCRDs applies deploy/crds to the CRDs of the installed Velero until the test ends.
func (s *scenario) upgradeCRDs() {
	s.Helper()
	crds, err := s.kit.Velero(s.ctx, "install", "--crds-only", "--dry-run", "-o", "yaml")
	require.NoError(s, err)
	dir := s.TempDir()
	require.NoError(s, os.WriteFile(filepath.Join(dir, "velero-crds.yaml"), []byte(crds), 0o600))
	component, err := filepath.Abs(filepath.Join(s.kit.DeployDir, "crds"))
	require.NoError(s, err)
	component, err = filepath.Rel(dir, component)
	require.NoError(s, err)
	require.NoError(s, os.WriteFile(filepath.Join(dir, "kustomization.yaml"),
		[]byte("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [velero-crds.yaml]\ncomponents: ["+component+"]\n"), 0o600))
	apply := func(ctx context.Context, args ...string) {
		_, err := s.kit.Kubectl(ctx, append([]string{"apply", "--server-side", "--force-conflicts"}, args...)...)
		require.NoError(s, err)
	}
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		apply(ctx, "-f", filepath.Join(dir, "velero-crds.yaml"))
	})
	apply(s.ctx, "-k", dir)
}

// applyBackup makes a Backup with kubectl, and waits for it.
func (s *scenario) applyBackup(base, namespace, spec string) string {
	s.Helper()
	name := s.name(base)
	s.deleteBackupInTheEnd(name)
	require.NoError(s, s.kit.Apply(s.ctx, s.backupManifest(base, namespace, spec)))
	require.NoError(s, s.kit.CompleteBackup(s.ctx, name))
	return name
}

func (s *scenario) backupManifest(base, namespace, spec string) string {
	return fmt.Sprintf("apiVersion: velero.io/v1\nkind: Backup\nmetadata: {name: %s, namespace: %s}\nspec: {includedNamespaces: [%s], storageLocation: default, ttl: 1h, %s}\n",
		s.name(base), s.kit.VeleroNamespace, namespace, spec)
}

// checkType checks the kind and the reason of the image of a backup of one volume.
func (s *scenario) checkType(backup, kind, reason string) kit.Object {
	s.Helper()
	uploads, err := s.kit.DataUploads(s.ctx, backup)
	require.NoError(s, err)
	require.Len(s, uploads, 1)
	result := uploads["data"].Status.DataMoverResult
	require.Equal(s, kind+" "+reason, result["kind"]+" "+result["reason"], "%s: %s", backup, result["detail"])
	if reason != "" {
		require.NoError(s, s.kit.CheckReasons(s.ctx, uploads["data"], reason))
	}
	return uploads["data"]
}
