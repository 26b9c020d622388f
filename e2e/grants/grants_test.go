package grants_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/grants"
)

const manifests = `# A comment.
apiVersion: v1
kind: ServiceAccount
metadata: {name: nightly}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reads}
rules:
- {apiGroups: [""], resources: [pods, pods/log], verbs: [get]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [a, b], verbs: [update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reads}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: of-any-name}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reads}
subjects: [{kind: ServiceAccount, name: nightly}, {kind: ServiceAccount, name: other}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reads}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reads}
subjects: [{kind: ServiceAccount, name: nightly}]
`

func TestRead(t *testing.T) {
	all, accounts, err := grants.Read([]byte(manifests))
	require.NoError(t, err)
	require.Equal(t, []string{"nightly"}, accounts)
	want := []grants.Grant{{Account: "nightly", Cluster: true, Resource: "nodes", Verb: "list"}}
	for _, account := range []string{"nightly", "other"} {
		want = append(want,
			grants.Grant{Account: account, Resource: "pods", Verb: "get"},
			grants.Grant{Account: account, Resource: "pods/log", Verb: "get"},
			grants.Grant{Account: account, Group: "coordination.k8s.io", Resource: "leases", Verb: "update", Name: "a"},
			grants.Grant{Account: account, Group: "coordination.k8s.io", Resource: "leases", Verb: "update", Name: "b"})
	}
	require.ElementsMatch(t, want, all)
	require.Equal(t, `Role other: update leases (apiGroup "coordination.k8s.io") of name b`, all[7].String())
}

func TestRefused(t *testing.T) {
	const head = "apiVersion: rbac.authorization.k8s.io/v1\n"
	role := func(rule string) string {
		return head + "kind: ClusterRole\nmetadata: {name: x}\nrules: [" + rule + "]\n---\n" +
			head + "kind: ClusterRoleBinding\nmetadata: {name: x}\nroleRef: {kind: ClusterRole, name: x}\nsubjects: [{kind: ServiceAccount, name: a}]\n"
	}
	for name, c := range map[string]struct{ manifests, want string }{
		"every verb":     {role(`{apiGroups: [""], resources: [pods], verbs: ["*"]}`), "by name"},
		"every resource": {role(`{apiGroups: [""], resources: ["*"], verbs: [get]}`), "by name"},
		"every group":    {role(`{apiGroups: ["*"], resources: [pods], verbs: [get]}`), "by name"},
		"a path":         {role(`{nonResourceURLs: [/metrics], verbs: [get]}`), "by name"},
		"a group of users": {head + "kind: Role\nmetadata: {name: x}\n---\n" + head +
			"kind: RoleBinding\nmetadata: {name: x}\nroleRef: {kind: Role, name: x}\nsubjects: [{kind: Group, name: 'system:authenticated'}]\n", "Group system:authenticated"},
		"a role of others": {head + "kind: RoleBinding\nmetadata: {name: x}\nroleRef: {kind: ClusterRole, name: admin}\nsubjects: [{kind: ServiceAccount, name: a}]\n", "ClusterRole admin"},
		"a role of nobody": {head + "kind: Role\nmetadata: {name: x}\n", "bound to nobody"},
	} {
		_, _, err := grants.Read([]byte(c.manifests))
		require.ErrorContains(t, err, c.want, name)
	}
}

// TestDeploy reads what is in deploy.
func TestDeploy(t *testing.T) {
	found := map[string]bool{}
	for _, directory := range []string{".", "copies", "kubevirt", "restore-test", "verify"} {
		var text []byte
		files, err := filepath.Glob(filepath.Join("../../deploy", directory, "*.yaml"))
		require.NoError(t, err)
		for _, file := range files {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			text = append(append(text, "\n---\n"...), content...)
		}
		all, _, err := grants.Read(text)
		require.NoError(t, err, directory)
		require.NotEmpty(t, all, directory)
		for _, g := range all {
			found[g.Account] = true
		}
	}
	require.Equal(t, map[string]bool{"blockmover-manager": true, "blockmover-worker": true, "blockmover-verifier": true}, found)
}
