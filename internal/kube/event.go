package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Warn makes a warning event of an object, in its namespace. component is who says it. It is for
// programs that have no recorder, because they run for one call.
func Warn(ctx context.Context, c client.Writer, about corev1.ObjectReference, component, reason, message string) error {
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: about.Namespace, GenerateName: "blockmover-"},
		InvolvedObject: about,
		Source:         corev1.EventSource{Component: component},
		Type:           corev1.EventTypeWarning, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	if err := c.Create(ctx, event); err != nil {
		return fmt.Errorf("create event: %w", err)
	}
	return nil
}
