package kit

import "time"

// Object has the fields of any Kubernetes object that the scenarios read.
type Object struct {
	Kind     string   `json:"kind"`
	Metadata Metadata `json:"metadata"`
	Spec     Spec     `json:"spec"`
	Status   Status   `json:"status"`
}

// String formats the object as kind namespace/name.
func (o Object) String() string { return o.Kind + " " + o.Metadata.Namespace + "/" + o.Metadata.Name }

// Metadata of an object.
type Metadata struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace"`
	UID               string            `json:"uid"`
	Labels            map[string]string `json:"labels"`
	Annotations       map[string]string `json:"annotations"`
	DeletionTimestamp *time.Time        `json:"deletionTimestamp"`
}

// Spec is the union of the fields of the kinds that the scenarios read.
type Spec struct {
	// PersistentVolume and PersistentVolumeClaim.
	VolumeName       string `json:"volumeName"`
	VolumeMode       string `json:"volumeMode"`
	StorageClassName string `json:"storageClassName"`
	ReclaimPolicy    string `json:"persistentVolumeReclaimPolicy"`
	ClaimRef         *struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"claimRef"`
	CSI *struct {
		Driver       string `json:"driver"`
		VolumeHandle string `json:"volumeHandle"`
	} `json:"csi"`
	// DataUpload and DataDownload.
	DataMover       string `json:"datamover"`
	SourcePVC       string `json:"sourcePVC"`
	SourceNamespace string `json:"sourceNamespace"`
	SnapshotID      string `json:"snapshotID"`
	Cancel          bool   `json:"cancel"`

	TargetVolume struct {
		PVC string `json:"pvc"`
	} `json:"targetVolume"`
	// ParentSnapshot is a field of newer CRDs.
	ParentSnapshot string `json:"parentSnapshot"`
	// Pod.
	HostNetwork     bool        `json:"hostNetwork"`
	HostPID         bool        `json:"hostPID"`
	HostIPC         bool        `json:"hostIPC"`
	ServiceAccount  string      `json:"serviceAccountName"`
	Containers      []Container `json:"containers"`
	InitContainers  []Container `json:"initContainers"`
	SecurityContext *struct {
		RunAsNonRoot   *bool `json:"runAsNonRoot"`
		SeccompProfile *struct {
			Type string `json:"type"`
		} `json:"seccompProfile"`
	} `json:"securityContext"`
	Volumes []struct {
		Name     string         `json:"name"`
		HostPath map[string]any `json:"hostPath"`
		// Ephemeral is a volume that is made for the pod.
		Ephemeral map[string]any `json:"ephemeral"`
	} `json:"volumes"`
}

// Container of a pod.
type Container struct {
	Name  string `json:"name"`
	Image string `json:"image"`
	Env   []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
	VolumeMounts []struct {
		MountPath string `json:"mountPath"`
	} `json:"volumeMounts"`
	SecurityContext *struct {
		Privileged               *bool `json:"privileged"`
		AllowPrivilegeEscalation *bool `json:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   *bool `json:"readOnlyRootFilesystem"`
		Capabilities             *struct {
			Add  []string `json:"add"`
			Drop []string `json:"drop"`
		} `json:"capabilities"`
	} `json:"securityContext"`
}

// Status is the union of the fields of the kinds that the scenarios read.
type Status struct {
	Phase         string `json:"phase"`
	Message       string `json:"message"`
	FailureReason string `json:"failureReason"`
	// StartTimestamp and CompletionTimestamp are of Velero's kinds.
	StartTimestamp      time.Time         `json:"startTimestamp"`
	CompletionTimestamp time.Time         `json:"completionTimestamp"`
	ValidationErrors    []string          `json:"validationErrors"`
	Errors              int               `json:"errors"`
	Warnings            int               `json:"warnings"`
	SnapshotID          string            `json:"snapshotID"`
	DataMoverResult     map[string]string `json:"dataMoverResult"`
	Progress            struct {
		TotalBytes int64 `json:"totalBytes"`
		BytesDone  int64 `json:"bytesDone"`
	} `json:"progress"`
	ReadyReplicas int `json:"readyReplicas"`
}
