package controller

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// queued makes operations of the phases in the order of their creation. "+" is a new one that
// waits only for a slot.
func queued(t *testing.T, phases ...phase.Phase) []*operation.View {
	t.Helper()
	var out []*operation.View
	for i, p := range phases {
		du := &velerov2alpha1.DataUpload{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i)), CreationTimestamp: metav1.NewTime(time.Unix(int64(i), 0)),
		}}
		if p == "+" {
			p = phase.New
			du.Annotations = map[string]string{identity.AnnotationSecured: "true"}
		}
		du.Status.Phase = velerov2alpha1.DataUploadPhase(p)
		out = append(out, operation.Of(du))
	}
	return out
}

func TestHasSlot(t *testing.T) {
	for name, tc := range map[string]struct {
		all   []phase.Phase
		slots int
		queue int
		want  []int // who may start
	}{
		"all fit":                     {all: []phase.Phase{"+", "+"}, slots: 2, want: []int{0, 1}},
		"oldest first":                {all: []phase.Phase{"+", "+", "+"}, slots: 2, want: []int{0, 1}},
		"one underway":                {all: []phase.Phase{phase.InProgress, "+", "+"}, slots: 2, want: []int{1}},
		"canceling holds its slot":    {all: []phase.Phase{phase.Canceling, "+"}, slots: 1},
		"ended frees it":              {all: []phase.Phase{phase.Completed, phase.Failed, phase.Canceled, "+"}, slots: 1, want: []int{3}},
		"not secured holds up nobody": {all: []phase.Phase{phase.New, "", "+"}, slots: 1, want: []int{0, 1, 2}},
		"queue of the prepared":       {all: []phase.Phase{phase.Accepted, phase.InProgress, "+", "+"}, slots: 9, queue: 2, want: []int{2}},
		"no node":                     {all: []phase.Phase{"+"}, slots: 0},
	} {
		t.Run(name, func(t *testing.T) {
			all := queued(t, tc.all...)
			var may []int
			for i, op := range all {
				if op.Status.Phase == phase.New && hasSlot(op, all, nil, slots{total: tc.slots, preparing: tc.queue}) {
					may = append(may, i)
				}
			}
			require.Equal(t, tc.want, may)
		})
	}
}

// TestSlotsOfANode: an operation whose volume only one node can use waits for a slot there, and
// holds up nobody.
func TestSlotsOfANode(t *testing.T) {
	on := func(op *operation.View, running, place string) {
		op.Status.Node, op.Status.Place = running, place
	}
	all := queued(t, phase.InProgress, phase.InProgress, "+", "+", "+", "+")
	on(all[0], "a", "")
	on(all[1], "", "a") // its pod is not scheduled yet
	on(all[2], "", "a")
	on(all[3], "", "b")
	on(all[4], "", "cordoned")
	limits := slots{total: 6, on: map[string]int{"a": 2, "b": 2, "c": 2}}
	var may []string
	for _, op := range startable(all, nil, limits) {
		may = append(may, op.Name)
	}
	require.Equal(t, []string{"3", "4", "5"}, may)

	on(all[1], "", "c")
	may = nil
	for _, op := range startable(all, map[string]bool{"3": true}, limits) {
		may = append(may, op.Name)
	}
	require.Equal(t, []string{"2", "4", "5"}, may)
}

func TestOnlyNode(t *testing.T) {
	w := newWorld(t)
	for name, zone := range map[string]string{"n1": "a", "n2": "b", "n3": "b"} {
		require.NoError(t, w.c.Create(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": zone}}}))
	}
	for zone, want := range map[string]string{"a": "n1", "b": "", "c": ""} {
		found, err := onlyNode(w.ctx, w.c, &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{zone}}},
		}}})
		require.NoError(t, err)
		require.Equal(t, want, found)
	}
	found, err := onlyNode(w.ctx, w.c, nil)
	require.NoError(t, err)
	require.Empty(t, found)
}

// TestQueueIsServed runs more uploads than there are slots.
func TestQueueIsServed(t *testing.T) {
	w := uploadWorld(t)
	w.uploads.live = edited(w.uploads.live, func(c *config.Config) { c.LoadConcurrency.GlobalConfig = 1 })
	other := w.dataUpload()
	other.Name, other.UID, other.ResourceVersion = "other", "", ""
	other.CreationTimestamp = metav1.NewTime(w.clock.Add(-time.Minute))
	other.Annotations = map[string]string{identity.AnnotationSecured: "true"}
	require.NoError(t, w.c.Create(w.ctx, other))
	w.reconcileTimes(w.uploads, "du", 5)
	op := w.operation(w.uploads, "du")
	require.Equal(t, phase.New, op.Status.Phase)
	require.Contains(t, op.Status.Message, "queued")

	busy := w.operation(w.uploads, "other")
	busy.Upload.Status.Phase = velerov2alpha1.DataUploadPhaseFailed
	w.update(busy.Upload)
	require.Equal(t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
}

// TestGrants: operations that are reconciled at once do not all get the last slot, although
// the cache does not show yet which one got it.
func TestGrants(t *testing.T) {
	w := uploadWorld(t)
	e := w.uploads
	e.live = edited(e.live, func(c *config.Config) { c.LoadConcurrency.GlobalConfig = 1 })
	for i := range 3 {
		other := w.dataUpload()
		other.Name, other.UID, other.ResourceVersion = fmt.Sprint("other-", i), "", ""
		require.NoError(t, w.c.Create(w.ctx, other))
	}
	take := func(name string) bool {
		slot, err := e.take(w.ctx, w.operation(e, name))
		require.NoError(t, err)
		return slot
	}
	require.True(t, take("other-0"))
	require.True(t, take("other-0"), "it has the slot")
	require.False(t, take("other-1"))
	require.False(t, take("du"))

	e.grants.giveBack(w.operation(e, "other-0"))
	require.True(t, take("other-1"))

	// The grant ends when the cache shows that it was used.
	used := w.operation(e, "other-1")
	used.Status.Phase = phase.InProgress
	require.NoError(t, used.Save(w.ctx, w.c))
	require.False(t, take("du"))
	require.Empty(t, e.grants.uids)
	used = w.operation(e, "other-1")
	used.Status.Phase = phase.Completed
	require.NoError(t, used.Save(w.ctx, w.c))
	require.True(t, take("du"))
}

// TestQueuedUploadIsNotPolled: it is reconciled again when a slot is free, and until
// then a reconciliation asks the API server for nothing.
func TestQueuedUploadIsNotPolled(t *testing.T) {
	w := uploadWorld(t)
	w.uploads.live = edited(w.uploads.live, func(c *config.Config) { c.LoadConcurrency.GlobalConfig = 1 })
	busy := w.dataUpload()
	busy.Name, busy.UID, busy.ResourceVersion = "busy", "", ""
	busy.Status.Phase = velerov2alpha1.DataUploadPhaseInProgress
	require.NoError(t, w.c.Create(w.ctx, busy))
	w.reconcileTimes(w.uploads, "du", 5)
	require.Contains(t, w.operation(w.uploads, "du").Status.Message, "queued")

	w.live = 0
	result, err := w.uploads.Reconcile(w.ctx, requestFor("du"))
	require.NoError(t, err)
	require.Zero(t, result)
	require.Zero(t, w.live)
	require.Empty(t, w.uploads.waiting(w.ctx, busy), "no slot is free")

	ended := w.operation(w.uploads, "busy")
	ended.Status.Phase = phase.Failed
	require.NoError(t, ended.Save(w.ctx, w.c))
	require.Equal(t, []ctrl.Request{requestFor("du")}, w.uploads.waiting(w.ctx, busy))
	require.Equal(t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
}

// TestUnsecuredHoldsUpNobody: an operation that was secured and has lost what it needs
// is no longer ahead of others.
func TestUnsecuredHoldsUpNobody(t *testing.T) {
	w := downloadWorld(t)
	dd := w.operation(w.downs, "dd")
	dd.Status.Secured = true
	require.NoError(t, dd.Save(w.ctx, w.c))
	require.NoError(t, w.c.Delete(w.ctx, get[corev1.PersistentVolumeClaim](w, targetOf(dd.Download).Namespace, targetOf(dd.Download).Name)))
	_, err := w.downs.Reconcile(w.ctx, requestFor("dd"))
	require.NoError(t, err)
	dd = w.operation(w.downs, "dd")
	require.False(t, dd.Status.Secured)
	require.Contains(t, dd.Status.Message, "does not exist yet")
	require.Empty(t, w.downs.grants.uids)
}

// TestPollAfter: the longer an operation waits, the less often it is polled, but never later
// than its limit.
func TestPollAfter(t *testing.T) {
	w := uploadWorld(t)
	for name, tc := range map[string]struct {
		age  time.Duration
		p    phase.Phase
		left time.Duration
		want time.Duration
	}{
		"young":        {age: time.Second, p: phase.New, left: time.Hour, want: 5 * time.Second},
		"old":          {age: 8 * time.Minute, p: phase.New, left: time.Hour, want: time.Minute},
		"very old":     {age: 8 * time.Hour, p: phase.New, left: time.Hour, want: 5 * time.Minute},
		"limit passes": {age: 8 * time.Hour, p: phase.New, left: time.Second, want: time.Second},
		"queued":       {age: time.Hour, p: "+", want: 0},
		"accepted":     {age: time.Hour, p: phase.Accepted, left: time.Hour, want: 5 * time.Second},
		"in progress":  {age: time.Hour, p: phase.InProgress, want: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			op := queued(t, tc.p)[0]
			op.Created = w.clock.Add(-tc.age)
			require.Equal(t, tc.want, w.uploads.pollAfter(op, phase.Transition{Next: op.Status.Phase, After: tc.left}))
		})
	}
}

// TestSlotFreed: an operation wakes others when it takes less of the limits than before.
func TestSlotFreed(t *testing.T) {
	for _, tc := range []struct {
		was, is phase.Phase
		want    bool
	}{
		{phase.New, "+", false},
		{"+", phase.New, true},
		{"+", phase.Accepted, false},
		{"+", phase.Canceling, true},
		{phase.Accepted, phase.Prepared, false},
		{phase.Prepared, phase.InProgress, true},
		{phase.InProgress, phase.InProgress, false},
		{phase.InProgress, phase.Completed, true},
		{phase.New, phase.Failed, false},
	} {
		pair := queued(t, tc.was, tc.is)
		require.Equal(t, tc.want, slotFreed().Update(event.UpdateEvent{ObjectOld: pair[0].Object(), ObjectNew: pair[1].Object()}), "%s to %s", tc.was, tc.is)
		require.Equal(t, weigh(pair[0]) != weight{}, slotFreed().Delete(event.DeleteEvent{Object: pair[0].Object()}))
		require.False(t, slotFreed().Create(event.CreateEvent{Object: pair[0].Object()}))
	}
}

// TestPlaceOfAnUpload: a volume of a node is read on that node.
func TestPlaceOfAnUpload(t *testing.T) {
	w := uploadWorld(t)
	pv := get[corev1.PersistentVolume](w, "", "pv-data")
	pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{"node-1"}}},
	}}}}
	w.update(pv)
	require.Equal(t, "node-1", w.run(w.uploads, "du").Status.Place)
}
