package chain

import "fmt"

// Reason says in one word why an image is not the small increment that was
// asked for. It is part of the DataUpload's result, an event and a metric: a
// Reason is never renamed.
type Reason string

// The reasons. The empty one is a plain increment on the newest repo snapshot.
const (
	// ForcedFull: a full image was asked for.
	ForcedFull Reason = "ForcedFull"
	// NoParent: the volume has no repo snapshot yet.
	NoParent Reason = "NoParent"
	// FullDue: the newest full image is older than fullEvery.
	FullDue Reason = "FullDue"
	// ParentGone: a repo snapshot, or something that it consists of, is not in the
	// repository any more.
	ParentGone Reason = "ParentGone"
	// ParentDamaged: a repo snapshot is there and cannot be read.
	ParentDamaged Reason = "ParentDamaged"
	// ParentNotOlder: a repo snapshot shows the volume at the same time or later.
	ParentNotOlder Reason = "ParentNotOlder"
	// MoverChanged: a repo snapshot was written by another data mover.
	MoverChanged Reason = "MoverChanged"
	// VolumeReplaced: a repo snapshot is of another volume that had the name.
	VolumeReplaced Reason = "VolumeReplaced"
	// NoChangeID: a repo snapshot does not say what the storage calls its instant.
	NoChangeID Reason = "NoChangeID"
	// ChunkSizeChanged: a repo snapshot is cut into chunks of another size than the
	// volume is to have, which may have outgrown them.
	ChunkSizeChanged Reason = "ChunkSizeChanged"
	// CBTUnavailable: the storage offers no changed-block tracking.
	CBTUnavailable Reason = "CBTUnavailable"
	// DeltaFailed: the storage did not tell what changed since a repo snapshot.
	DeltaFailed Reason = "DeltaFailed"
	// AllocatedFailed: the storage did not tell what is allocated.
	AllocatedFailed Reason = "AllocatedFailed"
	// AuditFailed: the storage called a block unchanged that has changed.
	AuditFailed Reason = "AuditFailed"
)

// Step is one thing that went otherwise than hoped for.
type Step struct {
	Reason Reason
	// Detail is for people: what exactly, and the storage's own words.
	Detail string
}

// String formats the step as "Reason: detail".
func (s Step) String() string { return fmt.Sprintf("%s: %s", s.Reason, s.Detail) }
