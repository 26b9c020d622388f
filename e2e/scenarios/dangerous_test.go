package scenarios

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Bodies of requests that would give a thief more than a token of ours has.
const (
	podSpec = `{"restartPolicy":"Never","serviceAccountName":"$AS",` +
		`"containers":[{"name":"c","image":"x","securityContext":{"privileged":$PRIVILEGED,"allowPrivilegeEscalation":$PRIVILEGED}}]$MORE}`
	podBody   = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"blockmover-x","labels":{"blockmover.io/operation":"x"}},"spec":` + podSpec + `}`
	jobBody   = `{"apiVersion":"batch/v1","kind":"Job","metadata":{"generateName":"$NAME-","labels":{"app.kubernetes.io/component":"$COMPONENT"}},"spec":{"template":{"spec":` + podSpec + `}}}`
	adminBody = `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"x"},` +
		`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"ServiceAccount","namespace":"$VELERO","name":"$ACCOUNT"}]}`
	tokenBody  = `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"audiences":[]}}`
	rulesPatch = `{"rules":[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]}`
)

// call is a request that must be refused.
type call struct{ method, path, body string }

// dangerous are requests that none of our accounts may make.
var dangerous = []call{
	{"GET", "/api/v1/secrets", ""},
	{"GET", "/api/v1/namespaces/$APP/secrets", ""},
	{"GET", "/api/v1/namespaces/$APP/secrets/theirs", ""},
	{"GET", "/api/v1/namespaces/$VELERO/secrets", ""},
	{"GET", "/api/v1/namespaces/$VELERO/secrets/velero-repo-credentials", ""},
	{"GET", "/api/v1/namespaces/kube-system/configmaps", ""},
	{"POST", "/api/v1/namespaces/$APP/pods", podBody},
	{"POST", "/api/v1/namespaces/kube-system/pods", podBody},
	{"POST", "/api/v1/namespaces/$VELERO/pods", podBody},
	{"POST", "/apis/batch/v1/namespaces/$APP/jobs", jobBody},
	{"POST", "/apis/batch/v1/namespaces/$VELERO/jobs", jobBody},
	{"GET", "/api/v1/namespaces/$VELERO/pods/$SERVER/exec?command=true&stdout=true", ""},
	{"POST", "/api/v1/namespaces/$VELERO/pods/$SERVER/exec?command=true&stdout=true", ""},
	{"POST", "/api/v1/namespaces/$VELERO/pods/$SERVER/attach?stdout=true", ""},
	{"GET", "/api/v1/namespaces/$VELERO/pods/$SERVER/portforward?ports=8085", ""},
	{"GET", "/api/v1/namespaces/$VELERO/pods/$SERVER/proxy/", ""},
	{"PATCH", "/api/v1/namespaces/$VELERO/pods/$SERVER/ephemeralcontainers", `{"spec":{"ephemeralContainers":[{"name":"x","image":"x"}]}}`},
	{"GET", "/api/v1/nodes/$NODE/proxy/pods", ""},
	{"PATCH", "/api/v1/nodes/$NODE", `{"spec":{"unschedulable":true}}`},
	{"POST", "/api/v1/namespaces/$VELERO/serviceaccounts/velero/token", tokenBody},
	{"POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", adminBody},
	{"PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/blockmover-manager", rulesPatch},
	{"PATCH", "/apis/rbac.authorization.k8s.io/v1/namespaces/$VELERO/roles/$ACCOUNT", rulesPatch},
	{"DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/blockmover-pods", ""},
	{"PATCH", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/blockmover-pods", `{"spec":{"validationActions":["Audit"]}}`},
	{"DELETE", "/api/v1/namespaces/$APP", ""},
	{"DELETE", "/api/v1/namespaces/$APP/persistentvolumeclaims/theirs", ""},
	{"DELETE", "/api/v1/namespaces/$APP/persistentvolumeclaims", ""},
	{"DELETE", "/api/v1/namespaces/$APP/pods", ""},
	{"DELETE", "/apis/velero.io/v1/namespaces/$VELERO/backups/x", ""},
	{"DELETE", "/apis/velero.io/v2alpha1/namespaces/$VELERO/datauploads/$THEIRS", ""},
	{"POST", "/apis/velero.io/v1/namespaces/$VELERO/deletebackuprequests", `{"apiVersion":"velero.io/v1","kind":"DeleteBackupRequest","metadata":{"name":"x"},"spec":{"backupName":"x"}}`},
	{"POST", "/apis/velero.io/v1/namespaces/$VELERO/restores", `{"apiVersion":"velero.io/v1","kind":"Restore","metadata":{"name":"x"},"spec":{"backupName":"x"}}`},
	{"PATCH", "/apis/velero.io/v1/namespaces/$VELERO/backupstoragelocations/default", `{"spec":{"default":false}}`},
	{"PATCH", "/apis/velero.io/v2alpha1/namespaces/$VELERO/datauploads/$THEIRS", `{"spec":{"cancel":true}}`},
	{"PATCH", "/apis/velero.io/v2alpha1/namespaces/$VELERO/datauploads/$THEIRS", `{"metadata":{"annotations":{"note":"x"}}}`},
	{"PATCH", "/apis/velero.io/v2alpha1/namespaces/$VELERO/datauploads/$THEIRS", `{"metadata":{"labels":{"velero.io/backup-name":"x"}}}`},
	{"PATCH", "/apis/velero.io/v2alpha1/namespaces/$VELERO/datauploads/$THEIRS", `{"metadata":{"annotations":{"blockmover.io/attempt":null}}}`},
	{"PATCH", "/apis/velero.io/v2alpha1/namespaces/$VELERO/datauploads/$THEIRS", `{"status":{"phase":"Completed"}}`},
	{"PATCH", "/apis/apps/v1/namespaces/$VELERO/deployments/blockmover", `{"spec":{"replicas":0}}`},
}

// TestDangerousCalls makes requests with the token of each account that deploy can make, with all of its components
// installed. All of them are refused. With dryRun they would do nothing if they were not, and are decided all the same.
func TestDangerousCalls(t *testing.T) {
	s := newScenario(t)
	namespace := s.namespace("dangerous")
	_, accounts := s.installAllRights()
	velero := s.kit.VeleroNamespace
	server, err := s.kit.Kubectl(s.ctx, "-n", velero, "get", "pods", "-l", "deploy=velero", "-o", "jsonpath={.items[0].metadata.name} {.items[0].spec.nodeName}")
	require.NoError(t, err)
	pod, node, _ := strings.Cut(server, " ")
	s.applyTheirs(namespace)

	for _, account := range accounts {
		calls := slices.Clone(dangerous)
		switch account {
		case "blockmover-plugin": // it is there to change this one
		default:
			calls = append(calls, call{"PATCH", "/apis/apps/v1/namespaces/$VELERO/deployments/velero", `{"spec":{"replicas":0}}`})
		}
		fill := strings.NewReplacer("$APP", namespace, "$VELERO", velero, "$THEIRS", s.name("theirs"), "$SERVER", pod, "$NODE", node, "$ACCOUNT", account,
			"$NAME", "blockmover-verify", "$COMPONENT", "reader", "$AS", "velero", "$PRIVILEGED", "false", "$MORE", "")
		config := s.accountConfig(account)
		for _, c := range calls {
			require.NoError(t, refused(s.ctx, config, fill, c), account)
		}
		impersonator := rest.CopyConfig(config)
		impersonator.Impersonate = rest.ImpersonationConfig{UserName: "system:admin", Groups: []string{"system:masters"}}
		require.NoError(t, refused(s.ctx, impersonator, fill, call{"GET", "/api/v1/nodes", ""}), account)
		impersonator.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + velero + ":velero"}
		require.NoError(t, refused(s.ctx, impersonator, fill, call{"GET", "/api/v1/nodes", ""}), account)
		t.Logf("%s: %d requests were refused", account, len(calls)+2)
	}
}

// TestVerifierJobs tries with the token of the verifier which Jobs it may make and delete.
func TestVerifierJobs(t *testing.T) {
	s := newScenario(t)
	namespace := s.namespace("verifier")
	s.installAllRights()
	s.applyTheirs(namespace)
	config := s.accountConfig("blockmover-verifier")
	jobs := "/apis/batch/v1/namespaces/" + s.kit.VeleroNamespace + "/jobs"
	for _, c := range []struct{ name, component, account, privileged, more, want string }{
		{"blockmover-verify", "reader", "blockmover-worker", "false", "", ""},
		{"blockmover-restore-test", "reader", "blockmover-worker", "false", "", ""},
		{"maintenance", "reader", "blockmover-worker", "false", "", "only Jobs that read images"},
		{"blockmover-verify", "worker", "blockmover-worker", "false", "", "only Jobs that read images"},
		{"blockmover-verify", "reader", "velero", "false", "", "run as blockmover-worker"},
		{"blockmover-verify", "reader", "", "false", "", "run as blockmover-worker"},
		{"blockmover-verify", "reader", "blockmover-worker", "true", "", "no access to their node"},
		{"blockmover-verify", "reader", "blockmover-worker", "false", `,"hostNetwork":true`, "no access to their node"},
		{"blockmover-verify", "reader", "blockmover-worker", "false", `,"volumes":[{"name":"v","hostPath":{"path":"/"}}]`, "no access to their node"},
		{"blockmover-verify", "reader", "blockmover-worker", "false", `,"initContainers":[{"name":"i","image":"x"}]`, "no access to their node"},
	} {
		fill := strings.NewReplacer("$NAME", c.name, "$COMPONENT", c.component, "$AS", c.account, "$PRIVILEGED", c.privileged, "$MORE", c.more)
		err := request(s.ctx, config, fill, call{"POST", jobs, jobBody})
		if c.want == "" {
			require.NoError(t, err, "%v", c)
			continue
		}
		require.ErrorContains(t, err, c.want, "%v", c)
	}
	none := strings.NewReplacer()
	require.ErrorContains(t, request(s.ctx, config, none, call{"DELETE", jobs + "/" + s.name("theirs"), ""}), "only Jobs that read images")
	upload := "/apis/velero.io/v2alpha1/namespaces/" + s.kit.VeleroNamespace + "/datauploads/" + s.name("theirs")
	require.NoError(t, request(s.ctx, config, none, call{"PATCH", upload, `{"metadata":{"annotations":{"blockmover.io/verified":"x","blockmover.io/restore-tested":"y"}}}`}))
}

// applyTheirs makes a namespace with a Secret and a PVC, and in Velero's namespace a DataUpload and a Job that are not ours.
func (s *scenario) applyTheirs(namespace string) {
	s.Helper()
	manifest := strings.NewReplacer("$NAMESPACE", namespace, "$VELERO", s.kit.VeleroNamespace, "$NAME", s.name("theirs")).Replace(`apiVersion: v1
kind: Namespace
metadata: {name: $NAMESPACE}
---
apiVersion: v1
kind: Secret
metadata: {namespace: $NAMESPACE, name: theirs}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {namespace: $NAMESPACE, name: theirs}
spec: {accessModes: [ReadWriteOnce], storageClassName: nobody, resources: {requests: {storage: 1Gi}}}
---
apiVersion: batch/v1
kind: Job
metadata: {namespace: $VELERO, name: $NAME}
spec:
  suspend: true
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: x}]}}
---
apiVersion: velero.io/v2alpha1
kind: DataUpload
metadata: {namespace: $VELERO, name: $NAME, annotations: {blockmover.io/attempt: "{}"}}
spec:
  datamover: somebody-else
  snapshotType: CSI
  sourceNamespace: $NAMESPACE
  sourcePVC: theirs
  backupStorageLocation: default
  operationTimeout: 10m
  csiSnapshot: {volumeSnapshot: theirs, storageClass: none, snapshotClass: none}
`)
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "delete", "job/"+s.name("theirs"), "datauploads.velero.io/"+s.name("theirs"))
		require.NoError(s, err)
	})
	require.NoError(s, s.kit.Apply(s.ctx, manifest))
}

func (s *scenario) accountConfig(name string) *rest.Config {
	s.Helper()
	account, err := s.kit.Account(s.ctx, s.TempDir(), s.kit.VeleroNamespace, name)
	require.NoError(s, err)
	config, err := account.Config()
	require.NoError(s, err)
	return config
}

// refused returns an error unless the API server has refused a request for the want of a right.
func refused(ctx context.Context, config *rest.Config, fill *strings.Replacer, c call) error {
	err := request(ctx, config, fill, c)
	if apierrors.IsForbidden(err) {
		return nil
	}
	return fmt.Errorf("%s %s %s: want it to be refused, got: %s", c.method, c.path, c.body, fmt.Sprint(err)) // it may be nil
}

func request(ctx context.Context, config *rest.Config, fill *strings.Replacer, c call) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	path, query, _ := strings.Cut(fill.Replace(c.path), "?")
	r := client.CoreV1().RESTClient().Verb(c.method).AbsPath(path)
	for pair := range strings.SplitSeq(query, "&") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			r = r.Param(key, value)
		}
	}
	if c.method != http.MethodGet && !strings.HasSuffix(path, "/attach") && !strings.HasSuffix(path, "/exec") {
		r = r.Param("dryRun", "All")
	}
	content := "application/json"
	if c.method == http.MethodPatch {
		content = "application/merge-patch+json"
	}
	r = r.SetHeader("Content-Type", content)
	if c.body != "" {
		r = r.Body([]byte(fill.Replace(c.body)))
	}
	return r.Do(ctx).Error()
}
