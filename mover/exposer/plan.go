package exposer

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/heap"
)

// Paths in the mover pod.
const (
	// DevicePath is the volume.
	DevicePath = "/dev/blockmover"
	// DirectoryPath is the volume if it is a directory.
	DirectoryPath = "/volume"
	// HomePath is a writable directory of config.ScratchSize.
	HomePath = "/home/blockmover"
	// ConnectionPath has the connection file that Velero's code writes for kopia. It holds the
	// credential of the object store, so it is in memory.
	ConnectionPath = HomePath + "/udmrepo"
	// RepositoryPath has the file repository-password.
	RepositoryPath = "/credentials/repository"
	// LocationPath has <secret>/<key> for the credential and the CA that the
	// BackupStorageLocation names.
	LocationPath = "/credentials/location"
	// CloudPath has the default credential, if Velero has one.
	CloudPath = "/credentials/cloud"
	// TokenPath is the service account token for the SnapshotMetadata service.
	TokenPath      = tokenDirectory + "/" + tokenFile
	tokenDirectory = "/var/run/secrets/blockmover/metadata"
	tokenFile      = "token"
)

// The Secret that Velero creates.
const (
	repositorySecret = "velero-repo-credentials"
	repositoryKey    = "repository-password"
)

// ContainerName is the name of the mover pod's only container.
const ContainerName = "worker"

// evictionGraceSeconds is the time that a mover pod has to record what it has finished when
// its node is drained.
const evictionGraceSeconds = 30

// annotationSelectedNode is the node that the scheduler chose for the first pod
// that uses a WaitForFirstConsumer PVC.
const annotationSelectedNode = "volume.kubernetes.io/selected-node"

// Labels of all mover pods, by which the scheduler spreads them.
const (
	labelAppName   = "app.kubernetes.io/name"
	labelComponent = "app.kubernetes.io/component"
	appName        = "blockmover"
	component      = "worker"
)

// PodPlan has what a mover pod depends on.
type PodPlan struct {
	Operation identity.Operation
	Image     string
	Config    config.Config
	// Attempt is the number of the attempt, from 1.
	Attempt int
	// Task is an encoded task.Request.
	Task string
	// ReadOnly is set for a volume that cannot be written.
	ReadOnly bool
	// Directory, if not nil, is a Filesystem volume that the pod has instead of a block device.
	Directory *Directory
	// Relabel is false if SELinux must not relabel the volume.
	Relabel bool
	// CacheClass is the storage class of a volume for HomePath; "" is disk of the node.
	CacheClass string
	// Node is where the pod has to run. If it is empty, Topology is where the volume can be
	// used, and StorageClass selects the configured affinity.
	Node string
	// Taints are those of Node, which the pod tolerates: the application does.
	Taints       []corev1.Taint
	Topology     *corev1.NodeSelector
	StorageClass string
	// Audience of the SnapshotMetadata service; "" is no service.
	Audience string
	// LocationSecrets are the credential and the CA that the BackupStorageLocation
	// names.
	LocationSecrets []corev1.SecretKeySelector
	// Inherited is what the pod has in common with Velero's server.
	Inherited Inherited
}

// Directory is a volume with files of disks of a VM.
type Directory struct {
	// Claim is its PVC; "" is that of the operation.
	Claim string
	// UserID owns the files. The pod runs as this user.
	UserID int64
	// Shared is the label of the pods that share the volume, which then run on one node. It is
	// nil if there is one pod.
	Shared map[string]string
	// Write is set if the pod writes to it. Then the kubelet gives the volume to the group of
	// UserID.
	Write bool
}

// Inherited is what a mover pod takes over from Velero's server.
type Inherited struct {
	// Credential is the default credential, or nil.
	Credential *corev1.SecretKeySelector
	// Env and EnvFrom are variables of the server, such as those of a proxy. They replace neither
	// ours nor configured ones.
	Env     []corev1.EnvVar
	EnvFrom []corev1.EnvFromSource
	// Volumes and Mounts have the files that variables of the server name, such as a CA.
	Volumes []corev1.Volume
	Mounts  []corev1.VolumeMount
	// Labels are for webhooks that give a pod its identity in the cloud.
	Labels map[string]string
}

// Pod builds the mover pod: one process without privileges or capabilities, without access
// to the host, and with a read-only root file system.
func (p PodPlan) Pod() (*corev1.Pod, error) {
	resources, err := p.Config.PodResources.Requirements()
	if err != nil {
		return nil, fmt.Errorf("plan mover pod: %w", err)
	}
	request, err := task.Environ(p.Task)
	if err != nil {
		return nil, fmt.Errorf("plan mover pod: %w: %w", phase.ErrBroken, err)
	}
	volumes, mounts, env := p.volumes(request)
	if limit, ok := resources.Limits[corev1.ResourceMemory]; ok {
		// Collect garbage before the kernel kills.
		env = append(env, corev1.EnvVar{Name: "GOMEMLIMIT", Value: fmt.Sprint(heap.Below(limit.Value()))})
	}
	deadline := int64(p.Config.PodDeadline.Seconds())
	grace := int64(evictionGraceSeconds)
	yes, no := true, false
	pod := &corev1.Pod{ObjectMeta: metaOf(p.Operation)}
	p.decorate(&pod.ObjectMeta)
	pod.Spec = corev1.PodSpec{
		Containers: []corev1.Container{{
			Name:            ContainerName,
			Image:           p.Image,
			ImagePullPolicy: corev1.PullIfNotPresent,
			Command:         []string{"/blockmover", "worker"},
			Env:             env,
			EnvFrom:         p.Inherited.EnvFrom,
			VolumeMounts:    mounts,
			VolumeDevices:   p.devices(),
			Resources:       resources,
			SecurityContext: &corev1.SecurityContext{
				Privileged:               &no,
				AllowPrivilegeEscalation: &no,
				ReadOnlyRootFilesystem:   &yes,
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
			TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		}},
		Volumes:                       volumes,
		RestartPolicy:                 corev1.RestartPolicyNever,
		ServiceAccountName:            p.Config.ServiceAccountName,
		ImagePullSecrets:              p.Config.ImagePullSecrets,
		PriorityClassName:             p.Config.PriorityClassName,
		Tolerations:                   p.tolerations(),
		NodeSelector:                  map[string]string{corev1.LabelOSStable: string(corev1.Linux)},
		Affinity:                      p.affinity(),
		TopologySpreadConstraints:     spread(),
		SecurityContext:               p.securityContext(),
		ActiveDeadlineSeconds:         &deadline,
		TerminationGracePeriodSeconds: &grace,
		EnableServiceLinks:            &no,
	}
	return pod, nil
}

// decorate adds the configured labels and annotations. They do not replace ours.
func (p PodPlan) decorate(meta *metav1.ObjectMeta) {
	ours := maps.Clone(meta.Labels)
	ours[labelAppName], ours[labelComponent] = appName, component
	meta.Labels = map[string]string{}
	maps.Copy(meta.Labels, p.Inherited.Labels)
	maps.Copy(meta.Labels, p.Config.PodLabels)
	maps.Copy(meta.Labels, ours)
	if p.Directory != nil {
		maps.Copy(meta.Labels, p.Directory.Shared)
	}

	mine := maps.Clone(meta.Annotations)
	mine[identity.AnnotationAttemptNumber] = fmt.Sprint(p.Attempt)
	meta.Annotations = maps.Clone(p.Config.PodAnnotations)
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	maps.Copy(meta.Annotations, mine)
}

func (p PodPlan) securityContext() *corev1.PodSecurityContext {
	s := p.Config.SecurityContext
	if d := p.Directory; d != nil {
		s.RunAsUser, s.RunAsGroup = d.UserID, d.UserID
	}
	nonRoot := s.RunAsUser != 0
	context := &corev1.PodSecurityContext{
		RunAsUser:          &s.RunAsUser,
		RunAsGroup:         &s.RunAsGroup,
		RunAsNonRoot:       &nonRoot,
		SupplementalGroups: s.SupplementalGroups,
		SeccompProfile:     &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if !p.Relabel {
		context.SELinuxOptions = &corev1.SELinuxOptions{Type: "spc_t"}
	}
	switch d := p.Directory; {
	case d != nil && d.Write:
		context.FSGroup = &d.UserID
	case p.CacheClass != "" && nonRoot:
		context.FSGroup = &s.RunAsGroup // a new file system belongs to root
	}
	return context
}

// tolerations are the configured ones and those of the node that the pod has to run on. A
// node that is not ready, or is drained, is not tolerated.
func (p PodPlan) tolerations() []corev1.Toleration {
	tolerations := slices.Clone(p.Config.Tolerations)
	for _, taint := range p.Taints {
		if strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
			continue
		}
		tolerations = append(tolerations, corev1.Toleration{
			Key: taint.Key, Operator: corev1.TolerationOpEqual, Value: taint.Value, Effect: taint.Effect,
		})
	}
	return tolerations
}

func spread() []corev1.TopologySpreadConstraint {
	return []corev1.TopologySpreadConstraint{{
		MaxSkew:           1,
		TopologyKey:       corev1.LabelHostname,
		WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector:     &metav1.LabelSelector{MatchLabels: map[string]string{labelAppName: appName, labelComponent: component}},
	}}
}

// affinity pins the pod to its node, or joins the configured selector with the
// topology of the volume.
func (p PodPlan) affinity() *corev1.Affinity {
	var terms []corev1.NodeSelectorTerm
	if p.Node != "" {
		terms = []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{
			Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{p.Node},
		}}}}
	} else {
		if p.Topology != nil {
			terms = p.Topology.DeepCopy().NodeSelectorTerms
		}
		if required := requirements(p.Config.AffinityFor(p.StorageClass)); len(required) > 0 {
			if len(terms) == 0 {
				terms = make([]corev1.NodeSelectorTerm, 1)
			}
			for i := range terms {
				terms[i].MatchExpressions = append(terms[i].MatchExpressions, required...)
			}
		}
	}
	affinity := &corev1.Affinity{}
	if len(terms) > 0 {
		affinity.NodeAffinity = &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms},
		}
	}
	if p.Directory != nil && p.Directory.Shared != nil {
		// The first of the pods may run anywhere.
		affinity.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: p.Directory.Shared}, TopologyKey: corev1.LabelHostname,
		}}}
	}
	if affinity.NodeAffinity == nil && affinity.PodAffinity == nil {
		return nil
	}
	return affinity
}

// requirements converts a label selector, in a stable order.
func requirements(selector *metav1.LabelSelector) []corev1.NodeSelectorRequirement {
	if selector == nil {
		return nil
	}
	var out []corev1.NodeSelectorRequirement
	for _, key := range slices.Sorted(maps.Keys(selector.MatchLabels)) {
		out = append(out, corev1.NodeSelectorRequirement{
			Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{selector.MatchLabels[key]},
		})
	}
	for _, e := range selector.MatchExpressions {
		out = append(out, corev1.NodeSelectorRequirement{Key: e.Key, Operator: corev1.NodeSelectorOperator(e.Operator), Values: e.Values})
	}
	return out
}
