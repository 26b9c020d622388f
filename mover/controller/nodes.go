package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/blockmover/blockmover/internal/config"
)

// labelsOfNodes returns the labels of each node that can run mover pods.
func labelsOfNodes(ctx context.Context, c client.Reader, settings config.Config) ([]map[string]string, error) {
	nodes := &corev1.NodeList{}
	if err := c.List(ctx, nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var found []map[string]string
	for i := range nodes.Items {
		node := &nodes.Items[i]
		selected, err := settings.Selects(node.Labels)
		if err != nil {
			return nil, err
		}
		if selected && canRun(node, settings.Tolerations) {
			found = append(found, node.Labels)
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
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		if taint.Effect != corev1.TaintEffectPreferNoSchedule && !isTolerated(taint, tolerations) {
			return false
		}
	}
	return true
}

func isReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return true
}

func isTolerated(taint *corev1.Taint, tolerations []corev1.Toleration) bool {
	for i := range tolerations {
		t := &tolerations[i]
		if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
			continue
		}
		if t.Operator == corev1.TolerationOpExists || t.Value == taint.Value {
			return true
		}
	}
	return false
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
