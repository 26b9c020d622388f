package exposer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// EventObject is the field of an event by which the API server selects.
const EventObject = "involvedObject.name"

// Obstacle is why the volume or the mover pod of an operation is not there yet, in the words of
// whoever knows it: the provisioner, the driver, the kubelet.
type Obstacle struct {
	Reason, Message string
	// Refused is set if the storage says that it will never make the volume.
	Refused bool
}

// String is "Reason: message".
func (o Obstacle) String() string { return o.Reason + ": " + o.Message }

// inStatus are reasons that the status of the pod has as well.
var inStatus = []string{"FailedScheduling", "BackOff", "Failed"}

// Obstacles returns the newest warning of each reason about the PVC and the pod of an
// operation, oldest first. Both have the same name.
func (e *Exposer) Obstacles(ctx context.Context, op identity.Operation) ([]Obstacle, error) {
	list := &corev1.EventList{}
	if err := e.Reader.List(ctx, list, client.InNamespace(e.Namespace), client.MatchingFields{EventObject: op.ObjectName()}); err != nil {
		return nil, fmt.Errorf("list events of %s: %w", e.keyOf(op), err)
	}
	slices.SortStableFunc(list.Items, func(a, b corev1.Event) int { return lastSeen(&a).Compare(lastSeen(&b)) })
	var found []Obstacle
	for i := range list.Items {
		event := &list.Items[i]
		if event.Type != corev1.EventTypeWarning || slices.Contains(inStatus, event.Reason) {
			continue
		}
		found = slices.DeleteFunc(found, func(o Obstacle) bool { return o.Reason == event.Reason })
		found = append(found, Obstacle{Reason: event.Reason, Message: event.Message, Refused: isRefusal(event)})
	}
	return found, nil
}

func lastSeen(event *corev1.Event) time.Time {
	switch {
	case event.Series != nil:
		return event.Series.LastObservedTime.Time
	case !event.LastTimestamp.IsZero():
		return event.LastTimestamp.Time
	}
	return event.EventTime.Time
}

// refusals are the answers of a driver that another try does not change, by the CSI
// specification, and those of the provisioner and of the volume controller.
var refusals = []string{
	"code = InvalidArgument", "code = Unimplemented", "code = OutOfRange", "does not have permission to do so", "storageclass.storage.k8s.io",
}

// isRefusal reports whether an event says that a volume will never be made.
func isRefusal(event *corev1.Event) bool {
	return event.Reason == "ProvisioningFailed" &&
		slices.ContainsFunc(refusals, func(words string) bool { return strings.Contains(event.Message, words) })
}
