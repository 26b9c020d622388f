// Package groupapi reads the objects of the VolumeGroupSnapshot API, and keeps the content of
// a group for as long as one of its members is needed; see Keeper. The packages around it
// share it.
//
// The objects are read as unstructured: all versions spell the fields that are needed the
// same.
package groupapi

import (
	"context"
	"errors"
	"fmt"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// APIGroup is the API group of VolumeGroupSnapshots.
const APIGroup = groupsnapshotv1.GroupName

// ErrNotServed says that the cluster does not serve APIGroup in a version that this
// package knows.
var ErrNotServed = errors.New("the cluster does not serve the API " + APIGroup)

// The kinds of APIGroup.
const (
	KindGroup   = "VolumeGroupSnapshot"
	KindContent = "VolumeGroupSnapshotContent"
	KindClass   = "VolumeGroupSnapshotClass"
)

// knownVersions are the versions of APIGroup that this package knows, best first.
func knownVersions() []string { return []string{"v1", "v1beta2", "v1beta1"} }

// Objects reads the objects of APIGroup in one version.
type Objects struct {
	reader client.Reader
	// Served is nil if the cluster does not serve the API.
	Served *schema.GroupVersion
}

// Discover finds the best version that the cluster serves. That it serves none is no error.
func Discover(mapper meta.RESTMapper, reader client.Reader) (Objects, error) {
	for _, version := range knownVersions() {
		_, err := mapper.RESTMapping(schema.GroupKind{Group: APIGroup, Kind: KindGroup}, version)
		if err == nil {
			return Objects{reader, &schema.GroupVersion{Group: APIGroup, Version: version}}, nil
		}
		if !meta.IsNoMatchError(err) {
			return Objects{}, fmt.Errorf("discover %s/%s: %w", APIGroup, version, err)
		}
	}
	return Objects{reader, nil}, nil
}

// Find returns nil if the object does not exist.
func (o Objects) Find(ctx context.Context, kind string, key client.ObjectKey) (*unstructured.Unstructured, error) {
	if o.Served == nil {
		return nil, ErrNotServed
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(o.Served.WithKind(kind))
	return kube.Find(ctx, o.reader, key, object)
}

// List lists objects of a kind.
func (o Objects) List(ctx context.Context, kind string, options ...client.ListOption) ([]unstructured.Unstructured, error) {
	if o.Served == nil {
		return nil, ErrNotServed
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(o.Served.WithKind(kind + "List"))
	if err := o.reader.List(ctx, list, options...); err != nil {
		return nil, fmt.Errorf("list %s objects: %w", kind, err)
	}
	return list.Items, nil
}

// ListOurs lists the objects with the label of a backup. It returns none if the
// cluster does not serve the kind, or no longer does.
func (o Objects) ListOurs(ctx context.Context, kind string) ([]unstructured.Unstructured, error) {
	found, err := o.List(ctx, kind, client.HasLabels{identity.LabelBackupUID})
	if errors.Is(err, ErrNotServed) || apierrors.IsNotFound(err) {
		return nil, nil
	}
	return found, err
}

// Decode reads an object into its type.
func Decode[T client.Object](object *unstructured.Unstructured, into T) (T, error) {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, into); err != nil {
		return into, fmt.Errorf("read %s %s: %w", object.GetKind(), client.ObjectKeyFromObject(object), err)
	}
	return into, nil
}
