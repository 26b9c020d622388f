package kubectl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/mover/exposer"
)

// jobPoll is how often a Job is looked at.
const jobPoll = time.Second

// runJob runs a local command in a pod that reaches the repository as a mover pod does, and gives its
// log to read.
func (s *session) runJob(ctx context.Context, location string, args []string, read func(io.Reader) error) error {
	return s.withJob(ctx, location, "blockmover-verify-", args, func(job *batchv1.Job, pod string) error {
		if err := s.readLog(ctx, pod, "", read); err != nil {
			return err
		}
		_, err := s.awaitEnd(ctx, job, pod)
		return err
	})
}

// withJob runs a local command in such a pod, and calls work when the pod runs or has ended. The Job is deleted in the
// end. If it cannot be, it goes by itself.
func (s *session) withJob(ctx context.Context, location, prefix string, args []string, work func(job *batchv1.Job, pod string) error) error {
	plan, err := s.planPod(ctx, location)
	if err != nil {
		return err
	}
	job, err := plan.Reader(s.namespace(), prefix, args)
	if err != nil {
		return err
	}
	remove, err := s.createJob(ctx, job)
	if err != nil {
		return err
	}
	defer remove()
	pod, err := s.awaitPod(ctx, job, func(pod *corev1.Pod) bool { return pod.Status.Phase != corev1.PodPending })
	if err != nil {
		return err
	}
	return work(job, pod.Name)
}

// createJob creates a Job, and returns what deletes it.
func (s *session) createJob(ctx context.Context, job *batchv1.Job) (remove func(), err error) {
	if err := s.Client.Create(ctx, job); err != nil {
		return nil, fmt.Errorf("create Job: %w", err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := client.IgnoreNotFound(s.Client.Delete(ctx, job, client.PropagationPolicy(metav1.DeletePropagationBackground))); err != nil {
			_, _ = fmt.Fprintf(s.Streams.ErrOut, "cannot delete Job %s, it goes ten minutes after its end: %v\n", job.Name, err)
		}
	}, nil
}

// planPod plans a pod that reaches a repository as a mover pod does.
func (s *session) planPod(ctx context.Context, locationName string) (exposer.PodPlan, error) {
	settings, err := s.settings(ctx)
	if err != nil {
		return exposer.PodPlan{}, err
	}
	location := &velerov1.BackupStorageLocation{}
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: s.namespace(), Name: locationName}, location); err != nil {
		return exposer.PodPlan{}, fmt.Errorf("get BackupStorageLocation: %w", err)
	}
	manager := &appsv1.Deployment{}
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: s.namespace(), Name: managerName}, manager); err != nil {
		return exposer.PodPlan{}, fmt.Errorf("find the image of the mover: %w", err)
	}
	inherited, err := exposer.FindInherited(ctx, s.Client, s.namespace(), settings)
	if err != nil {
		return exposer.PodPlan{}, err
	}
	return exposer.PodPlan{
		Operation: identity.Operation{Namespace: s.namespace(), Name: "reader", UID: "reader"},
		Config:    settings, Image: manager.Spec.Template.Spec.Containers[0].Image, Relabel: true,
		LocationSecrets: exposer.SecretsOf(location), Inherited: inherited,
	}, nil
}

// readLog gives the log of a container to read, to its end. "" is the only container.
func (s *session) readLog(ctx context.Context, pod, container string, read func(io.Reader) error) error {
	log, err := s.logs(ctx, pod, container)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if err := read(log); err != nil {
		return fmt.Errorf("read log of pod %s: %w", pod, err)
	}
	return nil
}

// eachLine calls f with the lines of a log, until it returns an error. A line of more than a MiB is left out.
func eachLine(log io.Reader, f func(line string) error) error {
	lines := bufio.NewReaderSize(log, 1<<20)
	for long := false; ; {
		line, more, err := lines.ReadLine()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case !more && !long:
			if err := f(string(line)); err != nil {
				return err
			}
		}
		long = more
	}
}

// awaitPod waits until the pod of a Job is so far.
func (s *session) awaitPod(ctx context.Context, job *batchv1.Job, isSoFar func(*corev1.Pod) bool) (*corev1.Pod, error) {
	var pod *corev1.Pod
	why := "it has no pod yet"
	err := wait.PollUntilContextCancel(ctx, jobPoll, true, func(ctx context.Context) (bool, error) {
		pods := &corev1.PodList{}
		if err := s.Client.List(ctx, pods, client.InNamespace(job.Namespace), client.MatchingLabels{batchv1.JobNameLabel: job.Name}); err != nil {
			return false, fmt.Errorf("list pods: %w", err)
		}
		if len(pods.Items) == 0 {
			return false, nil
		}
		pod = &pods.Items[0]
		why = whyPending(pod)
		return isSoFar(pod), nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for Job %s: %w: %s", job.Name, err, why)
	}
	return pod, nil
}

// whyPending is what the scheduler or the kubelet say of a pod that does not run.
func whyPending(pod *corev1.Pod) string {
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil && w.Message != "" {
			return w.Reason + ": " + w.Message
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return c.Message
		}
	}
	return "its pod is pending"
}

// awaitEnd returns the pod after its end, and the error of a command that has failed.
func (s *session) awaitEnd(ctx context.Context, job *batchv1.Job, podName string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	err := wait.PollUntilContextCancel(ctx, jobPoll, true, func(ctx context.Context) (bool, error) {
		err := s.Client.Get(ctx, client.ObjectKey{Namespace: job.Namespace, Name: podName}, pod)
		return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed, err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("wait for Job %s: %w", job.Name, err)
	case pod.Status.Phase == corev1.PodFailed:
		return pod, fmt.Errorf("Job %s failed: %s", job.Name, s.lastWords(ctx, pod, "")) //nolint:staticcheck // Job is the name of a kind
	}
	return pod, nil
}

// lastWords is the end of the log of a container, or else why the pod was ended.
func (s *session) lastWords(ctx context.Context, pod *corev1.Pod, container string) string {
	const most = 2000
	if log, err := s.logs(ctx, pod.Name, container); err == nil {
		defer func() { _ = log.Close() }()
		if text, err := io.ReadAll(log); err == nil && len(text) > 0 {
			return string(text[max(0, len(text)-most):])
		}
	}
	return pod.Status.Reason + " " + pod.Status.Message
}

// logs follows the log of a container of a pod in Velero's namespace.
func (s *session) logs(ctx context.Context, pod, container string) (io.ReadCloser, error) {
	if s.podLogs != nil {
		return s.podLogs(ctx, pod, container)
	}
	_, clientset, err := s.clientset()
	if err != nil {
		return nil, err
	}
	log, err := clientset.CoreV1().Pods(s.namespace()).GetLogs(pod, &corev1.PodLogOptions{Follow: true, Container: container}).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("read log of pod %s: %w", pod, err)
	}
	return log, nil
}

// clientset is for what a client of controller-runtime cannot do: logs, and processes in pods.
func (s *session) clientset() (*rest.Config, kubernetes.Interface, error) {
	config, err := s.config.ToRESTConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("find cluster: %w", err)
	}
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to cluster: %w", err)
	}
	return config, clientset, nil
}

// warn makes a warning event of a Backup. If there is no such Backup, it makes none.
func (s *session) warn(ctx context.Context, name, reason, message string) error {
	backup, err := kube.Find(ctx, s.Client, client.ObjectKey{Namespace: s.namespace(), Name: name}, &velerov1.Backup{})
	if err != nil || backup == nil {
		return err
	}
	about := corev1.ObjectReference{APIVersion: velerov1.SchemeGroupVersion.String(), Kind: "Backup", Namespace: s.namespace(), Name: name, UID: backup.UID}
	return kube.Warn(ctx, s.Client, about, Name, reason, message)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
