package identity

import (
	"fmt"
	"maps"
	"strings"
)

// Kinds of operation.
const (
	KindDataUpload   = "DataUpload"
	KindDataDownload = "DataDownload"
)

// Operation identifies one DataUpload or DataDownload. Everything that is created
// for an operation gets its name, its label and its annotation from here.
type Operation struct {
	// Kind is KindDataUpload or KindDataDownload.
	Kind string
	// Namespace is the namespace of the Velero that the operation belongs to.
	Namespace string
	Name      string
	UID       string
}

// ObjectName is the name of the objects (VolumeSnapshot and its content, PVC,
// pod) that serve the operation in Velero's namespace.
func (o Operation) ObjectName() string { return OperationName(o.UID) }

// RebindVolumeName is the name of the PersistentVolume that hands a restored volume
// to its target PVC.
func (o Operation) RebindVolumeName() string { return RebindVolumeName(o.UID) }

// AliasVolumeName is the name of the PersistentVolume through which an in-place restore
// writes the volume of a live PVC.
func (o Operation) AliasVolumeName() string { return AliasVolumeName(o.UID) }

// LiveSnapshotName is the name of the VolumeSnapshot that an attempt of an in-place restore
// takes of the volume, in Velero's namespace.
func (o Operation) LiveSnapshotName(attempt int) string { return LiveSnapshotName(o.UID, attempt) }

// Reference is the value of AnnotationOperation: Kind/namespace/name.
func (o Operation) Reference() string { return o.Kind + "/" + o.Namespace + "/" + o.Name }

// String is the reference and the UID, for messages and logs.
func (o Operation) String() string { return fmt.Sprintf("%s (%s)", o.Reference(), o.UID) }

// Labels are the labels of an object of the operation.
func (o Operation) Labels() map[string]string { return map[string]string{LabelOperation: o.UID} }

// Annotations are the annotations of an object of the operation.
func (o Operation) Annotations() map[string]string {
	return map[string]string{AnnotationOperation: o.Reference()}
}

// Mark returns copies of an object's labels and annotations with those of the
// operation added.
func (o Operation) Mark(labels, annotations map[string]string) (map[string]string, map[string]string) {
	return merge(labels, o.Labels()), merge(annotations, o.Annotations())
}

func merge(into, from map[string]string) map[string]string {
	merged := maps.Clone(into)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, from)
	return merged
}

// OperationOf returns the operation that an object with these labels and
// annotations was created for. ok is false if they name none.
func OperationOf(labels, annotations map[string]string) (op Operation, ok bool) {
	return operationOf(labels[LabelOperation], annotations)
}

// AliasOperationOf returns the operation that an alias PV was created for. ok is false for
// everything else. An alias has no LabelOperation, so that nothing takes it for a volume of
// the operation.
func AliasOperationOf(name string, labels, annotations map[string]string) (op Operation, ok bool) {
	op, ok = operationOf(labels[LabelAlias], annotations)
	return op, ok && name == op.AliasVolumeName()
}

func operationOf(uid string, annotations map[string]string) (op Operation, ok bool) {
	const parts = 3
	reference := strings.Split(annotations[AnnotationOperation], "/")
	if uid == "" || len(reference) != parts {
		return Operation{}, false
	}
	return Operation{Kind: reference[0], Namespace: reference[1], Name: reference[2], UID: uid}, true
}
