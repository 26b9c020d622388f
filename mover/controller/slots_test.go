package controller

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// queued makes operations of the phases in the order of their creation; "+" is a
// new one that waits for nothing but a slot.
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
				if op.Status.Phase == phase.New && hasSlot(op, all, tc.slots, config.LoadConcurrency{PrepareQueueLength: tc.queue}) {
					may = append(may, i)
				}
			}
			require.Equal(t, tc.want, may)
		})
	}
}

// TestQueueIsServed runs more uploads than there are slots.
func TestQueueIsServed(t *testing.T) {
	w := uploadWorld(t)
	w.uploads.config.LoadConcurrency.GlobalConfig = 1
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
