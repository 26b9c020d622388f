package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// unrelated are objects that Blockmover has nothing to do with. No driver answers to their name.
const unrelated = `apiVersion: v1
kind: PersistentVolume
metadata: {name: $NAME}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: none
  csi: {driver: none.example.com, volumeHandle: theirs}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: $NAME}
spec:
  deletionPolicy: Retain
  driver: none.example.com
  source: {snapshotHandle: theirs}
  volumeSnapshotRef: {namespace: $NAMESPACE, name: theirs}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {namespace: $NAMESPACE, name: theirs}
spec: {source: {volumeSnapshotContentName: $NAME}}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {namespace: $VELERO, name: $NAME}
spec: {source: {volumeSnapshotContentName: $NAME}}
---
apiVersion: groupsnapshot.storage.k8s.io/$GROUP
kind: VolumeGroupSnapshot
metadata: {namespace: $NAMESPACE, name: theirs}
spec: {source: {volumeGroupSnapshotContentName: $NAME}}
---
apiVersion: groupsnapshot.storage.k8s.io/$GROUP
kind: VolumeGroupSnapshotContent
metadata: {name: $NAME}
spec:
  deletionPolicy: Retain
  driver: none.example.com
  source: {groupSnapshotHandles: {volumeGroupSnapshotHandle: theirs, volumeSnapshotHandles: [theirs]}}
  volumeGroupSnapshotRef: {namespace: $NAMESPACE, name: theirs}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {namespace: $NAMESPACE, name: theirs, labels: {app: db}, annotations: {note: theirs}}
spec: {accessModes: [ReadWriteOnce], storageClassName: nobody, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {namespace: $VELERO, name: $NAME}
spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}
---
apiVersion: velero.io/v2alpha1
kind: DataUpload
metadata: {namespace: $VELERO, name: $NAME}
spec:
  datamover: somebody-else
  snapshotType: CSI
  sourceNamespace: $NAMESPACE
  sourcePVC: theirs
  backupStorageLocation: default
  operationTimeout: 10m
  csiSnapshot: {volumeSnapshot: theirs, storageClass: none, snapshotClass: none}
`

// manifests that the accounts of Blockmover must not be able to create.
const (
	podManifest = `apiVersion: v1
kind: Pod
metadata: {namespace: $VELERO, name: blockmover-$NAME, labels: {blockmover.io/operation: x}}
spec:
  serviceAccountName: $ACCOUNT
  volumes: $VOLUMES
  containers: [{name: c, image: busybox:e2e, securityContext: {allowPrivilegeEscalation: $PRIVILEGED, privileged: $PRIVILEGED}}]
`
	volumeManifest = `apiVersion: v1
kind: PersistentVolume
metadata: {name: blockmover-$NAME, labels: {blockmover.io/operation: x}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  csi: {driver: none.example.com, volumeHandle: theirs}
`
	// aliasManifest is a second PersistentVolume of somebody's volume. Its label is the rest of its name.
	aliasManifest = `apiVersion: v1
kind: PersistentVolume
metadata: {name: blockmover-in-place-$ALIAS, labels: {blockmover.io/alias: $ALIAS}, annotations: {$ANNOTATION: none.example.com}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: $POLICY
  volumeMode: $MODE
  claimRef: {namespace: $CLAIM, name: blockmover-$ALIAS}
  csi: {driver: none.example.com, volumeHandle: theirs}
`
	contentManifest = `apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: blockmover-$NAME, labels: {blockmover.io/operation: x}}
spec:
  deletionPolicy: Delete
  driver: none.example.com
  source: {snapshotHandle: theirs}
  volumeSnapshotRef: {namespace: $NAMESPACE, name: theirs}
`
	groupContentManifest = `apiVersion: groupsnapshot.storage.k8s.io/$GROUP
kind: VolumeGroupSnapshotContent
metadata: {name: blockmover-$NAME}
spec:
  deletionPolicy: Delete
  driver: none.example.com
  source: {groupSnapshotHandles: {volumeGroupSnapshotHandle: theirs, volumeSnapshotHandles: [theirs]}}
  volumeGroupSnapshotRef: {namespace: $NAMESPACE, name: theirs}
`
)

// TestRights tries with the tokens of our accounts what is not their work. The other scenarios
// show that the rights are enough.
func TestRights(t *testing.T) {
	s := newScenario(t)
	namespace, name := s.namespace("rights"), s.name("theirs")
	_, err := s.kit.Kubectl(s.ctx, "create", "namespace", namespace)
	require.NoError(t, err)
	served, err := s.kit.Kubectl(s.ctx, "get", "crd", "volumegroupsnapshots.groupsnapshot.storage.k8s.io", "-o", "jsonpath={.spec.versions[?(@.storage==true)].name}")
	require.NoError(t, err)
	fill := strings.NewReplacer("$NAMESPACE", namespace, "$NAME", name, "$VELERO", s.kit.VeleroNamespace, "$GROUP", served)
	t.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Run(ctx, fill.Replace(unrelated), "kubectl", "delete", "--wait=false", "--ignore-not-found", "-f", "-")
		require.NoError(t, err)
		// Their driver, which would let go of them, does not exist.
		for _, kind := range []string{"volumesnapshotcontent", "volumegroupsnapshotcontent"} {
			_, err := s.kit.Kubectl(ctx, "patch", kind, name, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
			require.NoError(t, err)
		}
	})
	require.NoError(t, s.kit.Apply(s.ctx, fill.Replace(unrelated)))

	accounts := map[string]*kit.Account{}
	for _, account := range []string{"blockmover-manager", "blockmover-worker"} {
		accounts[account], err = s.kit.Account(s.ctx, t.TempDir(), s.kit.VeleroNamespace, account)
		require.NoError(t, err)
	}
	pod := func(account, volumes, privileged string) string {
		return strings.NewReplacer("$ACCOUNT", account, "$VOLUMES", volumes, "$PRIVILEGED", privileged).Replace(podManifest)
	}
	alias := func(name, policy, mode, claim, annotation string) string {
		return strings.NewReplacer("$ALIAS", name, "$POLICY", policy, "$MODE", mode, "$CLAIM", claim, "$ANNOTATION", annotation).Replace(aliasManifest)
	}
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Kubectl(ctx, "delete", "pv", "blockmover-in-place-"+name)
		require.NoError(t, err)
	})
	require.NoError(t, s.kit.Apply(s.ctx, fill.Replace(alias("$NAME", "Retain", "Block", "$VELERO", "note"))))
	const rbac = "is forbidden: User"
	velero := "-n $VELERO "
	app := "-n $NAMESPACE "
	for _, try := range []struct {
		account, command, stdin, refused string
	}{
		{"blockmover-manager", `patch pv $NAME -p {"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`, "", "blockmover-persistentvolumes"},
		{"blockmover-manager", `patch pv $NAME -p {"metadata":{"labels":{"blockmover.io/operation":"x"}}}`, "", "blockmover-persistentvolumes"},
		{"blockmover-manager", "delete pv $NAME --wait=false", "", "blockmover-persistentvolumes"},
		{"blockmover-manager", "create -f -", volumeManifest, "blockmover-persistentvolumes"},
		{"blockmover-manager", `patch pv blockmover-in-place-$NAME -p {"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`, "", "the manager does not change an alias"},
		{"blockmover-manager", "create -f -", alias("$NAME-2", "Delete", "Block", "$VELERO", "note"), "an alias is retained"},
		{"blockmover-manager", "create -f -", alias("$NAME-2", "Retain", "Filesystem", "$VELERO", "note"), "an alias is retained"},
		{"blockmover-manager", "create -f -", alias("$NAME-2", "Retain", "Block", "$NAMESPACE", "note"), "an alias is retained"},
		{"blockmover-manager", "create -f -", alias("$NAME-2", "Retain", "Block", "$VELERO", "pv.kubernetes.io/provisioned-by"), "is not known to a provisioner"},

		{"blockmover-manager", app + `patch pvc theirs -p {"spec":{"volumeName":"mine"}}`, "", "blockmover-persistentvolumeclaims"},
		{"blockmover-manager", app + `patch pvc theirs -p {"metadata":{"labels":{"app":"mine"}}}`, "", "blockmover-persistentvolumeclaims"},
		{"blockmover-manager", app + `patch pvc theirs -p {"metadata":{"labels":{"app":null}}}`, "", "blockmover-persistentvolumeclaims"},
		{"blockmover-manager", app + `patch pvc theirs -p {"metadata":{"annotations":{"note":"mine"}}}`, "", "blockmover-persistentvolumeclaims"},
		{"blockmover-manager", app + "delete pvc theirs --wait=false", "", rbac},
		{"blockmover-manager", velero + "delete pvc $NAME --wait=false", "", "blockmover-persistentvolumeclaims"},

		{"blockmover-manager", app + `patch volumesnapshot theirs --type=merge -p {"metadata":{"labels":{"blockmover.io/backup-uid":"x"}}}`, "", "blockmover-volumesnapshots"},
		{"blockmover-manager", app + "delete volumesnapshot theirs --wait=false", "", "blockmover-volumesnapshots"},
		{"blockmover-manager", velero + "delete volumesnapshot $NAME --wait=false", "", "blockmover-volumesnapshots"},
		{"blockmover-manager", `patch volumesnapshotcontent $NAME --type=merge -p {"spec":{"deletionPolicy":"Delete"}}`, "", "blockmover-volumesnapshotcontents"},
		{"blockmover-manager", `patch volumesnapshotcontent $NAME --type=merge -p {"metadata":{"labels":{"blockmover.io/operation":"x"}},"spec":{"deletionPolicy":"Delete"}}`, "", "blockmover-volumesnapshotcontents"},
		{"blockmover-manager", "delete volumesnapshotcontent $NAME --wait=false", "", "blockmover-volumesnapshotcontents"},
		{"blockmover-manager", "create -f -", contentManifest, "blockmover-volumesnapshotcontents"},
		{"blockmover-manager", app + "delete volumegroupsnapshot theirs --wait=false", "", "blockmover-volumegroupsnapshots"},
		{"blockmover-manager", `patch volumegroupsnapshotcontent $NAME --type=merge -p {"spec":{"deletionPolicy":"Delete"}}`, "", "blockmover-volumegroupsnapshots"},
		{"blockmover-manager", "delete volumegroupsnapshotcontent $NAME --wait=false", "", "blockmover-volumegroupsnapshots"},
		{"blockmover-manager", "create -f -", groupContentManifest, "blockmover-volumegroupsnapshots"},

		{"blockmover-manager", velero + `patch dataupload $NAME --type=merge -p {"spec":{"cancel":true}}`, "", "blockmover-operations"},
		{"blockmover-manager", velero + "delete dataupload $NAME --wait=false", "", rbac},
		{"blockmover-manager", "create -f -", pod("velero", "[]", "false"), "blockmover-pods"},
		{"blockmover-manager", "create -f -", pod("blockmover-worker", "[{name: v, hostPath: {path: /}}]", "false"), "blockmover-pods"},
		{"blockmover-manager", "create -f -", pod("blockmover-worker", "[]", "true"), "blockmover-pods"},
		{"blockmover-manager", velero + "delete pod -l deploy=velero --wait=false", "", "blockmover-pods"},
		{"blockmover-manager", app + "create -f -", strings.ReplaceAll(pod("default", "[]", "false"), "$VELERO", "$NAMESPACE"), rbac},
		{"blockmover-manager", velero + "get secrets", "", rbac},
		{"blockmover-manager", velero + "get configmaps", "", rbac},
		{"blockmover-manager", velero + "exec deploy/velero -- true", "", rbac},
		{"blockmover-manager", velero + `patch backupstoragelocation default --type=merge -p {"spec":{"default":false}}`, "", rbac},

		{"blockmover-worker", velero + `patch dataupload $NAME --type=merge -p {"spec":{"cancel":true}}`, "", rbac},
		{"blockmover-worker", velero + "get datauploads", "", rbac},
		{"blockmover-worker", velero + "get datadownloads", "", rbac},
		{"blockmover-worker", velero + "get secrets", "", rbac},
		{"blockmover-worker", velero + "get pods", "", rbac},
		{"blockmover-worker", velero + "get volumesnapshots", "", rbac},
		{"blockmover-worker", velero + "delete volumesnapshot $NAME --wait=false", "", rbac},
		{"blockmover-worker", app + "get volumesnapshot theirs", "", rbac},
		{"blockmover-worker", app + "get pvc", "", rbac},
		{"blockmover-worker", "get pv", "", rbac},
		{"blockmover-worker", "get volumesnapshotcontents", "", rbac},
		{"blockmover-worker", "create -f -", pod("blockmover-worker", "[]", "false"), rbac},
	} {
		t.Run(try.account+" "+try.command, func(t *testing.T) {
			_, err := accounts[try.account].Kubectl(s.ctx, fill.Replace(try.stdin), strings.Fields(fill.Replace(try.command))...)
			require.ErrorContains(t, err, try.refused, "%s", try.command)
		})
	}
}

// TestTenants lets the administrator of a namespace write our labels on what is theirs. They
// lose nothing by it, and win nothing.
func TestTenants(t *testing.T) {
	s := newScenario(t)
	app := s.app("tenant")
	tenant := s.tenant(app.Namespace)
	pvcs, err := s.kit.List(s.ctx, "-n", app.Namespace, "pvc")
	require.NoError(t, err)
	claim := pvcs[0].Metadata.Name
	snapshot := fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {namespace: %s, name: nightly}
spec: {source: {persistentVolumeClaimName: %s}}
`, app.Namespace, claim)
	_, err = tenant.Kubectl(s.ctx, snapshot, "create", "-f", "-")
	require.NoError(t, err)
	_, err = s.kit.Kubectl(s.ctx, "-n", app.Namespace, "wait", "volumesnapshot/nightly", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s")
	require.NoError(t, err)
	content, err := s.kit.Kubectl(s.ctx, "-n", app.Namespace, "get", "volumesnapshot", "nightly", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}")
	require.NoError(t, err)
	_, err = s.kit.Kubectl(s.ctx, "patch", "volumesnapshotcontent", content, "--type=merge", "-p", `{"spec":{"deletionPolicy":"Retain"}}`)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Kubectl(ctx, "patch", "volumesnapshotcontent", content, "--type=merge", "-p", `{"spec":{"deletionPolicy":"Delete"}}`)
		require.NoError(t, err)
	})

	for _, labels := range [][]string{
		{"volumesnapshot/nightly", "blockmover.io/backup-uid=gone", "blockmover.io/operation=gone", "blockmover.io/retained=auto"},
		// The sweep removes the stamp of a group that does not exist, so its end can be seen.
		{"pvc/" + claim, "blockmover.io/operation=gone", "blockmover.io/grouped=true", "blockmover.io/group-0123456789=gone"},
	} {
		_, err = tenant.Kubectl(s.ctx, "", append([]string{"-n", app.Namespace, "label"}, labels...)...)
		require.NoError(t, err)
	}
	require.NoError(t, s.kit.RestartMover(s.ctx)) // a new one sweeps at once
	s.wait("sweep", func(ctx context.Context) (bool, string, error) {
		var o kit.Object
		err := s.kit.Get(ctx, &o, "-n", app.Namespace, "pvc", claim)
		_, stamped := o.Metadata.Labels["blockmover.io/group-0123456789"]
		return !stamped, fmt.Sprint(o.Metadata.Labels), err
	})
	for what, want := range map[string]string{
		"-n " + app.Namespace + " volumesnapshot nightly -o jsonpath={.metadata.deletionTimestamp}{.status.readyToUse}": "true",
		"-n " + app.Namespace + " pvc " + claim + " -o jsonpath={.metadata.deletionTimestamp}{.status.phase}":           "Bound",
		"volumesnapshotcontent " + content + " -o jsonpath={.metadata.deletionTimestamp}{.spec.deletionPolicy}":         "Retain",
	} {
		got, err := s.kit.Kubectl(s.ctx, append([]string{"get"}, strings.Fields(what)...)...)
		require.NoError(t, err)
		require.Equal(t, want, got, what)
	}

	for _, command := range []string{
		"-n $VELERO get secrets", "-n $VELERO get datauploads", "-n $VELERO get pods", "-n $VELERO get volumesnapshots",
		"get volumesnapshotcontents", "get pv",
		`patch volumesnapshotcontent $CONTENT --type=merge -p {"spec":{"deletionPolicy":"Delete"}}`,
		"-n $VELERO create configmap mine", "-n $VELERO delete pods --all --wait=false",
	} {
		_, err := tenant.Kubectl(s.ctx, "", strings.Fields(strings.NewReplacer("$VELERO", s.kit.VeleroNamespace, "$CONTENT", content).Replace(command))...)
		require.ErrorContains(t, err, "is forbidden: User", command)
	}
}

// tenant makes an account that may do everything in a namespace.
func (s *scenario) tenant(namespace string) *kit.Account {
	s.Helper()
	require.NoError(s, s.kit.Apply(s.ctx, strings.ReplaceAll(`apiVersion: v1
kind: ServiceAccount
metadata: {namespace: $NAMESPACE, name: tenant}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {namespace: $NAMESPACE, name: tenant}
rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {namespace: $NAMESPACE, name: tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: tenant}
subjects: [{kind: ServiceAccount, namespace: $NAMESPACE, name: tenant}]
`, "$NAMESPACE", namespace)))
	account, err := s.kit.Account(s.ctx, s.TempDir(), namespace, "tenant")
	require.NoError(s, err)
	return account
}
