package exposer

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// jobComponent is the label of pods that only read the repository.
	jobComponent = "reader"
	// jobKeptSeconds is how long a Job stays after its end, if nobody deletes it.
	jobKeptSeconds = 600
)

// Reader builds a Job that runs a local command of blockmover on a repository of the cluster. Its pod
// is a mover pod without a volume. Nothing stays of it, also if nobody deletes it.
func (p PodPlan) Reader(namespace, prefix string, args []string) (*batchv1.Job, error) {
	pod, err := p.Pod()
	if err != nil {
		return nil, fmt.Errorf("plan job: %w", err)
	}
	spec := pod.Spec
	container := &spec.Containers[0]
	container.Command, container.Args = []string{"/blockmover"}, args
	container.VolumeDevices = nil
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == volumeName })
	spec.TopologySpreadConstraints = nil
	labels := map[string]string{labelAppName: appName, labelComponent: jobComponent}
	kept, tries := int32(jobKeptSeconds), int32(0)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: prefix, Labels: labels},
		Spec: batchv1.JobSpec{
			BackoffLimit: &tries, TTLSecondsAfterFinished: &kept, ActiveDeadlineSeconds: spec.ActiveDeadlineSeconds,
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}, nil
}
