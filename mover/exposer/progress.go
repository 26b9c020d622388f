package exposer

import (
	"context"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/blockmover/blockmover/internal/task"
)

// Logs reads the logs of mover pods.
type Logs interface {
	// Tail returns the last lines of the log of a mover pod.
	Tail(ctx context.Context, pod *corev1.Pod) (string, error)
}

// PodLogs reads them through the API server.
type PodLogs struct{ Clientset kubernetes.Interface }

const (
	// tailLines is more than a worker writes between two lines of progress.
	tailLines = 50
	// maxTailBytes bounds what a worker that has gone wrong can make the manager read.
	maxTailBytes = 64 << 10
	// logTimeout bounds a request to a kubelet that does not answer.
	logTimeout = 5 * time.Second
)

// Tail implements Logs.
func (l PodLogs) Tail(ctx context.Context, pod *corev1.Pod) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	lines := int64(tailLines)
	stream, err := l.Clientset.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		Container: ContainerName, TailLines: &lines,
	}).Stream(ctx)
	if err != nil {
		return "", fmt.Errorf("read log of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	defer stream.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(stream, maxTailBytes))
	if err != nil {
		return "", fmt.Errorf("read log of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return string(b), nil
}

// Progress returns how far a mover pod is. ok is false if the pod has not said so yet.
func (e *Exposer) Progress(ctx context.Context, pod *corev1.Pod) (p task.Progress, ok bool, err error) {
	log, err := e.Logs.Tail(ctx, pod)
	if err != nil {
		return task.Progress{}, false, err
	}
	p, ok = task.LastProgress(log)
	return p, ok, nil
}
