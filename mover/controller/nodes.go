package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/blockmover/blockmover/internal/config"
)

// countSlots returns how many operations of one kind may be underway on the nodes of the
// cluster.
func countSlots(ctx context.Context, c client.Reader, settings config.Config) (slots, error) {
	nodes := &corev1.NodeList{}
	if err := c.List(ctx, nodes); err != nil {
		return slots{}, fmt.Errorf("list nodes: %w", err)
	}
	found := slots{on: map[string]int{}, preparing: settings.LoadConcurrency.PrepareQueueLength}
	for i := range nodes.Items {
		node := &nodes.Items[i]
		selected, err := settings.Selects(node.Labels)
		if err != nil {
			return slots{}, err
		}
		if !selected || !canRun(node, settings.Tolerations) {
			continue
		}
		n, err := settings.LoadConcurrency.Slots(node.Labels)
		if err != nil {
			return slots{}, fmt.Errorf("count slots of node %s: %w", node.Name, err)
		}
		found.on[node.Name] = n
		found.total += n
	}
	return found, nil
}

// onlyNode returns the name of the only node that a selector matches, or "". A nil selector
// matches all.
func onlyNode(ctx context.Context, c client.Reader, selector *corev1.NodeSelector) (string, error) {
	if selector == nil {
		return "", nil
	}
	matcher, err := nodeaffinity.NewNodeSelector(selector)
	if err != nil {
		return "", fmt.Errorf("read node affinity: %w", err)
	}
	nodes := &corev1.NodeList{}
	if err := c.List(ctx, nodes); err != nil {
		return "", fmt.Errorf("list nodes: %w", err)
	}
	found := ""
	for i := range nodes.Items {
		switch node := &nodes.Items[i]; {
		case !matcher.Match(node):
		case found != "":
			return "", nil
		default:
			found = node.Name
		}
	}
	return found, nil
}

// canRun reports whether the scheduler would place a mover pod on a node.
func canRun(node *corev1.Node, tolerations []corev1.Toleration) bool {
	if node.Spec.Unschedulable || !isReady(node) {
		return false
	}
	if system, ok := node.Labels[corev1.LabelOSStable]; ok && system != string(corev1.Linux) {
		return false
	}
	repels := func(t *corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule }
	_, repelled := scheduling.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, tolerations, repels, false)
	return !repelled
}

func isReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}

// trimNode keeps of a node what decides whether it can run mover pods. The cache has all nodes.
func trimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	trimmed := &corev1.Node{}
	trimmed.Name, trimmed.UID, trimmed.ResourceVersion, trimmed.Labels = node.Name, node.UID, node.ResourceVersion, node.Labels
	trimmed.Spec.Taints, trimmed.Spec.Unschedulable = node.Spec.Taints, node.Spec.Unschedulable
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			trimmed.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return trimmed, nil
}

// nodeChanged passes changes of what trimNode keeps. A heartbeat is none.
func nodeChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		was, is := e.ObjectOld.DeepCopyObject(), e.ObjectNew.DeepCopyObject()
		before, ok := was.(*corev1.Node)
		after, alsoOK := is.(*corev1.Node)
		if !ok || !alsoOK {
			return true
		}
		before.ResourceVersion, after.ResourceVersion = "", ""
		return !equality.Semantic.DeepEqual(before, after)
	}}
}
