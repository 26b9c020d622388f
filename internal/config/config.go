// Package config reads the configuration document of the mover, which is in a ConfigMap.
// Where Velero's node-agent configuration has a field, the name and the meaning here are the
// same. Those of its fields and values that have no meaning here are ignored, and named. Otherwise the
// document is strict: an unknown field or a malformed value is an error.
package config

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/blockmover/blockmover/internal/task"
)

// Config is the whole document. Parse replaces the zero value of a field by its default.
type Config struct {
	// LoadConcurrency limits how many operations are exposed at once. Backups and restores
	// are counted apart.
	LoadConcurrency LoadConcurrency `json:"loadConcurrency,omitempty"`
	// LoadAffinity says on which nodes mover pods may run.
	LoadAffinity []LoadAffinity `json:"loadAffinity,omitempty"`
	// BackupPVC configures the intermediate PVC of a backup, by the storage class of the
	// source PVC.
	BackupPVC map[string]BackupPVC `json:"backupPVC,omitempty"`
	// RestorePVC configures the intermediate PVC of a restore.
	RestorePVC RestorePVC `json:"restorePVC,omitempty"`
	// CachePVC gives the mover pods of restores a volume for their caches. Without it, they have
	// disk of their node.
	CachePVC *CachePVC `json:"cachePVC,omitempty"`
	// VMBackup configures the backups of running VMs by KubeVirt.
	VMBackup VMBackup `json:"vmBackup,omitempty"`
	// PodResources are the requests and limits of mover pods.
	PodResources      PodResources      `json:"podResources,omitempty"`
	PriorityClassName string            `json:"priorityClassName,omitempty"`
	PodAnnotations    map[string]string `json:"podAnnotations,omitempty"`
	PodLabels         map[string]string `json:"podLabels,omitempty"`

	// Fields that Velero's node-agent does not have.

	// Env are more variables of mover pods. They replace those that mover pods take over from
	// Velero's server.
	Env              []corev1.EnvVar               `json:"env,omitempty"`
	Tolerations      []corev1.Toleration           `json:"tolerations,omitempty"`
	ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty"`
	// DefaultCredential is the key of a Secret in Velero's namespace that has the credential of
	// locations without one of their own. If it is not set, it is that of Velero's server.
	DefaultCredential  *corev1.SecretKeySelector `json:"defaultCredential,omitempty"`
	ServiceAccountName string                    `json:"serviceAccountName,omitempty"`
	SecurityContext    SecurityContext           `json:"securityContext,omitempty"`
	// ScratchSize bounds the disk that a mover pod may use for caches.
	ScratchSize resource.Quantity `json:"scratchSize,omitempty"`
	// RateLimit is how many bytes per second a mover pod reads from the volume or writes to
	// it, at most. 0 is no limit.
	RateLimit resource.Quantity `json:"rateLimit,omitempty"`
	// PreparingTimeout bounds the time from the start of an attempt until its mover pod runs.
	PreparingTimeout metav1.Duration `json:"preparingTimeout,omitempty"`
	// PodDeadline bounds the life of a mover pod. Another one continues after it.
	PodDeadline metav1.Duration `json:"podDeadline,omitempty"`
	// Attempts is how many mover pods in a row may be lost without progress (evicted, killed,
	// deleted, their node gone, an error that may pass) before an operation fails.
	Attempts int `json:"attempts,omitempty"`
	// OutageTimeout is for how long an operation waits for an object store that does not
	// answer.
	OutageTimeout metav1.Duration `json:"outageTimeout,omitempty"`

	// Ignored are fields of the document that only have a meaning for Velero's node-agent.
	Ignored []string `json:"-"`
}

// LoadConcurrency limits simultaneous operations.
type LoadConcurrency struct {
	// GlobalConfig is the number for each node that no rule of PerNodeConfig matches. The
	// limit is the sum over all nodes that can run mover pods. The scheduler spreads the pods.
	GlobalConfig  int           `json:"globalConfig,omitempty"`
	PerNodeConfig []RuledConfig `json:"perNodeConfig,omitempty"`
	// PrepareQueueLength limits the operations that are exposed and do not run yet.
	PrepareQueueLength int `json:"prepareQueueLength,omitempty"`
}

// RuledConfig is a number for the nodes that a selector matches.
type RuledConfig struct {
	NodeSelector metav1.LabelSelector `json:"nodeSelector"`
	Number       int                  `json:"number"`
}

// LoadAffinity selects nodes for the volumes of one storage class, or, without a class, for
// all others.
type LoadAffinity struct {
	NodeSelector metav1.LabelSelector `json:"nodeSelector"`
	StorageClass string               `json:"storageClass,omitempty"`
}

// BackupPVC configures the intermediate PVC of a backup.
type BackupPVC struct {
	// StorageClass replaces that of the source PVC.
	StorageClass string `json:"storageClass,omitempty"`
	// ReadOnly makes the PVC ReadOnlyMany.
	ReadOnly bool `json:"readOnly,omitempty"`
	// SPCNoRelabeling runs the mover pod with SELinux type spc_t; it needs ReadOnly.
	SPCNoRelabeling bool `json:"spcNoRelabeling,omitempty"`
	// ReadWriteOncePod makes the PVC ReadWriteOncePod: Kubernetes gives the SELinux label of such a
	// volume by mount option, and not file by file. It has no meaning with ReadOnly. The node-agent
	// also sets seLinuxChangePolicy to MountOption, which is the default where the API server takes it.
	ReadWriteOncePod bool              `json:"readWriteOncePod,omitempty"`
	Annotations      map[string]string `json:"annotations,omitempty"`
	// SecretNames and ConfigMapNames are copied from the namespace of the source PVC to Velero's,
	// for as long as the operation needs them. Some drivers look for them beside the PVC.
	SecretNames    []string `json:"secretNames,omitempty"`
	ConfigMapNames []string `json:"configMapNames,omitempty"`
}

// RestorePVC configures the intermediate PVC of a restore.
type RestorePVC struct {
	// IgnoreDelayBinding restores a WaitForFirstConsumer volume without waiting for the pod
	// that will use it. The volume may then be where that pod cannot run.
	IgnoreDelayBinding bool `json:"ignoreDelayBinding,omitempty"`
	// StorageClass has, by the class of the target PVC, the class that the volume is made of
	// instead. The key "" is for PVCs with the class "", which provides no volumes.
	StorageClass map[string]string `json:"storageClass,omitempty"`
	// SecretNames and ConfigMapNames are copied from the namespace of the target PVC to Velero's,
	// for as long as the operation needs them.
	SecretNames    []string `json:"secretNames,omitempty"`
	ConfigMapNames []string `json:"configMapNames,omitempty"`
}

// CachePVC is a volume for the caches of a mover pod.
type CachePVC struct {
	StorageClass string `json:"storageClass,omitempty"`
	// ResidentThresholdInMB is the size in MiB from which on the restore of a volume gets one.
	ResidentThresholdInMB int64 `json:"residentThresholdInMB,omitempty"`
}

// VMBackup configures the backups of running VMs by KubeVirt.
type VMBackup struct {
	// StorageClass is that of the volume that KubeVirt writes the disks of a VM into, which is
	// as large as all of them. "" is the class of the first disk of the VM.
	StorageClass string `json:"storageClass,omitempty"`
}

// PodResources are quantities; empty or "0" is unset.
type PodResources struct {
	CPURequest              string `json:"cpuRequest,omitempty"`
	CPULimit                string `json:"cpuLimit,omitempty"`
	MemoryRequest           string `json:"memoryRequest,omitempty"`
	MemoryLimit             string `json:"memoryLimit,omitempty"`
	EphemeralStorageRequest string `json:"ephemeralStorageRequest,omitempty"`
	EphemeralStorageLimit   string `json:"ephemeralStorageLimit,omitempty"`
}

// SecurityContext says who a mover pod runs as. In a container, block devices belong to
// root:disk, unless the container runtime gives them to the user of the pod (containerd:
// device_ownership_from_security_context). So the default is user 0 without any capability:
// it may open the device because it owns it. Other users work with such a runtime, or with
// group 6 (disk) as a supplemental group.
type SecurityContext struct {
	RunAsUser          int64   `json:"runAsUser,omitempty"`
	RunAsGroup         int64   `json:"runAsGroup,omitempty"`
	SupplementalGroups []int64 `json:"supplementalGroups,omitempty"`
}

// Defaults.
const (
	defaultPerNode          = 4
	defaultPrepareQueue     = 32
	defaultAttempts         = 3
	defaultPreparingTimeout = 30 * time.Minute // as Velero's node-agent
	defaultPodDeadline      = 24 * time.Hour
	defaultOutageTimeout    = time.Hour
	defaultScratchSize      = "8Gi"
	defaultServiceAccount   = "blockmover-worker"
)

func (c *Config) fillIn() {
	if c.LoadConcurrency.GlobalConfig == 0 {
		c.LoadConcurrency.GlobalConfig = defaultPerNode
	}
	if c.LoadConcurrency.PrepareQueueLength == 0 {
		c.LoadConcurrency.PrepareQueueLength = defaultPrepareQueue
	}
	if c.Attempts == 0 {
		c.Attempts = defaultAttempts
	}
	if c.PreparingTimeout.Duration == 0 {
		c.PreparingTimeout.Duration = defaultPreparingTimeout
	}
	if c.PodDeadline.Duration == 0 {
		c.PodDeadline.Duration = defaultPodDeadline
	}
	if c.OutageTimeout.Duration == 0 {
		c.OutageTimeout.Duration = defaultOutageTimeout
	}
	if c.ScratchSize.IsZero() {
		c.ScratchSize = resource.MustParse(defaultScratchSize)
	}
	if c.ServiceAccountName == "" {
		c.ServiceAccountName = defaultServiceAccount
	}
}

func (c *Config) check() error {
	switch {
	case c.LoadConcurrency.GlobalConfig < 0:
		return fmt.Errorf("loadConcurrency.globalConfig is %d, want 1 or more", c.LoadConcurrency.GlobalConfig)
	case c.LoadConcurrency.PrepareQueueLength < 0:
		return fmt.Errorf("loadConcurrency.prepareQueueLength is %d, want 1 or more", c.LoadConcurrency.PrepareQueueLength)
	case c.Attempts < 0:
		return fmt.Errorf("attempts is %d, want 1 or more", c.Attempts)
	case !c.RateLimit.IsZero() && c.RateLimit.CmpInt64(task.MinRateLimit) < 0:
		return fmt.Errorf("rateLimit is %s, want 0 for none, or %d bytes a second or more", c.RateLimit.String(), task.MinRateLimit)
	case c.DefaultCredential != nil && (c.DefaultCredential.Name == "" || c.DefaultCredential.Key == ""):
		return errors.New("defaultCredential has no name or no key")
	case c.ScratchSize.Sign() < 0:
		return fmt.Errorf("scratchSize is %s, want more than 0", c.ScratchSize.String())
	}
	if err := errors.Join(c.checkTimes(), c.checkSelectors()); err != nil {
		return err
	}
	if err := errors.Join(c.checkEnv(), c.checkCopies()); err != nil {
		return err
	}
	_, err := c.PodResources.Requirements()
	return err
}

func (c *Config) checkTimes() error {
	switch {
	case c.PreparingTimeout.Duration < 0:
		return fmt.Errorf("preparingTimeout is %s, want more than 0", c.PreparingTimeout.Duration)
	case c.OutageTimeout.Duration < 0:
		return fmt.Errorf("outageTimeout is %s, want more than 0", c.OutageTimeout.Duration)
	case c.PodDeadline.Duration < time.Second:
		return fmt.Errorf("podDeadline is %s, want 1s or more", c.PodDeadline.Duration)
	}
	return nil
}

// checkSelectors checks the rules that select nodes.
func (c *Config) checkSelectors() error {
	for i, rule := range c.LoadConcurrency.PerNodeConfig {
		if rule.Number < 0 {
			return fmt.Errorf("loadConcurrency.perNodeConfig[%d].number is %d, want 0 or more", i, rule.Number)
		}
		if _, err := metav1.LabelSelectorAsSelector(&rule.NodeSelector); err != nil {
			return fmt.Errorf("loadConcurrency.perNodeConfig[%d].nodeSelector: %w", i, err)
		}
	}
	for i, affinity := range c.LoadAffinity {
		if _, err := metav1.LabelSelectorAsSelector(&affinity.NodeSelector); err != nil {
			return fmt.Errorf("loadAffinity[%d].nodeSelector: %w", i, err)
		}
	}
	return nil
}

// Requirements converts the quantities.
func (p PodResources) Requirements() (corev1.ResourceRequirements, error) {
	var r corev1.ResourceRequirements
	for _, q := range []struct {
		field, value string
		list         *corev1.ResourceList
		name         corev1.ResourceName
	}{
		{"cpuRequest", p.CPURequest, &r.Requests, corev1.ResourceCPU},
		{"cpuLimit", p.CPULimit, &r.Limits, corev1.ResourceCPU},
		{"memoryRequest", p.MemoryRequest, &r.Requests, corev1.ResourceMemory},
		{"memoryLimit", p.MemoryLimit, &r.Limits, corev1.ResourceMemory},
		{"ephemeralStorageRequest", p.EphemeralStorageRequest, &r.Requests, corev1.ResourceEphemeralStorage},
		{"ephemeralStorageLimit", p.EphemeralStorageLimit, &r.Limits, corev1.ResourceEphemeralStorage},
	} {
		if q.value == "" {
			continue
		}
		quantity, err := resource.ParseQuantity(q.value)
		if err != nil {
			return corev1.ResourceRequirements{}, fmt.Errorf("podResources.%s is %q: %w", q.field, q.value, err)
		}
		if quantity.IsZero() {
			continue
		}
		if *q.list == nil {
			*q.list = corev1.ResourceList{}
		}
		(*q.list)[q.name] = quantity
	}
	for name, limit := range r.Limits {
		if request, ok := r.Requests[name]; ok && request.Cmp(limit) > 0 {
			return corev1.ResourceRequirements{}, fmt.Errorf("podResources: request of %s is %s, more than its limit %s",
				name, request.String(), limit.String())
		}
	}
	return r, nil
}

// AffinityFor returns the node selector for the volumes of a storage class: that of the entry
// for the class, else of the first entry without a class, else nil.
func (c Config) AffinityFor(class string) *metav1.LabelSelector {
	var fallback *metav1.LabelSelector
	for i := range c.LoadAffinity {
		switch entry := &c.LoadAffinity[i]; {
		case entry.StorageClass == class && class != "":
			return &entry.NodeSelector
		case entry.StorageClass == "" && fallback == nil:
			fallback = &entry.NodeSelector
		}
	}
	return fallback
}

// Selects reports whether LoadAffinity lets any mover pod run on a node with these labels.
func (c Config) Selects(node map[string]string) (bool, error) {
	forAll := false
	for i := range c.LoadAffinity {
		rule := &c.LoadAffinity[i]
		selector, err := metav1.LabelSelectorAsSelector(&rule.NodeSelector)
		if err != nil {
			return false, fmt.Errorf("read node selector %d of loadAffinity: %w", i, err)
		}
		if selector.Matches(labels.Set(node)) {
			return true, nil
		}
		forAll = forAll || rule.StorageClass == ""
	}
	return !forAll, nil
}

// Slots returns how many operations of one kind may be underway on a node with
// these labels. The smallest number of the rules that match it counts.
func (l LoadConcurrency) Slots(node map[string]string) (int, error) {
	number, matched := l.GlobalConfig, false
	for i := range l.PerNodeConfig {
		rule := &l.PerNodeConfig[i]
		selector, err := metav1.LabelSelectorAsSelector(&rule.NodeSelector)
		if err != nil {
			return 0, fmt.Errorf("read node selector %d: %w", i, err)
		}
		if !selector.Matches(labels.Set(node)) {
			continue
		}
		if !matched || rule.Number < number {
			number, matched = rule.Number, true
		}
	}
	return number, nil
}
