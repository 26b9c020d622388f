package groupapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// Record is all that is needed to delete a group in the storage when its objects are gone. It
// is stored with each re-homed member.
type Record struct {
	// Handle of the group, and those of all its members.
	Handle  string   `json:"handle"`
	Members []string `json:"members"`
	Driver  string   `json:"driver"`
	// Class is the VolumeGroupSnapshotClass, or "".
	Class string `json:"class,omitempty"`
	// Content is the name of the VolumeGroupSnapshotContent. Namespace and Name are those of
	// the VolumeGroupSnapshot.
	Content   string `json:"content"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	BackupUID string `json:"backupUID"`
	// Secrets are the annotations that name the secret of the driver.
	Secrets map[string]string `json:"secrets,omitempty"`
}

// ParseRecord reads a record. One that lacks a part leads to no group, or to another one.
func ParseRecord(text string) (Record, error) {
	var r Record
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return Record{}, err
	}
	if slices.Contains(slices.Concat(r.Members, []string{r.Handle, r.Driver, r.Content, r.Namespace, r.Name}), "") || len(r.Members) == 0 {
		return Record{}, errors.New("a handle or a name is missing")
	}
	return r, nil
}

// Annotations and the finalizer of the snapshot controller and of its sidecar.
const (
	annotationSecretName      = "groupsnapshot.storage.kubernetes.io/deletion-secret-name"
	annotationSecretNamespace = "groupsnapshot.storage.kubernetes.io/deletion-secret-namespace"
	finalizerContent          = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection"
)

// Keeper keeps the contents of groups.
//
// A group is one thing of the storage. By the CSI specification a driver may refuse to delete
// a member alone. So a member is never deleted alone, with any driver: its objects are deleted
// with the policy Retain, and the storage snapshot goes with the group. For that, the content
// of the group stays, with the policy Retain and marked as ours, as long as a member is
// needed.
type Keeper struct {
	client client.Client
	reader client.Reader
}

// NewKeeper returns a Keeper. reader answers from the API server.
func NewKeeper(c client.Client, reader client.Reader) Keeper { return Keeper{c, reader} }

// Protect takes the group of a member's content into our charge, so that the group survives the
// deletion of its VolumeGroupSnapshot. It returns the record of the group, or "" if the content
// is of no group of ours.
func (k Keeper) Protect(ctx context.Context, member *snapshotv1.VolumeSnapshotContent) (string, error) {
	objects, group, err := k.groupOf(ctx, member)
	if err != nil || group == nil {
		return "", err
	}
	members, known := group.Members()
	if !known || len(members) == 0 {
		return "", fmt.Errorf("VolumeGroupSnapshotContent %s does not tell the handles of its members yet", group.Name)
	}
	backupUID, err := objects.backupOf(ctx, group)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(recordOf(group, members, backupUID))
	if err != nil {
		return "", fmt.Errorf("render record of group %s: %w", group.Handle(), err)
	}
	return string(text), k.takeCharge(ctx, group, backupUID)
}

// Owns reports whether the storage snapshot of a member's content goes with a group of ours. It
// changes nothing.
func (k Keeper) Owns(ctx context.Context, member *snapshotv1.VolumeSnapshotContent) (bool, error) {
	_, group, err := k.groupOf(ctx, member)
	return group != nil, err
}

// groupOf returns the group of ours that a member's content is of, or nil. A cluster that does
// not serve the API has no groups.
func (k Keeper) groupOf(ctx context.Context, member *snapshotv1.VolumeSnapshotContent) (Objects, *Content, error) {
	handle := member.Annotations[content.AnnotationGroupHandle]
	if handle == "" {
		return Objects{}, nil, nil
	}
	objects, err := Discover(k.client.RESTMapper(), k.reader)
	if err != nil {
		return Objects{}, nil, err
	}
	group, err := objects.contentWith(ctx, member.Spec.Driver, handle)
	if errors.Is(err, ErrNotServed) || err == nil && (group == nil || !identity.IsGroupName(group.Group().Name)) {
		return objects, nil, nil
	}
	return objects, group, err
}

// backupOf returns the UID of the backup that a group belongs to, or "".
func (o Objects) backupOf(ctx context.Context, group *Content) (string, error) {
	if uid := group.Labels[identity.LabelBackupUID]; uid != "" {
		return uid, nil
	}
	vgs, err := o.Find(ctx, KindGroup, group.Group())
	if err != nil || vgs == nil {
		return "", err
	}
	return vgs.GetLabels()[identity.LabelBackupUID], nil
}

func recordOf(group *Content, members []string, backupUID string) Record {
	record := Record{
		Handle: group.Handle(), Members: members, Driver: group.Spec.Driver, Content: group.Name,
		Namespace: group.Group().Namespace, Name: group.Group().Name, BackupUID: backupUID, Secrets: map[string]string{},
	}
	if class := group.Spec.VolumeGroupSnapshotClassName; class != nil {
		record.Class = *class
	}
	for _, key := range []string{annotationSecretName, annotationSecretNamespace} {
		if value := group.Annotations[key]; value != "" {
			record.Secrets[key] = value
		}
	}
	return record
}

// takeCharge marks a content as ours and lets the group survive it.
func (k Keeper) takeCharge(ctx context.Context, group *Content, backupUID string) error {
	if group.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentRetain && group.Labels[identity.LabelBackupUID] != "" {
		return nil
	}
	before := group.Object.DeepCopy()
	kube.SetLabel(group.Object, identity.LabelBackupUID, backupUID)
	if err := unstructured.SetNestedField(group.Object.Object, string(snapshotv1.VolumeSnapshotContentRetain), "spec", "deletionPolicy"); err != nil {
		return fmt.Errorf("protect VolumeGroupSnapshotContent %s: %w", group.Name, err)
	}
	if err := k.client.Patch(ctx, group.Object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("protect VolumeGroupSnapshotContent %s: %w", group.Name, err)
	}
	return nil
}

// Secure reports whether a re-homed member is to be left to its group. If the content of the
// group is gone, Secure makes it again from the record, so that the group can be deleted. In a
// cluster that does not serve the API any more, the error wraps ErrNotServed: the member has to
// wait.
func (k Keeper) Secure(ctx context.Context, member client.Object) (bool, error) {
	text := member.GetAnnotations()[identity.AnnotationGroupSnapshot]
	if text == "" {
		return false, nil
	}
	record, err := ParseRecord(text)
	if err != nil {
		return false, fmt.Errorf("read annotation %s of %s: %w", identity.AnnotationGroupSnapshot, member.GetName(), err)
	}
	objects, err := Discover(k.client.RESTMapper(), k.reader)
	if err != nil {
		return false, err
	}
	group, err := objects.contentWith(ctx, record.Driver, record.Handle)
	switch {
	case errors.Is(err, ErrNotServed):
		return false, fmt.Errorf("%s is part of group snapshot %s of the storage, which cannot be deleted now: %w", member.GetName(), record.Handle, err)
	case err != nil || group != nil:
		return group != nil, err
	}
	return true, k.restore(ctx, objects, record)
}

// restore makes the content of a group again.
func (k Keeper) restore(ctx context.Context, objects Objects, record Record) error {
	made := &groupsnapshotv1.VolumeGroupSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{
			Name:        record.Content,
			Labels:      map[string]string{identity.LabelBackupUID: record.BackupUID},
			Annotations: record.Secrets,
			Finalizers:  []string{finalizerContent},
		},
		Spec: groupsnapshotv1.VolumeGroupSnapshotContentSpec{
			VolumeGroupSnapshotRef: corev1.ObjectReference{
				APIVersion: objects.Served.String(), Kind: KindGroup, Namespace: record.Namespace, Name: record.Name,
			},
			DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
			Driver:         record.Driver,
			Source: groupsnapshotv1.VolumeGroupSnapshotContentSource{GroupSnapshotHandles: &groupsnapshotv1.GroupSnapshotHandles{
				VolumeGroupSnapshotHandle: record.Handle, VolumeSnapshotHandles: record.Members,
			}},
		},
	}
	if record.Class != "" {
		made.Spec.VolumeGroupSnapshotClassName = &record.Class
	}
	rendered, err := runtime.DefaultUnstructuredConverter.ToUnstructured(made)
	if err != nil {
		return fmt.Errorf("render VolumeGroupSnapshotContent %s: %w", record.Content, err)
	}
	object := &unstructured.Unstructured{Object: rendered}
	object.SetGroupVersionKind(objects.Served.WithKind(KindContent))
	if err := kube.Ensure(ctx, k.client, object); err != nil {
		return err
	}
	return k.FillStatus(ctx, object)
}

// FillStatus writes the handle of a group into the status of a content that was made again.
// Without it, the sidecar deletes nothing in the storage.
func (k Keeper) FillStatus(ctx context.Context, object *unstructured.Unstructured) error {
	made, err := readContent(object)
	if err != nil {
		return err
	}
	if made.Spec.Source.GroupSnapshotHandles == nil || made.Status != nil && made.Status.VolumeGroupSnapshotHandle != nil {
		return nil
	}
	before := object.DeepCopy()
	if err := unstructured.SetNestedMap(object.Object, map[string]any{
		"volumeGroupSnapshotHandle": made.Handle(), "readyToUse": true,
	}, "status"); err != nil {
		return fmt.Errorf("set handle in the status of VolumeGroupSnapshotContent %s: %w", made.Name, err)
	}
	if err := client.IgnoreNotFound(k.client.Status().Patch(ctx, object, client.MergeFrom(before))); err != nil {
		return fmt.Errorf("set handle in the status of VolumeGroupSnapshotContent %s: %w", made.Name, err)
	}
	return nil
}
