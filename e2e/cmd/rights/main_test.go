package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnusedRights(t *testing.T) {
	directory := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(directory, name)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	write("rbac.yaml", `# A comment.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: manager}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, delete]}
- {apiGroups: [""], resources: [pods/log], verbs: [get]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [ours, other], verbs: [get]}
- {apiGroups: [""], resources: [secrets], resourceNames: [none], verbs: [get]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: manager}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: everywhere}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
- {apiGroups: [apps], resources: [deployments], verbs: [list]}
- {apiGroups: [""], resources: [nodes], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: manager}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: manager}
subjects: [{kind: ServiceAccount, name: manager}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: manager}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: everywhere}
subjects: [{kind: ServiceAccount, name: manager}]
`)
	const head = `{"user":{"username":"system:serviceaccount:velero:`
	log := write("audit.log", head+`manager"},"verb":"get","objectRef":{"resource":"pods","namespace":"velero"}}
`+head+`manager"},"verb":"get","objectRef":{"resource":"pods","subresource":"log","namespace":"velero"}}
`+head+`manager"},"userAgent":"kubectl/v1","verb":"delete","objectRef":{"resource":"pods","namespace":"velero"}}
`+head+`worker"},"verb":"list","objectRef":{"resource":"deployments","apiGroup":"apps","namespace":"velero"}}
`+head+`manager"},"verb":"get"}
`+head+`manager"},"verb":"get","objectRef":{"resource":"configmaps","name":"ours","namespace":"velero"}}
`+head+`manager"},"verb":"get","objectRef":{"resource":"secrets","name":"of-a-driver","namespace":"velero"}}
`)
	unused, err := run(directory, []string{log})
	require.NoError(t, err)
	require.Equal(t, []string{
		`Role manager: delete pods (apiGroup "")`,
		`Role manager: get configmaps (apiGroup "") of name other`,
		`ClusterRole manager: get pods (apiGroup "")`,
		`ClusterRole manager: list deployments (apiGroup "apps")`,
		`ClusterRole manager: list nodes (apiGroup "")`,
		`ClusterRole manager: watch nodes (apiGroup "")`,
	}, unused)

	elsewhere := write("more.log", head+`manager"},"verb":"get","objectRef":{"resource":"pods","namespace":"app"}}
`+head+`manager"},"verb":"delete","objectRef":{"resource":"pods","namespace":"velero"}}
`+head+`manager"},"verb":"list","objectRef":{"resource":"deployments","apiGroup":"apps","namespace":"velero"}}
`+head+`manager"},"verb":"watch","objectRef":{"resource":"nodes"}}
`+head+`manager"},"verb":"get","objectRef":{"resource":"configmaps","name":"other","namespace":"velero"}}
`)
	unused, err = run(directory, []string{log, elsewhere})
	require.NoError(t, err)
	require.Empty(t, unused)
}
