package controller

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// slotFor says whether an operation may be exposed now. Slots are given in the
// order of creation among those that are secured, so that none starves and one
// that waits for its consumer or its snapshot holds up nobody.
//
// The rule depends on nothing but the operations themselves. Of two that are
// looked at at once, the younger one counts the older one, accepted or not.
func (e *engine) slotFor(ctx context.Context, op *operation.View) (bool, error) {
	nodes := &metav1.PartialObjectMetadataList{}
	nodes.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NodeList"))
	if err := e.client.List(ctx, nodes); err != nil {
		return false, fmt.Errorf("list nodes: %w", err)
	}
	labels := make([]map[string]string, len(nodes.Items))
	for i := range nodes.Items {
		labels[i] = nodes.Items[i].Labels
	}
	slots, err := e.config.LoadConcurrency.Slots(labels)
	if err != nil {
		return false, fmt.Errorf("count slots: %w", err)
	}
	all, err := e.list(ctx)
	if err != nil {
		return false, err
	}
	return hasSlot(op, all, slots, e.config.LoadConcurrency), nil
}

func hasSlot(op *operation.View, all []*operation.View, slots int, limits config.LoadConcurrency) bool {
	underway, preparing, ahead := 0, 0, 0
	for _, other := range all {
		switch {
		case other.UID == op.UID:
		case other.Status.Phase == phase.New:
			if canAccept(other) && compareAge(other, op) < 0 {
				ahead++
			}
		case other.Status.Phase.Underway():
			underway++
			if other.Status.Phase == phase.Accepted || other.Status.Phase == phase.Prepared {
				preparing++
			}
		}
	}
	if limits.PrepareQueueLength > 0 && preparing+ahead >= limits.PrepareQueueLength {
		return false
	}
	return underway+ahead < slots
}

// canAccept reports whether a new operation takes the next slot that is free.
func canAccept(op *operation.View) bool {
	return op.Status.Secured && !op.Cancel && op.Status.Outcome == nil && op.Damage == nil
}

// compareAge orders operations by creation; names decide between those of one
// second.
func compareAge(a, b *operation.View) int {
	return cmp.Or(
		a.Created.Compare(b.Created),
		strings.Compare(a.Name, b.Name),
	)
}
