package operation

import (
	"strconv"

	"k8s.io/apimachinery/pkg/types"
)

// Result is what an upload has come to: status.dataMoverResult of its DataUpload. It is nil if there is
// none.
type Result map[string]string

// Result returns that of a DataUpload. A DataDownload has none.
func (v *View) Result() Result {
	if v.Upload == nil || v.Upload.Status.DataMoverResult == nil {
		return nil
	}
	return *v.Upload.Status.DataMoverResult
}

// Number returns a number of the result. It is 0 if there is none: an older version may not have written
// it.
func (r Result) Number(key string) int64 {
	n, _ := strconv.ParseInt(r[key], 10, 64)
	return n
}

// Claim returns the PVC that is backed up or restored.
func (v *View) Claim() types.NamespacedName {
	if v.Upload != nil {
		return types.NamespacedName{Namespace: v.Upload.Spec.SourceNamespace, Name: v.Upload.Spec.SourcePVC}
	}
	return types.NamespacedName{Namespace: v.Download.Spec.TargetVolume.Namespace, Name: v.Download.Spec.TargetVolume.PVC}
}
