package standin

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// reconcileTracker tells a VM that has started of its checkpoints, as KubeVirt does, which takes it
// two seconds. A disk that was not closed properly has lost its bitmaps; the tracker is empty then.
func (s *Standin) reconcileTracker(ctx context.Context, tracker *unstructured.Unstructured) error {
	vm, err := s.vmOf(ctx, tracker)
	if err != nil || vm == nil {
		return err
	}
	m := s.machines[vm.GetUID()]
	checkpoint, _, _ := unstructured.NestedString(tracker.Object, "status", "latestCheckpoint", "name")
	if !m.isRunning() || checkpoint == "" {
		return nil
	}
	status, _, _ := unstructured.NestedMap(tracker.Object, "status")
	told, _, _ := unstructured.NestedString(status, "toldTo")
	switch {
	case told == string(m.instance):
		return nil
	case time.Since(m.started) < 2*time.Second:
		status["checkpointRedefinitionRequired"] = true
		return s.setStatus(ctx, trackers, tracker, status)
	}
	if err := m.removeBitmaps(func(b bitmap) bool { return b.Inconsistent }); err != nil {
		return err
	}
	delete(status, "checkpointRedefinitionRequired")
	status["toldTo"] = string(m.instance)
	volumes, _, _ := unstructured.NestedSlice(status, "latestCheckpoint", "volumes")
	all, err := m.bitmaps()
	if err != nil {
		return err
	}
	found := 0
	for _, b := range all {
		if b.Name == checkpoint {
			found++
		}
	}
	if found < len(volumes) {
		status = map[string]any{}
	}
	return s.setStatus(ctx, trackers, tracker, status)
}
