package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/blockmover/blockmover/internal/config"
)

func TestNodesThatCanRunMoverPods(t *testing.T) {
	node := func(change func(n *corev1.Node)) *corev1.Node {
		n := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"kubernetes.io/os": "linux", "backup": "yes"}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}
		change(n)
		return n
	}
	taint := func(effect corev1.TaintEffect) func(n *corev1.Node) {
		return func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "dedicated", Value: "db", Effect: effect}} }
	}
	for name, tc := range map[string]struct {
		config string
		node   *corev1.Node
		want   int
	}{
		"ready":            {"", node(func(*corev1.Node) {}), 1},
		"not ready":        {"", node(func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }), 0},
		"cordoned":         {"", node(func(n *corev1.Node) { n.Spec.Unschedulable = true }), 0},
		"Windows":          {"", node(func(n *corev1.Node) { n.Labels["kubernetes.io/os"] = "windows" }), 0},
		"tainted":          {"", node(taint(corev1.TaintEffectNoSchedule)), 0},
		"tainted a little": {"", node(taint(corev1.TaintEffectPreferNoSchedule)), 1},
		"tolerated":        {"tolerations: [{key: dedicated, value: db}]", node(taint(corev1.TaintEffectNoExecute)), 1},
		"all tolerated":    {"tolerations: [{operator: Exists}]", node(taint(corev1.TaintEffectNoExecute)), 1},
		"another value":    {"tolerations: [{key: dedicated, value: web}]", node(taint(corev1.TaintEffectNoSchedule)), 0},
		"selected":         {"loadAffinity: [{nodeSelector: {matchLabels: {backup: \"yes\"}}}]", node(func(*corev1.Node) {}), 1},
		"not selected":     {"loadAffinity: [{nodeSelector: {matchLabels: {backup: \"no\"}}}]", node(func(*corev1.Node) {}), 0},
		"selected for one class only": {
			"loadAffinity: [{storageClass: fast, nodeSelector: {matchLabels: {backup: \"no\"}}}]", node(func(*corev1.Node) {}), 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			require.NoError(t, w.c.DeleteAllOf(w.ctx, &corev1.Node{}))
			tc.node.Name = "n"
			trimmed, err := trimNode(tc.node)
			require.NoError(t, err)
			kept, ok := trimmed.(client.Object)
			require.True(t, ok)
			kept.SetResourceVersion("")
			require.NoError(t, w.c.Create(w.ctx, kept))
			settings, err := config.Parse([]byte(tc.config))
			require.NoError(t, err)
			found, err := countSlots(w.ctx, w.c, settings)
			require.NoError(t, err)
			require.Len(t, found.on, tc.want)
			require.Equal(t, tc.want*settings.LoadConcurrency.GlobalConfig, found.total)
		})
	}
	was, is := node(func(*corev1.Node) {}), node(func(n *corev1.Node) { n.ResourceVersion = "2" })
	require.False(t, nodeChanged().Update(event.UpdateEvent{ObjectOld: was, ObjectNew: is}))
	is.Spec.Unschedulable = true
	require.True(t, nodeChanged().Update(event.UpdateEvent{ObjectOld: was, ObjectNew: is}))
}
