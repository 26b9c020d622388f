package helm

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	chart3 "helm.sh/helm/v3/pkg/chart/loader"
	chartutil3 "helm.sh/helm/v3/pkg/chartutil"
	engine3 "helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// deploy is the chart, and the kustomize base.
const deploy = "../../deploy"

type object = map[string]any

// id names an object.
func id(o object) string {
	meta := field(o, "metadata")
	name, _ := meta["name"].(string)
	namespace, _ := meta["namespace"].(string)
	kind, _ := o["kind"].(string)
	return strings.Trim(kind+" "+namespace+"/"+name, "/")
}

func field(o object, path ...string) object {
	for _, key := range path {
		o, _ = o[key].(object)
	}
	return o
}

// files renders the chart with the engine of Helm 4, for a release in a namespace.
func files(t *testing.T, namespace, values string) (map[string]string, error) {
	t.Helper()
	chart, err := loader.Load(deploy)
	require.NoError(t, err)
	options := common.ReleaseOptions{Name: "blockmover", Namespace: namespace, IsInstall: true}
	render, err := util.ToRenderValues(chart, parse(t, values), options, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(chart, render)
}

// files3 is files with Helm 3.
func files3(t *testing.T, namespace, values string) map[string]string {
	t.Helper()
	chart, err := chart3.Load(deploy)
	require.NoError(t, err)
	options := chartutil3.ReleaseOptions{Name: "blockmover", Namespace: namespace, IsInstall: true}
	render, err := chartutil3.ToRenderValues(chart, parse(t, values), options, chartutil3.DefaultCapabilities)
	require.NoError(t, err)
	files, err := engine3.Render(chart, render)
	require.NoError(t, err)
	return files
}

func parse(t *testing.T, text string) object {
	t.Helper()
	o := object{}
	require.NoError(t, yaml.Unmarshal([]byte(text), &o))
	return o
}

// rendered returns the objects of the chart. Helm 3 and Helm 4 agree.
func rendered(t *testing.T, namespace, values string) map[string]object {
	t.Helper()
	texts, err := files(t, namespace, values)
	require.NoError(t, err)
	require.Equal(t, texts, files3(t, namespace, values))
	all := map[string]object{}
	for file, text := range texts {
		if filepath.Ext(file) == ".yaml" {
			collect(t, all, text)
		}
	}
	return all
}

func collect(t *testing.T, all map[string]object, text string) {
	t.Helper()
	for document := range strings.SplitSeq(text, "\n---\n") {
		o := parse(t, document)
		if len(o) == 0 {
			continue
		}
		key := id(o)
		if hook, _ := field(o, "metadata", "annotations")["helm.sh/hook"].(string); hook != "" {
			key += " " + hook
		}
		require.Nil(t, all[key], "%s twice", key)
		all[key] = o
	}
}

// kustomized returns the objects of a kustomization with the base.
func kustomized(t *testing.T, kustomization string) map[string]object {
	t.Helper()
	overlay, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	base, err := filepath.Abs(deploy)
	require.NoError(t, err)
	relative, err := filepath.Rel(overlay, base)
	require.NoError(t, err)
	text := strings.ReplaceAll(kustomization, "deploy", relative)
	require.NoError(t, os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(text), 0o600))
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), overlay)
	require.NoError(t, err)
	all := map[string]object{}
	for _, r := range resources.Resources() {
		// kustomize takes these kinds for namespaced ones, and kubectl drops the namespace.
		if strings.HasPrefix(r.GetKind(), "ValidatingAdmissionPolicy") {
			require.NoError(t, r.SetNamespace(""))
		}
		text, err := r.AsYAML()
		require.NoError(t, err)
		collect(t, all, string(text))
	}
	return all
}

// plain replaces the document of the configuration by what it says: the base has comments there. In
// expressions it leaves one space between words: kustomize breaks long lines elsewhere.
func plain(t *testing.T, all map[string]object) map[string]object {
	t.Helper()
	for _, o := range all {
		data := field(o, "data")
		if text, _ := data["config.yaml"].(string); text != "" {
			data["config.yaml"] = parse(t, text)
		}
		fold(o)
	}
	return all
}

func fold(value any) {
	switch value := value.(type) {
	case object:
		for key, v := range value {
			if text, _ := v.(string); key == "expression" {
				value[key] = strings.Join(strings.Fields(text), " ")
			}
			fold(v)
		}
	case []any:
		for _, v := range value {
			fold(v)
		}
	}
}

// TestChartIsBase compares the objects of the chart with those of the kustomize base, field by field.
func TestChartIsBase(t *testing.T) {
	for name, tc := range map[string]struct {
		namespace, values, kustomization string
		least                            int
	}{
		"defaults": {"velero", "", "resources: [deploy]", 22},
		"everything": {
			"backups",
			`{image: {repository: "registry.example.com:5000/bm", tag: v9}, kubevirt: {enabled: true}, monitoring: {enabled: true}, verify: {enabled: true, restoreTest: {enabled: true}}, copies: {secretNames: [key]}}`,
			"namespace: backups\nresources: [deploy]\ncomponents: [deploy/kubevirt, deploy/monitoring, deploy/verify, deploy/restore-test, deploy/copies]\n" +
				"patches: [{target: {name: blockmover-manager-copies, kind: '(Cluster)?Role'}, patch: '- {op: replace, path: /rules/0/resourceNames, value: [key]}'}]\n" +
				"images: [{name: blockmover, newName: 'registry.example.com:5000/bm', newTag: v9}]", 38,
		},
		"without policies": {
			"velero", "{admission: {enabled: false}}",
			"resources: [deploy]\npatches:\n- target: {group: admissionregistration.k8s.io}\n" +
				"  patch: '{apiVersion: v1, kind: any, metadata: {name: any}, $patch: delete}'", 8,
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := plain(t, kustomized(t, tc.kustomization))
			require.GreaterOrEqual(t, len(want), tc.least)
			got := plain(t, rendered(t, tc.namespace, tc.values))
			require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
			for key := range want {
				require.Equal(t, want[key], got[key], key)
			}
		})
	}
}

// TestValues sets what the base has not.
func TestValues(t *testing.T) {
	all := rendered(t, "velero", `
image: {tag: v9, digest: "sha256:`+strings.Repeat("0a", 32)+`", pullPolicy: Always}
imagePullSecrets: [{name: registry}]
replicas: 2
resources: {limits: {memory: 1Gi}}
nodeSelector: {pool: backup}
tolerations: [{key: backup, operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: high
topologySpreadConstraints: [{maxSkew: 1}]
podLabels: {team: storage, app.kubernetes.io/name: other}
podAnnotations: {note: mine}
extraArgs: [--kube-api-qps=100]
extraEnv: [{name: HTTPS_PROXY, value: "http://proxy"}]
serviceAccount: {workerAnnotations: {role: reader}}
config: {loadConcurrency: {globalConfig: 8}, podResources: null, serviceAccountName: mine, securityContext: {runAsUser: 1000720000}}
clusterNameSuffix: -second
monitoring: {enabled: true, labels: {release: prometheus}}
verify: {enabled: true, schedule: "0 1 * * *", timeZone: Europe/Berlin, maxBytes: 1Ti, timeout: 2h, restoreTest: {enabled: true, schedule: "0 2 * * 0", maxTime: 1h, toolsImage: "r/tools:v9"}}
copies: {configMapNames: [kms]}
`)
	deployment := all["Deployment velero/blockmover"]
	require.EqualValues(t, 2, field(deployment, "spec")["replicas"])
	template := field(deployment, "spec", "template")
	require.Equal(t, object{
		"app.kubernetes.io/name": "blockmover", "app.kubernetes.io/component": "manager", "team": "storage",
	}, field(template, "metadata")["labels"], "the selector does not move")
	require.Equal(t, "mine", field(template, "metadata", "annotations")["note"])
	pod := field(template, "spec")
	require.Equal(t, object{"kubernetes.io/os": "linux", "pool": "backup"}, pod["nodeSelector"])
	require.Equal(t, "high", pod["priorityClassName"])
	require.Equal(t, []any{object{"name": "registry"}}, pod["imagePullSecrets"])
	require.Len(t, pod["tolerations"], 1)
	require.Contains(t, pod["affinity"], "nodeAffinity")
	require.Len(t, pod["topologySpreadConstraints"], 1)
	manager := pod["containers"].([]any)[0].(object)
	require.Equal(t, "blockmover:v9@sha256:"+strings.Repeat("0a", 32), manager["image"])
	require.Equal(t, "Always", manager["imagePullPolicy"])
	require.Equal(t, object{"requests": object{"cpu": "50m", "memory": "64Mi"}, "limits": object{"memory": "1Gi"}}, manager["resources"])
	require.Equal(t, []any{"manager", "--namespace=$(NAMESPACE)", "--config=/etc/blockmover/config.yaml", "--kube-api-qps=100"}, manager["args"])
	require.Contains(t, manager["env"], object{"name": "HTTPS_PROXY", "value": "http://proxy"})

	config, _ := field(all["ConfigMap velero/blockmover-config"], "data")["config.yaml"].(string)
	require.Equal(t, `imagePullSecrets:
- name: registry
loadConcurrency:
  globalConfig: 8
securityContext:
  runAsUser: 1000720000
serviceAccountName: mine
`, config)
	require.Equal(t, object{"role": "reader"}, field(all["ServiceAccount velero/blockmover-worker"], "metadata")["annotations"])
	require.Nil(t, field(all["ServiceAccount velero/blockmover-manager"], "metadata")["annotations"])
	require.Equal(t, "blockmover-manager-second", field(all["ClusterRoleBinding /blockmover-manager-second"], "roleRef")["name"])
	require.Contains(t, all, "ClusterRole /blockmover-manager-second")
	require.Equal(t, "blockmover-pods-second", field(all["ValidatingAdmissionPolicyBinding /blockmover-pods-second"], "spec")["policyName"])
	pods, err := yaml.Marshal(all["ValidatingAdmissionPolicy /blockmover-pods-second"])
	require.NoError(t, err)
	require.Contains(t, string(pods), "in ['mine']")
	require.Equal(t, "prometheus", field(all["PodMonitor velero/blockmover"], "metadata", "labels")["release"])
	require.Equal(t, "prometheus", field(all["PrometheusRule velero/blockmover"], "metadata", "labels")["release"])

	job := field(all["CronJob velero/blockmover-verify"], "spec")
	require.Equal(t, []any{"0 1 * * *", "Europe/Berlin"}, []any{job["schedule"], job["timeZone"]})
	verifier := field(job, "jobTemplate", "spec", "template", "spec")["containers"].([]any)[0].(object)
	require.Equal(t, []any{"--all", "--max-bytes=1Ti", "--timeout=2h", "--namespace=$(NAMESPACE)"}, verifier["args"])
	require.Equal(t, manager["image"], verifier["image"])
	job = field(all["CronJob velero/blockmover-restore-test"], "spec")
	require.Equal(t, []any{"0 2 * * 0", "Europe/Berlin"}, []any{job["schedule"], job["timeZone"]})
	tester := field(job, "jobTemplate", "spec", "template", "spec")["containers"].([]any)[0].(object)
	require.Equal(t, []any{
		"--all", "--restore-test", "--max-bytes=500Gi", "--max-time=1h", "--timeout=8h", "--namespace=$(NAMESPACE)", "--tools-image=r/tools:v9",
	}, tester["args"])
	rules := all["ClusterRole /blockmover-manager-copies-second"]["rules"].([]any)
	require.Equal(t, []any{[]any{"none"}, []any{"kms"}}, []any{rules[0].(object)["resourceNames"], rules[1].(object)["resourceNames"]})
}

// TestPluginJobs looks at the Jobs that change Velero's Deployment, and at their rights.
func TestPluginJobs(t *testing.T) {
	all := rendered(t, "backups", `{plugin: {install: true, deployment: server, image: {repository: r/plugin, tag: v9}}, imagePullSecrets: [{name: registry}]}`)
	const both = " post-install,post-upgrade,pre-delete"
	require.Equal(t, []any{object{
		"apiGroups": []any{"apps"}, "resources": []any{"deployments"}, "resourceNames": []any{"server"}, "verbs": []any{"get", "patch"},
	}}, all["Role backups/blockmover-plugin"+both]["rules"])
	require.Contains(t, all, "ServiceAccount backups/blockmover-plugin"+both)
	require.Contains(t, all, "RoleBinding backups/blockmover-plugin"+both)
	for hook, args := range map[string][]any{
		"post-install,post-upgrade": {"add", "r/plugin:v9", "--image-pull-policy=IfNotPresent", "--deployment=server", "--namespace=backups"},
		"pre-delete":                {"remove", "--deployment=server", "--namespace=backups"},
	} {
		pod := field(all["Job backups/blockmover-plugin "+hook], "spec", "template", "spec")
		require.Equal(t, "blockmover-plugin", pod["serviceAccountName"])
		require.Equal(t, []any{object{"name": "registry"}}, pod["imagePullSecrets"])
		container := pod["containers"].([]any)[0].(object)
		require.Equal(t, "blockmover:dev", container["image"])
		require.Equal(t, args, container["args"])
	}
}

func TestNotes(t *testing.T) {
	for values, want := range map[string]string{
		"{}":                        "velero --namespace backups plugin add velero-plugin-blockmover:dev",
		"{plugin: {install: true}}": "has restarted with the plugin",
	} {
		texts, err := files(t, "backups", values)
		require.NoError(t, err)
		require.Contains(t, texts["blockmover/templates/NOTES.txt"], want)
	}
}

// TestSchemaRefuses has values that are wrong.
func TestSchemaRefuses(t *testing.T) {
	for _, values := range []string{
		"{images: {}}", "{image: {tag: 'v1:2'}}", "{image: {digest: abc}}", "{image: {pullPolicy: Sometimes}}", "{replicas: two}",
		"{config: {loadConcurency: {}}}", "{clusterNameSuffix: Second}", "{verify: {enabled: 'yes'}}", "{verify: {timeout: long}}", "{verify: {restoreTest: {enabled: true}}}", "{copies: {secretNames: key}}",
		"{extraArgs: [namespace]}", "{imagePullSecrets: [registry]}", "{plugin: {deployment: ''}}",
	} {
		_, err := files(t, "velero", values)
		require.Error(t, err, values)
	}
}

func TestLint(t *testing.T) {
	linter := lint.RunAll(deploy, nil, "velero")
	for _, m := range linter.Messages {
		require.Less(t, m.Severity, support.WarningSev, "%v", m)
	}
}
