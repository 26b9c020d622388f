package exposer_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/mover/exposer"
)

var op = identity.Operation{Kind: "DataUpload", Namespace: "velero", Name: "du", UID: "uid-1"}

func parse(t *testing.T, document string) config.Config {
	t.Helper()
	c, err := config.Parse([]byte(document))
	require.NoError(t, err)
	return c
}

func podOf(t *testing.T, plan exposer.PodPlan) *corev1.Pod {
	t.Helper()
	plan.Operation, plan.Image, plan.Attempt, plan.Task = op, "blockmover:1", 1, "{}"
	pod, err := plan.Pod()
	require.NoError(t, err)
	return pod
}

// TestPodIsUnprivileged: a mover pod is unprivileged with every configuration.
func TestPodIsUnprivileged(t *testing.T) {
	for name, document := range map[string]string{
		"defaults": "",
		"non-root": "securityContext: {runAsUser: 65532, runAsGroup: 65532, supplementalGroups: [6]}",
		"hostile":  "podLabels: {blockmover.io/operation: other, velero.io/exclude-from-backup: \"false\"}\npodAnnotations: {blockmover.io/operation-of: DataUpload/velero/other}",
	} {
		t.Run(name, func(t *testing.T) {
			plan := exposer.PodPlan{
				Config: parse(t, document), Relabel: true, Inherited: inherited(), Audience: "metadata",
				LocationSecrets: []corev1.SecretKeySelector{{LocalObjectReference: corev1.LocalObjectReference{Name: "s3"}, Key: "credentials"}},
			}
			pod := podOf(t, plan)
			require.Equal(t, "blockmover-uid-1", pod.Name)
			require.Equal(t, "uid-1", pod.Labels[identity.LabelOperation])
			require.Equal(t, "true", pod.Labels["velero.io/exclude-from-backup"])
			require.Equal(t, "DataUpload/velero/du", pod.Annotations["blockmover.io/operation-of"])
			require.Equal(t, "uid-1", string(pod.OwnerReferences[0].UID))

			require.False(t, pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC)
			require.Equal(t, corev1.RestartPolicyNever, pod.Spec.RestartPolicy)
			require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.Spec.SecurityContext.SeccompProfile.Type)
			require.Equal(t, *pod.Spec.SecurityContext.RunAsUser != 0, *pod.Spec.SecurityContext.RunAsNonRoot)
			require.Len(t, pod.Spec.Containers, 1)
			security := pod.Spec.Containers[0].SecurityContext
			require.False(t, *security.Privileged)
			require.False(t, *security.AllowPrivilegeEscalation)
			require.True(t, *security.ReadOnlyRootFilesystem)
			require.Equal(t, []corev1.Capability{"ALL"}, security.Capabilities.Drop)
			require.Empty(t, security.Capabilities.Add)
			for _, v := range pod.Spec.Volumes {
				require.Nil(t, v.HostPath, v.Name)
				if v.EmptyDir != nil {
					require.NotNil(t, v.EmptyDir.SizeLimit, v.Name)
				}
			}
			for _, m := range pod.Spec.Containers[0].VolumeMounts {
				writable := m.MountPath == exposer.HomePath || m.MountPath == exposer.ConnectionPath || m.MountPath == "/tmp"
				require.Equal(t, !writable, m.ReadOnly, m.MountPath)
			}
		})
	}
}

func TestPodHasWhatTheWorkerReads(t *testing.T) {
	mounts := func(pod *corev1.Pod) map[string]string {
		out := map[string]string{}
		for _, m := range pod.Spec.Containers[0].VolumeMounts {
			out[m.MountPath] = m.Name
		}
		return out
	}
	bare := podOf(t, exposer.PodPlan{Config: parse(t, ""), Relabel: true})
	require.Equal(t, map[string]string{
		"/home/blockmover": "home", "/home/blockmover/udmrepo": "connection", "/tmp": "tmp", "/credentials/repository": "repository",
	}, mounts(bare))
	for _, v := range bare.Spec.Volumes {
		if v.Name == "connection" {
			require.Equal(t, corev1.StorageMediumMemory, v.EmptyDir.Medium, "it holds a credential")
		}
	}
	require.Equal(t, []corev1.VolumeDevice{{Name: "device", DevicePath: "/dev/blockmover"}}, bare.Spec.Containers[0].VolumeDevices)
	require.Equal(t, []corev1.EnvVar{{Name: "BLOCKMOVER_TASK", Value: "{}"}, {Name: "HOME", Value: "/home/blockmover"}}, bare.Spec.Containers[0].Env)
	require.Nil(t, bare.Spec.Affinity)

	full := podOf(t, exposer.PodPlan{
		Config: parse(t, ""), Inherited: inherited(), Audience: "metadata", ReadOnly: true,
		LocationSecrets: []corev1.SecretKeySelector{{LocalObjectReference: corev1.LocalObjectReference{Name: "s3"}, Key: "credentials"}},
	})
	require.Equal(t, map[string]string{
		"/home/blockmover": "home", "/home/blockmover/udmrepo": "connection", "/tmp": "tmp", "/credentials/repository": "repository",
		"/credentials/location": "location", "/credentials/cloud": "cloud", "/var/run/secrets/blockmover/metadata": "metadata-token",
	}, mounts(full))
	require.Contains(t, full.Spec.Containers[0].Env, corev1.EnvVar{Name: "AWS_SHARED_CREDENTIALS_FILE", Value: "/credentials/cloud/cloud"})
	require.True(t, full.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly)
	require.Equal(t, "spc_t", full.Spec.SecurityContext.SELinuxOptions.Type)
	for _, v := range full.Spec.Volumes {
		if v.Name == "metadata-token" {
			require.Equal(t, "metadata", v.Projected.Sources[0].ServiceAccountToken.Audience)
			require.Equal(t, exposer.TokenPath, "/var/run/secrets/blockmover/metadata/"+v.Projected.Sources[0].ServiceAccountToken.Path)
		}
	}
}

func TestPodAffinity(t *testing.T) {
	settings := parse(t, "loadAffinity: [{nodeSelector: {matchLabels: {backup: \"yes\"}}}]")
	topology := &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}},
	}}}
	terms := func(plan exposer.PodPlan) []corev1.NodeSelectorTerm {
		plan.Config = settings
		return podOf(t, plan).Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	configured := corev1.NodeSelectorRequirement{Key: "backup", Operator: corev1.NodeSelectorOpIn, Values: []string{"yes"}}
	require.Equal(t, []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{configured}}}, terms(exposer.PodPlan{}))
	require.Equal(t, []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
		topology.NodeSelectorTerms[0].MatchExpressions[0], configured,
	}}}, terms(exposer.PodPlan{Topology: topology}))
	require.Len(t, topology.NodeSelectorTerms[0].MatchExpressions, 1, "the topology of the PV was changed")
	pinned := terms(exposer.PodPlan{Node: "n1", Topology: topology})
	require.Equal(t, []string{"n1"}, pinned[0].MatchFields[0].Values)
	require.Empty(t, pinned[0].MatchExpressions)
}

// TestPodOfADirectory: the pod runs as the owner of the files, without privileges, and on one node
// with those that share them.
func TestPodOfADirectory(t *testing.T) {
	p := exposer.PodPlan{Operation: op, Image: "i", Config: parse(t, ""), Attempt: 1, Task: "{}", Relabel: true}
	shared := map[string]string{identity.LabelVMBackup: "blockmover-vm-1"}
	p.Directory = &exposer.Directory{Claim: "blockmover-vm-1", UserID: 107, Shared: shared}
	pod, err := p.Pod()
	require.NoError(t, err)
	require.Equal(t, "blockmover-vm-1", pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
	c := pod.Spec.Containers[0]
	require.Empty(t, c.VolumeDevices)
	require.Contains(t, c.VolumeMounts, corev1.VolumeMount{Name: "device", MountPath: exposer.DirectoryPath, ReadOnly: true})
	require.EqualValues(t, 107, *pod.Spec.SecurityContext.RunAsUser)
	require.True(t, *pod.Spec.SecurityContext.RunAsNonRoot)
	require.Nil(t, pod.Spec.SecurityContext.FSGroup)
	require.Subset(t, pod.Labels, shared)
	require.Equal(t, shared, pod.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector.MatchLabels)

	p.Directory = &exposer.Directory{UserID: 107, Write: true}
	pod, err = p.Pod()
	require.NoError(t, err)
	require.Equal(t, p.Operation.ObjectName(), pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
	require.Contains(t, pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "device", MountPath: exposer.DirectoryPath})
	require.EqualValues(t, 107, *pod.Spec.SecurityContext.FSGroup)
}

func TestPlanBackupVolume(t *testing.T) {
	pvc := exposer.PlanBackupVolume(op, "snap", "fast", 123, config.BackupPVC{})
	require.Equal(t, corev1.PersistentVolumeBlock, *pvc.Spec.VolumeMode)
	require.Equal(t, "fast", *pvc.Spec.StorageClassName)
	require.Equal(t, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, pvc.Spec.AccessModes)
	require.Equal(t, "snap", pvc.Spec.DataSource.Name)
	require.Equal(t, int64(123), pvc.Spec.Resources.Requests.Storage().Value())

	pvc = exposer.PlanBackupVolume(op, "snap", "fast", 123, config.BackupPVC{
		StorageClass: "ro", ReadOnly: true, Annotations: map[string]string{"a": "b", "blockmover.io/operation-of": "x"},
	})
	require.Equal(t, "ro", *pvc.Spec.StorageClassName)
	require.Equal(t, []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}, pvc.Spec.AccessModes)
	require.Equal(t, map[string]string{"a": "b", "blockmover.io/operation-of": "DataUpload/velero/du"}, pvc.Annotations)

	require.Nil(t, exposer.PlanBackupVolume(op, "snap", "", 123, config.BackupPVC{}).Spec.StorageClassName)
	pvc = exposer.PlanBackupVolume(op, "snap", "fast", 123, config.BackupPVC{ReadWriteOncePod: true})
	require.Equal(t, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}, pvc.Spec.AccessModes)
}

// TestPodCache: the caches of a pod may be on a volume that lives as long as the pod.
func TestPodCache(t *testing.T) {
	home := func(pod *corev1.Pod) corev1.Volume { return pod.Spec.Volumes[1] }
	for size, want := range map[string]string{"8Gi": "10Gi", "1Gi": "2Gi", "5Gi": "6Gi", "100Mi": "1Gi"} {
		pod := podOf(t, exposer.PodPlan{Config: parse(t, "scratchSize: "+size), CacheClass: "fast"})
		require.Equal(t, "home", home(pod).Name)
		require.Nil(t, home(pod).EmptyDir)
		claim := home(pod).Ephemeral.VolumeClaimTemplate
		require.Equal(t, "fast", *claim.Spec.StorageClassName)
		require.Equal(t, want, claim.Spec.Resources.Requests.Storage().String())
		require.Equal(t, corev1.PersistentVolumeFilesystem, *claim.Spec.VolumeMode)
		require.Equal(t, "true", claim.Labels["velero.io/exclude-from-backup"])
		require.Nil(t, pod.Spec.SecurityContext.FSGroup, "root owns a new file system")
	}
	pod := podOf(t, exposer.PodPlan{Config: parse(t, "securityContext: {runAsUser: 1000, runAsGroup: 1001}"), CacheClass: "fast"})
	require.EqualValues(t, 1001, *pod.Spec.SecurityContext.FSGroup)
	require.NotNil(t, home(podOf(t, exposer.PodPlan{Config: parse(t, "")})).EmptyDir)
}

// TestPodEnv: configured variables replace those of Velero's server, and none of ours can be
// configured.
func TestPodEnv(t *testing.T) {
	from := inherited()
	from.Env = append(from.Env, corev1.EnvVar{Name: "HTTPS_PROXY", Value: "theirs"}, corev1.EnvVar{Name: "NO_PROXY", Value: "cluster"})
	pod := podOf(t, exposer.PodPlan{
		Config: parse(t, "env: [{name: HTTPS_PROXY, value: configured}, {name: MORE, valueFrom: {secretKeyRef: {name: s, key: k}}}]\npodResources: {memoryLimit: 1Gi}"), Inherited: from,
	})
	values, count := map[string]string{}, map[string]int{}
	for _, v := range pod.Spec.Containers[0].Env {
		values[v.Name] = v.Value
		count[v.Name]++
	}
	require.Equal(t, "configured", values["HTTPS_PROXY"])
	require.Equal(t, "cluster", values["NO_PROXY"])
	for name, n := range count {
		require.Equal(t, 1, n, name)
	}
	require.Contains(t, count, "MORE")

	ours := podOf(t, exposer.PodPlan{Config: parse(t, "podResources: {memoryLimit: 1Gi}"), Inherited: exposer.Inherited{Credential: from.Credential}})
	require.Greater(t, len(ours.Spec.Containers[0].Env), 4)
	for _, v := range ours.Spec.Containers[0].Env {
		_, err := config.Parse([]byte("env: [{name: " + v.Name + ", value: x}]"))
		require.ErrorContains(t, err, "which the mover sets itself", v.Name)
	}
}

// TestPlanRestoreVolume: one pod writes, whatever the target asks for, and the image fits.
func TestPlanRestoreVolume(t *testing.T) {
	class := "fast"
	for _, access := range []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce} {
		target := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{access}, StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}
		pvc := exposer.PlanRestoreVolume(op, exposer.RestoreVolume{Target: target, Size: 3 << 30})
		require.Equal(t, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}, pvc.Spec.AccessModes)
		require.Equal(t, "3Gi", pvc.Spec.Resources.Requests.Storage().String())
		require.Equal(t, "fast", *pvc.Spec.StorageClassName)
		pvc = exposer.PlanRestoreVolume(op, exposer.RestoreVolume{Target: target, Class: "slow", Size: 1})
		require.Equal(t, "1Gi", pvc.Spec.Resources.Requests.Storage().String())
		require.Equal(t, "slow", *pvc.Spec.StorageClassName)
	}
}

// TestPodToleratesItsNode: a pod that has to run on the node of the application tolerates what
// the application does.
func TestPodToleratesItsNode(t *testing.T) {
	pod := podOf(t, exposer.PodPlan{Node: "n1", Taints: []corev1.Taint{
		{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule}, {Key: "node.kubernetes.io/not-ready", Effect: corev1.TaintEffectNoExecute},
	}})
	require.Equal(t, []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpEqual, Value: "yes", Effect: corev1.TaintEffectNoSchedule}}, pod.Spec.Tolerations)
}

// TestPlanRebindRefusesOurLabels: a tenant writes the selector of a PVC, and must not write by
// it the labels that the sweep goes by.
func TestPlanRebindRefusesOurLabels(t *testing.T) {
	restored := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{}},
	}}
	target := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{identity.LabelOperation: "another"}},
	}}
	_, err := exposer.PlanRebind(op, "velero", restored, target, exposer.Mount{})
	require.ErrorIs(t, err, phase.ErrBroken)
	require.ErrorContains(t, err, identity.LabelOperation)
}

func TestPlanRebind(t *testing.T) {
	block, filesystem := corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem
	affinity := &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{}}
	restored := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: "pv-1", Finalizers: []string{"external-provisioner.volume.kubernetes.io/finalizer"},
			Labels: map[string]string{"zone": "a", identity.LabelOperation: "uid-1"},
			Annotations: map[string]string{
				"pv.kubernetes.io/provisioned-by": "driver", "pv.kubernetes.io/bound-by-controller": "yes", "blockmover.io/reclaim-policy": "Delete",
			},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")},
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &block,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName:              "fast", MountOptions: []string{"noatime"}, NodeAffinity: affinity,
			ClaimRef: &corev1.ObjectReference{Namespace: "velero", Name: "blockmover-uid-1", UID: "x"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: "driver", VolumeHandle: "h", VolumeAttributes: map[string]string{"k": "v"},
				NodeStageSecretRef: &corev1.SecretReference{Name: "s"},
			}},
		},
	}
	target := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}, VolumeMode: &filesystem,
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"velero.io/dynamic-pv-restore": "x"}},
	}}
	before := restored.DeepCopy()
	pv, err := exposer.PlanRebind(op, "velero", restored, target, exposer.Mount{Filesystem: "xfs"})
	require.NoError(t, err)
	require.Equal(t, before, restored)

	want := restored.Spec.DeepCopy()
	want.MountOptions = append(want.MountOptions, "nouuid")
	want.VolumeMode, want.CSI.FSType, want.AccessModes = &filesystem, "xfs", target.Spec.AccessModes
	want.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	want.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: "velero", Name: "blockmover-restored-uid-1"}
	require.Equal(t, *want, pv.Spec)
	require.Equal(t, "blockmover-restored-uid-1", pv.Name)
	require.Empty(t, pv.Finalizers)
	require.Equal(t, map[string]string{"zone": "a", identity.LabelOperation: "uid-1", "velero.io/dynamic-pv-restore": "x"}, pv.Labels)
	require.Equal(t, map[string]string{
		"pv.kubernetes.io/provisioned-by": "driver", "blockmover.io/reclaim-policy": "Delete", "blockmover.io/restored-volume": "pv-1",
	}, pv.Annotations)

	target.Spec.VolumeMode = &block
	pv, err = exposer.PlanRebind(op, "velero", restored, target, exposer.Mount{Filesystem: "xfs"})
	require.NoError(t, err)
	require.Empty(t, pv.Spec.CSI.FSType)

	restored.Spec.CSI = nil
	_, err = exposer.PlanRebind(op, "velero", restored, target, exposer.Mount{Filesystem: "xfs"})
	require.ErrorIs(t, err, phase.ErrBroken)
}

// TestPlanRebindResolvesSecrets: the class names Secrets by the PVC, and the PVC is the target now.
func TestPlanRebindResolvesSecrets(t *testing.T) {
	restored := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"},
		Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			NodeStageSecretRef:         &corev1.SecretReference{Name: "blockmover-1", Namespace: "velero"},
			NodePublishSecretRef:       &corev1.SecretReference{Name: "fixed", Namespace: "kube-system"},
			ControllerPublishSecretRef: &corev1.SecretReference{Name: "pvc-1-key", Namespace: "velero"},
		}}},
	}
	target := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "data", Annotations: map[string]string{"a/b": "key"}}}
	pv, err := exposer.PlanRebind(op, "velero", restored, target, exposer.Mount{Parameters: map[string]string{
		"csi.storage.k8s.io/node-stage-secret-name":              "${pvc.name}-${pvc.annotations['a/b']}",
		"csi.storage.k8s.io/node-stage-secret-namespace":         "${pvc.namespace}",
		"csi.storage.k8s.io/node-publish-secret-name":            "fixed",
		"csi.storage.k8s.io/node-publish-secret-namespace":       "kube-system",
		"csi.storage.k8s.io/controller-publish-secret-name":      "${pv.name}-key",
		"csi.storage.k8s.io/controller-publish-secret-namespace": "${pvc.namespace}",
		"csi.storage.k8s.io/node-expand-secret-name":             "${pvc.name}",
		"csi.storage.k8s.io/node-expand-secret-namespace":        "${pvc.namespace}",
	}})
	require.NoError(t, err)
	require.Equal(t, &corev1.SecretReference{Name: "data-key", Namespace: "app"}, pv.Spec.CSI.NodeStageSecretRef)
	require.Equal(t, &corev1.SecretReference{Name: "fixed", Namespace: "kube-system"}, pv.Spec.CSI.NodePublishSecretRef)
	require.Equal(t, &corev1.SecretReference{Name: "pvc-1-key", Namespace: "app"}, pv.Spec.CSI.ControllerPublishSecretRef)
	require.Nil(t, pv.Spec.CSI.NodeExpandSecretRef, "the driver was given none")
}

func TestFilesystemOf(t *testing.T) {
	require.Equal(t, "ext4", exposer.FilesystemOf(nil))
	require.Equal(t, "xfs", exposer.FilesystemOf(map[string]string{"csi.storage.k8s.io/fstype": "xfs"}))
	require.Equal(t, "btrfs", exposer.FilesystemOf(map[string]string{"fsType": "btrfs"}))
	require.Equal(t, "ext4", exposer.FilesystemOf(map[string]string{"fstype": "", "pool": "a"}))
}

func inherited() exposer.Inherited {
	return exposer.Inherited{
		Credential: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cloud-credentials"}, Key: "cloud"},
	}
}

// TestPodInherits: a mover pod reaches the object store as Velero's server does. Nothing replaces
// what is its own.
func TestPodInherits(t *testing.T) {
	pod, err := exposer.PodPlan{Operation: op, Image: "image", Attempt: 1, Task: "task", Config: parse(t, "podLabels: {a: config}"), Inherited: exposer.Inherited{
		Credential: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "velero-aws"}, Key: "aws"},
		Env:        []corev1.EnvVar{{Name: "HTTPS_PROXY", Value: "http://proxy:3128"}, {Name: "HOME", Value: "/elsewhere"}},
		EnvFrom:    []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "azure"}}}},
		Labels:     map[string]string{"azure.workload.identity/use": "true", "a": "server", identity.LabelOperation: "another"},
	}}.Pod()
	require.NoError(t, err)
	env := map[string]string{}
	for _, e := range pod.Spec.Containers[0].Env {
		require.NotContains(t, env, e.Name, "each variable once")
		env[e.Name] = e.Value
	}
	require.Equal(t, "http://proxy:3128", env["HTTPS_PROXY"])
	require.Equal(t, exposer.HomePath, env["HOME"])
	require.Equal(t, exposer.CloudPath+"/aws", env["AWS_SHARED_CREDENTIALS_FILE"])
	require.Equal(t, "azure", pod.Spec.Containers[0].EnvFrom[0].SecretRef.Name)
	require.Equal(t, "true", pod.Labels["azure.workload.identity/use"])
	require.Equal(t, "config", pod.Labels["a"])
	require.Equal(t, op.UID, pod.Labels[identity.LabelOperation])
	for _, v := range pod.Spec.Volumes {
		if v.Name == "cloud" {
			require.Equal(t, "velero-aws", v.Secret.SecretName)
		}
	}
}
