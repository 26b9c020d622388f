package kit_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// TestDeployBase builds the kustomize base below an overlay as docs/install.md has it: the
// namespace and the image of the overlay reach every object, those of the components too, and no
// field is deprecated.
func TestDeployBase(t *testing.T) {
	base, err := filepath.Abs("../../deploy")
	require.NoError(t, err)
	for _, file := range []string{"kustomization.yaml", "copies/kustomization.yaml", "crds/kustomization.yaml", "kubevirt/kustomization.yaml", "monitoring/kustomization.yaml", "restore-test/kustomization.yaml", "verify/kustomization.yaml"} {
		text, err := os.ReadFile(filepath.Join(base, file))
		require.NoError(t, err)
		var k types.Kustomization
		require.NoError(t, k.Unmarshal(text))
		require.Empty(t, *k.CheckDeprecatedFields(), file)
	}

	overlay, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	relative, err := filepath.Rel(overlay, base)
	require.NoError(t, err)
	text := "namespace: backups\nresources: [" + relative + "]\ncomponents: [" + relative + "/copies, " + relative + "/kubevirt, " + relative + "/monitoring, " + relative + "/verify, " + relative + "/restore-test]\nimages: [{name: blockmover, newName: registry.example.com/bm, newTag: v9}]\n" + copiesPatch
	require.NoError(t, os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(text), 0o600))
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), overlay)
	require.NoError(t, err)

	cluster := map[string]bool{
		"ClusterRole": true, "ClusterRoleBinding": true, "ValidatingAdmissionPolicy": true, "ValidatingAdmissionPolicyBinding": true,
	}
	deployments := 0
	kinds := map[string]int{}
	for _, object := range objects.Resources() {
		kinds[object.GetKind()]++
		if object.GetName() == "blockmover-manager-copies" && strings.HasSuffix(object.GetKind(), "Role") {
			rendered, err := object.AsYAML()
			require.NoError(t, err)
			require.Contains(t, string(rendered), "- ceph-csi-kms-token")
			require.NotContains(t, string(rendered), "- none")
		}
		if !cluster[object.GetKind()] {
			require.Equal(t, "backups", object.GetNamespace(), "%s %s", object.GetKind(), object.GetName())
		}
		if object.GetKind() != "Deployment" {
			continue
		}
		deployments++
		rendered, err := object.AsYAML()
		require.NoError(t, err)
		require.NotContains(t, string(rendered), "$(BLOCKMOVER_IMAGE)")
		var deployment struct {
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct{ Name, Image string }
					}
				}
			}
		}
		require.NoError(t, yaml.Unmarshal(rendered, &deployment))
		require.Equal(t, []struct{ Name, Image string }{{"manager", "registry.example.com/bm:v9"}}, deployment.Spec.Template.Spec.Containers)
	}
	require.Equal(t, 1, deployments)
	require.Equal(t, 1, kinds["PrometheusRule"])
	require.Equal(t, 1, kinds["PodMonitor"])
	require.Equal(t, 2, kinds["ConfigMap"], "the configuration and the dashboard")
}

// TestDashboard reads the dashboard as Grafana's own types for it, with no field that they do not have.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../deploy/monitoring/dashboard.json")
	require.NoError(t, err)
	var board dashboard.Dashboard //nolint:staticcheck // every Grafana imports a file of this version
	if err := board.UnmarshalJSONStrict(text); err != nil {
		require.Empty(t, err.Error(), "an empty list of errors is none")
	}
	wrong := bytes.Replace(text, []byte(`"gridPos"`), []byte(`"gridpos"`), 1)
	require.ErrorContains(t, board.UnmarshalJSONStrict(wrong), "gridpos")
	require.Greater(t, len(board.Panels), 15)
}

// copiesPatch is how docs/configuration.md names the Secrets and ConfigMaps that drivers need.
const copiesPatch = `patches:
- target: {name: blockmover-manager-copies, kind: "(Cluster)?Role"}
  patch: |-
    - {op: replace, path: /rules/0/resourceNames, value: [ceph-csi-kms-token]}
    - {op: replace, path: /rules/1/resourceNames, value: [ceph-csi-kms-config]}
`

// TestAlertRules has Prometheus check the alert rules, and run them on series of numbers.
func TestAlertRules(t *testing.T) {
	promtool := filepath.Join(os.Getenv("BLOCKMOVER_CACHE"), "runtime", "usr", "bin", "promtool")
	if _, err := os.Stat(promtool); err != nil {
		t.Skip("promtool is not there: make cluster-build unpacks it")
	}
	text, err := os.ReadFile("../../deploy/monitoring/rules.yaml")
	require.NoError(t, err)
	var object struct {
		Spec map[string]any `json:"spec"`
	}
	require.NoError(t, yaml.Unmarshal(text, &object))
	rules, err := yaml.Marshal(object.Spec)
	require.NoError(t, err)
	tests, err := os.ReadFile("testdata/rules_test.yaml")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rules.yml"), rules, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rules_test.yaml"), tests, 0o600))
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
}
