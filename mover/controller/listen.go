package controller

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/mover/exposer"
)

// listenTimeout bounds how long one request follows a log. A node that is gone does not close it. The next
// poll of the operation makes another one.
const listenTimeout = 5 * time.Minute

// listener follows the logs of running mover pods, so that what a worker says is heard when it is said, and
// not at the next poll. It only wakes a controller up, which then reads the log itself.
type listener struct {
	exposer *exposer.Exposer
	heard   chan event.GenericEvent

	mu   sync.Mutex
	pods map[types.UID]bool
}

func newListener(x *exposer.Exposer) *listener {
	return &listener{exposer: x, heard: make(chan event.GenericEvent), pods: map[types.UID]bool{}}
}

// listen follows the log of a pod, unless that is done already. It does not wait.
func (l *listener) listen(ctx context.Context, op *operation.View, pod *corev1.Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods[pod.UID] {
		return
	}
	l.pods[pod.UID] = true
	go l.follow(context.WithoutCancel(ctx), op.Object(), pod.DeepCopy())
}

func (l *listener) follow(ctx context.Context, op client.Object, pod *corev1.Pod) {
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	err := l.exposer.Listen(ctx, pod, func() {
		select {
		case l.heard <- event.GenericEvent{Object: op}:
		case <-ctx.Done():
		}
	})
	if err != nil {
		log.FromContext(ctx).V(1).Info("log is not followed", "pod", client.ObjectKeyFromObject(pod), "error", err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pods, pod.UID)
}
