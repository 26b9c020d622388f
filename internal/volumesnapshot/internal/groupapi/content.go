package groupapi

import (
	"context"
	"errors"
	"slices"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Content is the VolumeGroupSnapshotContent of a group.
type Content struct {
	*groupsnapshotv1.VolumeGroupSnapshotContent
	// Object is what was read.
	Object *unstructured.Unstructured
}

func readContent(object *unstructured.Unstructured) (*Content, error) {
	content, err := Decode(object, &groupsnapshotv1.VolumeGroupSnapshotContent{})
	return &Content{content, object}, err
}

// Group is the key of the VolumeGroupSnapshot.
func (c *Content) Group() client.ObjectKey {
	of := c.Spec.VolumeGroupSnapshotRef
	return client.ObjectKey{Namespace: of.Namespace, Name: of.Name}
}

// Handle is that of the group in the storage, or "".
func (c *Content) Handle() string {
	switch {
	case c.Status != nil && c.Status.VolumeGroupSnapshotHandle != nil:
		return *c.Status.VolumeGroupSnapshotHandle
	case c.Spec.Source.GroupSnapshotHandles != nil:
		return c.Spec.Source.GroupSnapshotHandles.VolumeGroupSnapshotHandle
	}
	return ""
}

// Members are the handles of the storage snapshots of all members. known is false if the
// storage has cut the group and the content does not tell the handles.
func (c *Content) Members() (handles []string, known bool) {
	switch {
	case c.Spec.Source.GroupSnapshotHandles != nil:
		return c.Spec.Source.GroupSnapshotHandles.VolumeSnapshotHandles, true
	case c.Handle() == "":
		return nil, true
	}
	// v1beta1 has another name for the list.
	for _, field := range []string{"volumeSnapshotInfoList", "volumeSnapshotHandlePairList"} {
		list, _, err := unstructured.NestedSlice(c.Object.Object, "status", field)
		if err != nil {
			return nil, false
		}
		for _, item := range list {
			pair, _ := item.(map[string]any)
			handle, _ := pair["snapshotHandle"].(string)
			if handle == "" {
				return nil, false
			}
			handles = append(handles, handle)
		}
	}
	return handles, len(handles) > 0
}

// FindContent returns nil if the content does not exist.
func (o Objects) FindContent(ctx context.Context, name string) (*Content, error) {
	object, err := o.Find(ctx, KindContent, client.ObjectKey{Name: name})
	if err != nil || object == nil {
		return nil, err
	}
	return readContent(object)
}

// OurContents returns the contents of groups of ours.
func (o Objects) OurContents(ctx context.Context) ([]*Content, error) {
	return read(o.ListOurs(ctx, KindContent))
}

func read(found []unstructured.Unstructured, err error) ([]*Content, error) {
	if err != nil {
		return nil, err
	}
	contents := make([]*Content, len(found))
	errs := make([]error, len(found))
	for i := range found {
		contents[i], errs[i] = readContent(&found[i])
	}
	return contents, errors.Join(errs...)
}

// contentWith returns the content of a group of the storage, or nil.
func (o Objects) contentWith(ctx context.Context, driver, handle string) (*Content, error) {
	contents, err := read(o.List(ctx, KindContent))
	if apierrors.IsNotFound(err) {
		err = ErrNotServed // no longer
	}
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(contents, func(c *Content) bool { return c.Spec.Driver == driver && c.Handle() == handle })
	if i < 0 {
		return nil, nil
	}
	return contents[i], nil
}
