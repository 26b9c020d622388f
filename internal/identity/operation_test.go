package identity

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOperationOf(t *testing.T) {
	op := Operation{Kind: KindDataUpload, Namespace: "velero", Name: "du", UID: "1-2"}
	found, ok := OperationOf(op.Mark(nil, nil))
	require.True(t, ok)
	require.Equal(t, op, found)
	require.Equal(t, "DataUpload/velero/du (1-2)", op.String())

	for name, annotation := range map[string]string{"none": "", "short": "DataUpload/velero", "long": "a/b/c/d"} {
		t.Run(name, func(t *testing.T) {
			_, ok := OperationOf(map[string]string{LabelOperation: "1"}, map[string]string{AnnotationOperation: annotation})
			require.False(t, ok)
		})
	}
	_, ok = OperationOf(nil, op.Annotations())
	require.False(t, ok, "an object without the label is nobody's")
}

// An alias is found by its own label and name, and by nothing that finds the volumes of an operation.
func TestAliasOperationOf(t *testing.T) {
	op := Operation{Kind: KindDataDownload, Namespace: "velero", Name: "dd", UID: "1-2"}
	labels := map[string]string{LabelAlias: op.UID}
	found, ok := AliasOperationOf(op.AliasVolumeName(), labels, op.Annotations())
	require.True(t, ok)
	require.Equal(t, op, found)
	require.True(t, IsAliasVolumeName(op.AliasVolumeName()))

	_, ok = AliasOperationOf("pvc-1", labels, op.Annotations())
	require.False(t, ok, "a label is no proof")
	_, ok = AliasOperationOf(op.AliasVolumeName(), op.Labels(), op.Annotations())
	require.False(t, ok)
	_, ok = OperationOf(labels, op.Annotations())
	require.False(t, ok)
	require.False(t, IsAliasVolumeName(op.RebindVolumeName()))
}

func TestMarkLeavesItsArgumentsAlone(t *testing.T) {
	labels, annotations := map[string]string{"a": "1"}, map[string]string{"b": "2"}
	marked, noted := Operation{Kind: "DataUpload", Namespace: "velero", Name: "du", UID: "uid"}.Mark(labels, annotations)
	require.Equal(t, map[string]string{"a": "1", LabelOperation: "uid"}, marked)
	require.Equal(t, map[string]string{"b": "2", AnnotationOperation: "DataUpload/velero/du"}, noted)
	require.Equal(t, map[string]string{"a": "1"}, labels)
	require.Equal(t, map[string]string{"b": "2"}, annotations)
}
