package chain

import "fmt"

// Reason says in one word why an image is not the small increment that was asked for. It is
// part of the result of the DataUpload, an event and a metric. A Reason is never renamed.
type Reason string

// The reasons. The empty one is a plain increment on the newest repo snapshot.
const (
	// ForcedFull: the user asked for a full image.
	ForcedFull Reason = "ForcedFull"
	// NoParent: the volume has no repo snapshot yet.
	NoParent Reason = "NoParent"
	// FullDue: the newest full image is older than fullEvery.
	FullDue Reason = "FullDue"
	// ParentGone: a repo snapshot, or something that it consists of, is not in the
	// repository any more.
	ParentGone Reason = "ParentGone"
	// ParentDamaged: a repo snapshot exists and cannot be read.
	ParentDamaged Reason = "ParentDamaged"
	// ParentNotOlder: a repo snapshot shows the volume at the same instant, or later.
	ParentNotOlder Reason = "ParentNotOlder"
	// MoverChanged: a repo snapshot was written by another data mover.
	MoverChanged Reason = "MoverChanged"
	// VolumeReplaced: a repo snapshot is of another volume of the same name.
	VolumeReplaced Reason = "VolumeReplaced"
	// NoChangeID: a repo snapshot does not have the storage's name for its instant.
	NoChangeID Reason = "NoChangeID"
	// ChunkSizeChanged: a repo snapshot has another chunk size than the volume shall have.
	ChunkSizeChanged Reason = "ChunkSizeChanged"
	// CBTUnavailable: the storage offers no changed-block tracking.
	CBTUnavailable Reason = "CBTUnavailable"
	// DeltaFailed: the storage did not tell what changed since a repo snapshot.
	DeltaFailed Reason = "DeltaFailed"
	// AllocatedFailed: the storage did not tell what is allocated.
	AllocatedFailed Reason = "AllocatedFailed"
	// CheckpointUnknown: KubeVirt knows what changed since another instant than that of the newest
	// image.
	CheckpointUnknown Reason = "CheckpointUnknown"
	// CheckpointLost: KubeVirt made a full backup although it was asked what changed.
	CheckpointLost Reason = "CheckpointLost"
	// DisksChanged: a VM has got or lost a disk.
	DisksChanged Reason = "DisksChanged"
	// DiskRestored: a restore in place has written the disk of a VM since its newest image, and QEMU, which did not run, has
	// not seen it.
	DiskRestored Reason = "DiskRestored"
	// IncrementalStuck: KubeVirt did not begin to write what changed, or failed to.
	IncrementalStuck Reason = "IncrementalStuck"
	// AuditFailed: a block has changed that the storage called unchanged.
	AuditFailed Reason = "AuditFailed"
)

// Reasons are all of them.
var Reasons = []Reason{
	ForcedFull, NoParent, FullDue, ParentGone, ParentDamaged, ParentNotOlder, MoverChanged, VolumeReplaced, NoChangeID, ChunkSizeChanged,
	CBTUnavailable, DeltaFailed, AllocatedFailed, CheckpointUnknown, CheckpointLost, DisksChanged, DiskRestored, IncrementalStuck, AuditFailed,
}

// Step is one thing that went wrong on the way.
type Step struct {
	Reason Reason `json:"reason"`
	// Detail is for people: what exactly, in the words of the storage.
	Detail string `json:"detail"`
}

// String formats the step as "Reason: detail".
func (s Step) String() string { return fmt.Sprintf("%s: %s", s.Reason, s.Detail) }
