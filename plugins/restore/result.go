package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// listResults returns the ConfigMaps that Velero's action for DataUploads wrote for a PVC in
// this restore. Namespace and name are those in the backup.
func listResults(ctx context.Context, c client.Client, restore *velerov1.Restore, namespace, pvc string) ([]corev1.ConfigMap, error) {
	var list corev1.ConfigMapList
	if err := c.List(ctx, &list, client.InNamespace(restore.Namespace), client.MatchingLabels{
		velerov1.PVCNamespaceNameLabel: label.GetValidName(namespace + "." + pvc),
		velerov1.RestoreUIDLabel:       label.GetValidName(string(restore.UID)),
		velerov1.ResourceUsageLabel:    label.GetValidName(string(velerov1.VeleroResourceUsageDataUploadResult)),
	}); err != nil {
		return nil, fmt.Errorf("list DataUpload results of PVC %s/%s: %w", namespace, pvc, err)
	}
	return list.Items, nil
}

// findResult returns the result of the DataUpload that the PVC of the backup names
// (namespace/name). A PVC has several results if Velero's own namespace was backed up, with
// the DataUploads of other backups in it. Velero names a ConfigMap after its DataUpload.
func findResult(ctx context.Context, c client.Client, restore *velerov1.Restore, namespace, pvc, upload string) (velerov2alpha1.DataUploadResult, error) {
	configs, err := listResults(ctx, c, restore, namespace, pvc)
	if err != nil {
		return velerov2alpha1.DataUploadResult{}, err
	}
	prefix := upload[strings.LastIndex(upload, "/")+1:] + "-"
	for i := range configs {
		if strings.HasPrefix(configs[i].Name, prefix) {
			return decodeResult(&configs[i], restore)
		}
	}
	return velerov2alpha1.DataUploadResult{}, fmt.Errorf("find result of DataUpload %s: the backup holds no DataUpload of this volume: it did not complete", upload)
}

func decodeResult(config *corev1.ConfigMap, restore *velerov1.Restore) (velerov2alpha1.DataUploadResult, error) {
	var result velerov2alpha1.DataUploadResult
	text, found := config.Data[string(restore.UID)]
	if !found {
		return result, fmt.Errorf("read DataUpload result %s/%s: no key %s", config.Namespace, config.Name, restore.UID)
	}
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		return result, fmt.Errorf("read DataUpload result %s/%s: %w", config.Namespace, config.Name, err)
	}
	return result, nil
}

// checkResult returns an error for a result that cannot be restored from. The DataUpload of a
// failed or canceled backup has a result, too, without a repo snapshot. Another backup of the
// volume is no substitute for it.
func checkResult(result velerov2alpha1.DataUploadResult, upload string) error {
	switch {
	case result.DataMover != identity.DataMover:
		return fmt.Errorf("DataUpload %s is of data mover %q, want %q", upload, result.DataMover, identity.DataMover)
	case result.SnapshotID == "":
		return fmt.Errorf("the backup of this volume did not complete: DataUpload %s has no repo snapshot", upload)
	}
	return nil
}
