package rehome

import (
	"maps"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// planContent is the pair's content for an origin, without the facts.
func planContent(op identity.Operation, namespace string, origin *snapshotv1.VolumeSnapshotContent, class *string) *snapshotv1.VolumeSnapshotContent {
	labels := map[string]string{velerov1.ExcludeFromBackupLabel: "true"}
	// With distributed snapshotting, the sidecar of one node handles a content.
	if node, ok := origin.Labels[content.LabelManagedBy]; ok {
		labels[content.LabelManagedBy] = node
	}
	// The annotations name the secret that the driver needs to delete the snapshot.
	labels, annotations := op.Mark(labels, origin.Annotations)
	for _, stale := range []string{
		content.AnnotationBeingDeleted, content.AnnotationBeingCreated, content.AnnotationGroupHandle, corev1.LastAppliedConfigAnnotation,
	} {
		delete(annotations, stale)
	}
	// The snapshot of a Filesystem volume is exposed as a Block volume.
	annotations[content.AnnotationAllowModeChange] = "true"
	annotations[identity.AnnotationOrigin] = origin.Name
	return &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: op.ObjectName(), Labels: labels, Annotations: annotations},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			VolumeSnapshotRef:       referenceTo(namespace, op.ObjectName()),
			Source:                  snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: origin.Status.SnapshotHandle},
			DeletionPolicy:          snapshotv1.VolumeSnapshotContentDelete,
			Driver:                  origin.Spec.Driver,
			VolumeSnapshotClassName: class,
		},
	}
}

// planSnapshot is the pair's VolumeSnapshot.
func planSnapshot(key client.ObjectKey, pair *snapshotv1.VolumeSnapshotContent) *snapshotv1.VolumeSnapshot {
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace,
			Name:      key.Name,
			Labels:    map[string]string{velerov1.ExcludeFromBackupLabel: "true"},
		},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &pair.Name},
			VolumeSnapshotClassName: pair.Spec.VolumeSnapshotClassName,
		},
	}
	copyMarks(pair, vs)
	return vs
}

func referenceTo(namespace, name string) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshot", Namespace: namespace, Name: name,
	}
}

// copyMarks replaces our labels and annotations of one object by those of another.
func copyMarks(from, to client.Object) {
	to.SetLabels(withMarksOf(from.GetLabels(), to.GetLabels()))
	to.SetAnnotations(withMarksOf(from.GetAnnotations(), to.GetAnnotations()))
}

func withMarksOf(from, to map[string]string) map[string]string {
	foreign := func(key, _ string) bool { return !strings.HasPrefix(key, identity.Domain) }
	ours := func(key, value string) bool { return !foreign(key, value) }
	marks := maps.Clone(from)
	maps.DeleteFunc(marks, foreign)
	out := maps.Clone(to)
	maps.DeleteFunc(out, ours)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, marks)
	return out
}
