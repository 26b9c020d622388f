package content

// Annotations, labels and finalizers of the snapshot controller and of its sidecar.
const (
	AnnotationBeingDeleted    = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	AnnotationBeingCreated    = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
	AnnotationAllowModeChange = "snapshot.storage.kubernetes.io/allow-volume-mode-change"
	AnnotationDefaultClass    = "snapshot.storage.kubernetes.io/is-default-class"
	// The secret that the driver needs to delete a snapshot.
	AnnotationSecretName      = "snapshot.storage.kubernetes.io/deletion-secret-name"
	AnnotationSecretNamespace = "snapshot.storage.kubernetes.io/deletion-secret-namespace"
	// AnnotationGroupHandle is on the contents of the members of a group.
	AnnotationGroupHandle = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle"
	// LabelManagedBy names the node whose sidecar handles a content.
	LabelManagedBy = "snapshot.storage.kubernetes.io/managed-by"
	// FinalizerInGroup keeps a VolumeSnapshot until its group is gone.
	FinalizerInGroup = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"

	finalizerProtection = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
)
