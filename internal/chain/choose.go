// Package chain decides what a backup inherits and what it reads.
//
// Choose is the pure part: from what was asked for and the repo snapshots that
// there are, it derives the parents worth trying, in order, or none, with a
// Reason. Begin then walks down a ladder until a rung holds:
//
//	for each parent of Choose, newest first:
//	    ask the storage what changed since it          else DeltaFailed
//	    compare some of the rest with it               else AuditFailed: the whole device
//	    open it, and check that what it has is there   else ParentGone, ParentDamaged
//	    -> incremental: read what changed
//	ask the storage what is allocated                  else AllocatedFailed
//	    -> full: read what is allocated
//	-> full: read the whole device
//
// Every rung that broke is a Step. The reason of the result is that of the
// first one, and all of them are in its detail: a fallback is never silent.
// AuditFailed comes before any other: it is the one that calls for somebody.
//
// An audit that fails ends the trust in all that the storage says, and in the
// parents that were made by it: which of both is wrong cannot be known. So no
// other parent is tried and nobody is asked what is allocated. The image is full
// and made of the device alone; that it shares contents with older images is found
// by their hashes.
//
// The package is pure: storage and repository are behind interfaces.
package chain

import (
	"fmt"
	"time"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

// Request is what is asked for, and the volume as it is now.
type Request struct {
	// Parent is identity.ParentAuto, identity.ParentNone or the ID of a repo snapshot.
	Parent string
	// FullEvery is the age of the newest full image at which another one is due; 0
	// is never. It counts for identity.ParentAuto only.
	FullEvery time.Duration
	Now       time.Time
	// Target is the image to be made: driver, volume handle, snapshot time, chunk
	// size and mover.
	Target repository.Meta
}

// Choice is the outcome of Choose.
type Choice struct {
	// Parents are to be tried in this order; there are none for a full image.
	Parents []repository.Snapshot
	// Steps say why others are not, unless they are older than one that is, and why
	// there is none. How old a damaged one is nobody knows.
	Steps []Step
}

// Choose picks parents from the repo snapshots of the volume, newest first.
func Choose(r Request, history []repository.Snapshot) Choice {
	if r.Parent == identity.ParentNone {
		return Choice{Steps: []Step{{ForcedFull, "a full image was asked for"}}}
	}
	if r.Parent == identity.ParentAuto {
		if step, due := fullDue(r, history); due {
			return Choice{Steps: []Step{step}}
		}
		if len(history) == 0 {
			return Choice{Steps: []Step{{NoParent, "the volume has no repo snapshot yet"}}}
		}
	}
	var choice Choice
	found := r.Parent == identity.ParentAuto
	for _, s := range history {
		if r.Parent != identity.ParentAuto && string(s.ID) != r.Parent {
			continue
		}
		found = true
		if step, ok := usable(r.Target, s); !ok {
			if len(choice.Parents) > 0 && s.Damage == nil {
				continue // nobody misses it: it is older
			}
			step.Detail = fmt.Sprintf("repo snapshot %s %s", s.ID, step.Detail)
			choice.Steps = append(choice.Steps, step)
			continue
		}
		choice.Parents = append(choice.Parents, s)
	}
	if !found {
		choice.Steps = append(choice.Steps, Step{ParentGone, fmt.Sprintf("repo snapshot %s is not one of the volume's", r.Parent)})
	}
	return choice
}

// chunkSize is that of the new image beside one of the volume that is cut into
// chunks of the given size. It keeps that size, unless the volume has grown out of
// all proportion to it: the index of small chunks would be as large as the volume
// asks for.
func chunkSize(target repository.Meta, parent int64) int64 {
	const outgrown = 4
	if target.ChunkSize != 0 {
		return target.ChunkSize
	}
	if standard := repository.DefaultChunkSize(target.Size); standard >= outgrown*parent {
		return standard
	}
	return parent
}

// check says what is wrong with a candidate, or returns "".
type check struct {
	reason Reason
	wrong  func(target repository.Meta, s repository.Snapshot) string
}

// checks are in the order in which they explain most.
var checks = []check{
	{ParentDamaged, func(_ repository.Meta, s repository.Snapshot) string {
		if s.Damage == nil {
			return ""
		}
		return fmt.Sprintf("cannot be read: %v", s.Damage)
	}},
	{MoverChanged, func(t repository.Meta, s repository.Snapshot) string {
		return differs("was written by mover", s.Meta.Mover, t.Mover)
	}},
	{VolumeReplaced, func(t repository.Meta, s repository.Snapshot) string {
		return differs("is of driver", s.Meta.Driver, t.Driver)
	}},
	{VolumeReplaced, func(t repository.Meta, s repository.Snapshot) string {
		return differs("is of volume", s.Meta.VolumeHandle, t.VolumeHandle)
	}},
	{NoChangeID, func(_ repository.Meta, s repository.Snapshot) string {
		if s.Meta.ChangeID != "" {
			return ""
		}
		return "has no change ID"
	}},
	{ChunkSizeChanged, func(t repository.Meta, s repository.Snapshot) string {
		want := chunkSize(t, s.Meta.ChunkSize)
		if want == s.Meta.ChunkSize {
			return ""
		}
		return fmt.Sprintf("has chunks of %d bytes, want %d", s.Meta.ChunkSize, want)
	}},
	{ParentNotOlder, func(t repository.Meta, s repository.Snapshot) string {
		if s.Meta.SnapshotTime.Before(t.SnapshotTime) {
			return ""
		}
		return fmt.Sprintf("shows the volume at %s, the backup shows it at %s",
			s.Meta.SnapshotTime.UTC().Format(time.RFC3339Nano), t.SnapshotTime.UTC().Format(time.RFC3339Nano))
	}},
}

func differs(what, got, want string) string {
	if got == want {
		return ""
	}
	return fmt.Sprintf("%s %q, want %q", what, got, want)
}

func usable(target repository.Meta, s repository.Snapshot) (Step, bool) {
	for _, c := range checks {
		if wrong := c.wrong(target, s); wrong != "" {
			return Step{c.reason, wrong}, false
		}
	}
	return Step{}, true
}

// fullDue looks for a full image of this very volume that is young enough.
func fullDue(r Request, history []repository.Snapshot) (Step, bool) {
	if r.FullEvery <= 0 || len(history) == 0 {
		return Step{}, false
	}
	for _, s := range history {
		if s.Damage != nil || s.Meta.Kind != repository.Full || s.Meta.VolumeHandle != r.Target.VolumeHandle {
			continue
		}
		age := r.Now.Sub(s.Meta.SnapshotTime)
		if age < r.FullEvery {
			return Step{}, false
		}
		return Step{FullDue, fmt.Sprintf("the newest full image is %s old, one is due every %s", age.Round(time.Second), r.FullEvery)}, true
	}
	return Step{FullDue, fmt.Sprintf("there is no full image, one is due every %s", r.FullEvery)}, true
}
