package exposer

import (
	"bufio"
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
	// Follow gives the same lines to read, and then those that come, until the pod or ctx ends.
	Follow(ctx context.Context, pod *corev1.Pod) (io.ReadCloser, error)
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
	stream, err := l.open(ctx, pod, false)
	if err != nil {
		return "", err
	}
	defer stream.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(stream, maxTailBytes))
	if err != nil {
		return "", fmt.Errorf("read log of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return string(b), nil
}

// Follow implements Logs.
func (l PodLogs) Follow(ctx context.Context, pod *corev1.Pod) (io.ReadCloser, error) {
	return l.open(ctx, pod, true)
}

func (l PodLogs) open(ctx context.Context, pod *corev1.Pod, follow bool) (io.ReadCloser, error) {
	lines := int64(tailLines)
	stream, err := l.Clientset.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		Container: ContainerName, TailLines: &lines, Follow: follow,
	}).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("read log of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return stream, nil
}

// Said is what a mover pod that still runs has written to its log.
type Said struct {
	// Progress is nil if there is none yet.
	Progress *task.Progress
	// Report is that of a success. The program has ended, or does so now, and the kubelet does not know
	// it yet.
	Report *task.Report
}

// Said returns what a mover pod has said.
func (e *Exposer) Said(ctx context.Context, pod *corev1.Pod) (Said, error) {
	log, err := e.Logs.Tail(ctx, pod)
	if err != nil {
		return Said{}, err
	}
	return hear(log), nil
}

func hear(log string) (said Said) {
	if p, ok := task.LastProgress(log); ok {
		said.Progress = &p
	}
	if r, ok := task.LastReport(log); ok && r.Error == "" {
		said.Report = &r
	}
	return said
}

// Listen reads what a mover pod says until its report, its end, or that of ctx, and calls heard when there
// is something that does not wait: the report, and that a restore in place waits for its VolumeSnapshot.
func (e *Exposer) Listen(ctx context.Context, pod *corev1.Pod, heard func()) error {
	stream, err := e.Logs.Follow(ctx, pod)
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // it was only read
	lines := bufio.NewScanner(stream)
	for held := false; lines.Scan(); {
		said := hear(lines.Text())
		switch {
		case said.Report != nil:
			heard()
			return nil
		case said.Progress != nil:
			if said.Progress.Held && !held {
				heard()
			}
			held = said.Progress.Held
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("follow log of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
