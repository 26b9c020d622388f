// Package veleroapi reads and writes fields of Velero's objects that newer CRDs have, and
// that the Go types of this program do not have:
//
//	Backup      spec.backupType              Full or Incremental
//	Schedule    spec.template.backupType     the same, for the Backups that it makes
//	DataUpload  spec.parentSnapshot          auto, none, or the ID of a repo snapshot
//
// A typed object drops fields that its type does not have, so this package uses unstructured
// objects. If the CRD does not have a field, the API server has dropped it: it is read as "",
// and writing it has no effect.
package veleroapi

import (
	"context"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	fieldBackupType     = "backupType"
	fieldParentSnapshot = "parentSnapshot"
)

// Backup is what a Backup asks of a data mover, in the spelling of the user.
type Backup struct {
	// Type is spec.backupType of the Backup, else that of the template of its Schedule, else
	// "".
	Type        string
	Annotations map[string]string
}

// GetBackup reads what a Backup asks for.
func GetBackup(ctx context.Context, r client.Reader, key client.ObjectKey) (Backup, error) {
	u, err := get(ctx, r, velerov1.SchemeGroupVersion.WithKind("Backup"), key)
	if err != nil {
		return Backup{}, err
	}
	b := Backup{Type: text(u, "spec", fieldBackupType), Annotations: u.GetAnnotations()}
	if schedule := u.GetLabels()[velerov1.ScheduleNameLabel]; b.Type == "" && schedule != "" {
		b.Type, err = ofSchedule(ctx, r, client.ObjectKey{Namespace: key.Namespace, Name: schedule})
	}
	return b, err
}

// ofSchedule returns the backup type in the template of a Schedule. A Velero that does not
// know the field loses it when it makes a Backup from the template.
func ofSchedule(ctx context.Context, r client.Reader, key client.ObjectKey) (string, error) {
	s, err := get(ctx, r, velerov1.SchemeGroupVersion.WithKind("Schedule"), key)
	if apierrors.IsNotFound(err) {
		return "", nil // the Schedule was deleted, its Backups stay
	}
	if err != nil {
		return "", err
	}
	return text(s, "spec", "template", fieldBackupType), nil
}

// ParentSnapshot returns spec.parentSnapshot of a DataUpload.
func ParentSnapshot(ctx context.Context, r client.Reader, dataUpload client.ObjectKey) (string, error) {
	u, err := get(ctx, r, velerov2alpha1.SchemeGroupVersion.WithKind("DataUpload"), dataUpload)
	if err != nil {
		return "", err
	}
	return text(u, "spec", fieldParentSnapshot), nil
}

// CreateDataUpload creates a DataUpload with spec.parentSnapshot. On success, du
// is as the API server has it.
func CreateDataUpload(ctx context.Context, c client.Client, du *velerov2alpha1.DataUpload, parentSnapshot string) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(du)
	if err != nil {
		return fmt.Errorf("render DataUpload %s: %w", du.Name, err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(velerov2alpha1.SchemeGroupVersion.WithKind("DataUpload"))
	if err := unstructured.SetNestedField(u.Object, parentSnapshot, "spec", fieldParentSnapshot); err != nil {
		return fmt.Errorf("render DataUpload %s: %w", du.Name, err)
	}
	// This silences the warning that the CRD does not have the field.
	if err := c.Create(ctx, u, client.FieldValidation(metav1.FieldValidationIgnore)); err != nil {
		return err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, du); err != nil {
		return fmt.Errorf("read DataUpload %s: %w", du.Name, err)
	}
	return nil
}

func get(ctx context.Context, r client.Reader, kind schema.GroupVersionKind, key client.ObjectKey) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kind)
	if err := r.Get(ctx, key, u); err != nil {
		return nil, fmt.Errorf("get %s %s: %w", kind.Kind, key, err)
	}
	return u, nil
}

// text returns a field of an object as text, or "" if it is not set. A value that is no
// string becomes a text that no parser accepts.
func text(u *unstructured.Unstructured, path ...string) string {
	value, found, err := unstructured.NestedFieldNoCopy(u.Object, path...)
	if err != nil || !found || value == nil {
		return ""
	}
	return fmt.Sprint(value)
}
