package groupsnapshot

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

// Ref names a VolumeGroupSnapshot of ours.
type Ref struct {
	Namespace string
	Name      string
	BackupUID string
}

func (r Ref) key() client.ObjectKey {
	return client.ObjectKey{Namespace: r.Namespace, Name: r.Name}
}

// adoptable returns an error if an object with the name belongs to another backup.
func (r Ref) adoptable(found *unstructured.Unstructured) error {
	if have := found.GetLabels()[identity.LabelBackupUID]; have != r.BackupUID {
		return fmt.Errorf("label %s is %q, want %q", identity.LabelBackupUID, have, r.BackupUID)
	}
	return nil
}

// String is namespace/name.
func (r Ref) String() string { return r.key().String() }

// APIGroup is the API group of VolumeGroupSnapshots.
const APIGroup = groupapi.APIGroup

// ErrNotServed says that the cluster does not serve APIGroup in a version that this package
// knows.
var ErrNotServed = groupapi.ErrNotServed
