package exposer

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// MetadataService is what a SnapshotMetadataService object says of its driver.
type MetadataService struct {
	Address  string
	Audience string
	CACert   []byte
	// BaseRequired says that the base snapshot of a delta has to exist.
	BaseRequired bool
}

// metadataKind is looked up without a version: the API server says which of
// them it prefers, and all have the same spec.
var metadataKind = schema.GroupKind{Group: "cbt.storage.k8s.io", Kind: "SnapshotMetadataService"}

// FindMetadataService returns the CSI SnapshotMetadata service of a driver, or
// why there is none: no changed-block tracking is no error.
//
// apiAudiences are the audiences that the API server accepts. A service that
// asks for one of them could use the mover's tokens against the cluster, so it is
// not asked.
func FindMetadataService(ctx context.Context, c client.Reader, mapper meta.RESTMapper, driver string, apiAudiences []string) (*MetadataService, string, error) {
	mapping, err := mapper.RESTMapping(metadataKind)
	if meta.IsNoMatchError(err) {
		return nil, "the cluster does not have the SnapshotMetadataService API", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("discover the SnapshotMetadataService API: %w", err)
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(mapping.GroupVersionKind)
	if err := c.Get(ctx, client.ObjectKey{Name: driver}, object); apierrors.IsNotFound(err) {
		return nil, fmt.Sprintf("driver %s has no SnapshotMetadataService", driver), nil
	} else if err != nil {
		return nil, "", fmt.Errorf("get SnapshotMetadataService %s: %w", driver, err)
	}
	var fields [3]string
	for i, name := range []string{"address", "audience", "caCert"} {
		value, _, _ := unstructured.NestedString(object.Object, "spec", name) // "" is all that is wrong with it
		if value == "" {
			return nil, fmt.Sprintf("SnapshotMetadataService %s has no spec.%s", driver, name), nil
		}
		fields[i] = value
	}
	ca, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		return nil, fmt.Sprintf("SnapshotMetadataService %s: spec.caCert is not base64: %v", driver, err), nil
	}
	if slices.Contains(apiAudiences, fields[1]) {
		return nil, fmt.Sprintf("SnapshotMetadataService %s asks for tokens of the API server's own audience %s: refused", driver, fields[1]), nil
	}
	// The field is newer than the API: where it is absent, the driver may be one
	// that needs the base.
	required, stated, _ := unstructured.NestedBool(object.Object, "spec", "requireBaseSnapshotForDelta")
	return &MetadataService{Address: fields[0], Audience: fields[1], CACert: ca, BaseRequired: required || !stated}, "", nil
}
