package controller

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/phase"
)

// slotFor says whether an operation may be exposed now. Slots are given in the
// order of creation among those that are secured, so that none starves and one
// that waits for its consumer or its snapshot holds up nobody.
//
// The rule depends on nothing but the operations themselves. Of two that are
// looked at at once, the younger one counts the older one, accepted or not.
func (e *engine) slotFor(ctx context.Context, op *operation) (bool, error) {
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

func hasSlot(op *operation, all []*operation, slots int, limits config.LoadConcurrency) bool {
	underway, preparing, ahead := 0, 0, 0
	for _, other := range all {
		switch {
		case other.object.GetUID() == op.object.GetUID():
		case other.isNew():
			if other.isSecured() && !other.cancel && other.outcome == nil && compareAge(other, op) < 0 {
				ahead++
			}
		case other.phase.Underway():
			underway++
			if *other.phase == phase.Accepted || *other.phase == phase.Prepared {
				preparing++
			}
		}
	}
	if limits.PrepareQueueLength > 0 && preparing+ahead >= limits.PrepareQueueLength {
		return false
	}
	return underway+ahead < slots
}

// compareAge orders operations by creation; names decide between those of one
// second.
func compareAge(a, b *operation) int {
	return cmp.Or(
		a.object.GetCreationTimestamp().Compare(b.object.GetCreationTimestamp().Time),
		strings.Compare(a.object.GetName(), b.object.GetName()),
	)
}
