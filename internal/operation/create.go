package operation

import (
	"errors"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// OwnedBy returns the owner references of an object that serves a Backup or a
// Restore. kind is the kind of the owner.
func OwnedBy(kind string, owner client.Object) []metav1.OwnerReference {
	controller := true
	return []metav1.OwnerReference{{
		APIVersion: velerov1.SchemeGroupVersion.String(),
		Kind:       kind,
		Name:       owner.GetName(),
		UID:        owner.GetUID(),
		Controller: &controller,
	}}
}

// Adoptable returns why an existing DataUpload or DataDownload cannot be the one
// that an earlier attempt created for the same operation of Velero, or nil. The
// caller compares the spec.
func Adoptable(found, wanted client.Object) error {
	is, want := found.GetLabels()[velerov1.AsyncOperationIDLabel], wanted.GetLabels()[velerov1.AsyncOperationIDLabel]
	switch {
	case found.GetDeletionTimestamp() != nil:
		return errors.New("it is being deleted")
	case is != want:
		return fmt.Errorf("it belongs to operation %q, want %q", is, want)
	}
	return nil
}
