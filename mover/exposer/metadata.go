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

// MetadataService is the content of a SnapshotMetadataService object.
type MetadataService struct {
	Address  string
	Audience string
	CACert   []byte
	// BaseRequired is set if the base snapshot of a delta has to exist.
	BaseRequired bool
}

// metadataKind has no version. The API server names the version that it prefers, and all
// have the same spec.
var metadataKind = schema.GroupKind{Group: "cbt.storage.k8s.io", Kind: "SnapshotMetadataService"}

// FindMetadataService returns the CSI SnapshotMetadata service of a driver, or the reason
// why there is none, which is not an error.
//
// apiAudiences are the audiences that the API server accepts. A service that asks for a
// token with one of them could use it against the cluster, so it gets none and counts as
// unavailable.
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
		value, _, _ := unstructured.NestedString(object.Object, "spec", name) // an error leaves it empty
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
	// The field is newer than the API. A driver without it may need the base.
	required, stated, _ := unstructured.NestedBool(object.Object, "spec", "requireBaseSnapshotForDelta")
	return &MetadataService{Address: fields[0], Audience: fields[1], CACert: ca, BaseRequired: required || !stated}, "", nil
}
