package exposer

import (
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Mount is how the volumes of a class are mounted.
type Mount struct {
	// Filesystem is what a Filesystem volume is mounted as.
	Filesystem string
	// Parameters are those of the StorageClass.
	Parameters map[string]string
}

// secretReferences are the references of a PV to Secrets, by the parameters of a StorageClass
// that name them.
func secretReferences(csi *corev1.CSIPersistentVolumeSource) map[string]**corev1.SecretReference {
	return map[string]**corev1.SecretReference{
		"controller-publish": &csi.ControllerPublishSecretRef,
		"node-stage":         &csi.NodeStageSecretRef,
		"node-publish":       &csi.NodePublishSecretRef,
		"controller-expand":  &csi.ControllerExpandSecretRef,
		"node-expand":        &csi.NodeExpandSecretRef,
	}
}

// resolveSecrets makes a PV refer to the Secrets of its target PVC. The provisioner has resolved
// the templates of the class for the PVC that the restore wrote, in Velero's namespace. A
// reference without a template of the PVC stays. pvName is the name that the templates were
// resolved for.
func (m Mount) resolveSecrets(csi *corev1.CSIPersistentVolumeSource, target *corev1.PersistentVolumeClaim, pvName string) {
	resolve := func(template string) string {
		return os.Expand(template, func(key string) string {
			switch key {
			case "pv.name":
				return pvName
			case "pvc.name":
				return target.Name
			case "pvc.namespace":
				return target.Namespace
			}
			name := strings.TrimSuffix(strings.TrimPrefix(key, "pvc.annotations['"), "']")
			return target.Annotations[name]
		})
	}
	for use, reference := range secretReferences(csi) {
		const domain = "csi.storage.k8s.io/"
		name, namespace := m.Parameters[domain+use+"-secret-name"], m.Parameters[domain+use+"-secret-namespace"]
		if *reference == nil || !strings.Contains(name+namespace, "${pvc.") {
			continue
		}
		*reference = &corev1.SecretReference{Name: resolve(name), Namespace: resolve(namespace)}
	}
}
