// Package chain decides what an image inherits from earlier images, and what it reads from
// the device.
//
// Choose is the pure part. From the request and the repo snapshots of the volume it derives
// the parents that are worth a try, in order. Begin then walks down a ladder until a rung
// holds:
//
//	rung                                          the image is                     if it breaks
//	for each parent, the newest first:            Incremental: reads what changed
//	  ask the storage what changed since then                                      DeltaFailed
//	  compare a part of the rest with the parent                                   AuditFailed
//	  open the parent, check that it is whole                                      ParentGone, ParentDamaged
//	ask the storage what is allocated             Full: reads what is allocated    AllocatedFailed
//	  read a part of the rest, which must be zero                                  AuditFailed
//	read the whole device                         Full: reads everything           the backup fails
//
// An error of the object store is not one of the parent: the run ends, and is repeated later.
//
// Without changed-block tracking (CBTUnavailable) only the last rung is left. Every rung that
// broke is a Step, and so is every reason of Choose. The reason of the result is that of the
// first Step, and the detail names all of them, so no fallback is silent. Only AuditFailed
// comes before any other, because it needs a person.
//
// # Scenario: the base snapshot is gone
//
// Repo snapshot 2 is the newest. The storage no longer has the storage snapshot that it was
// made from, but still has that of repo snapshot 1.
//
//	repo snapshots      1 ◀── 2
//	Choose              parents 2, 1
//	changed since 2?    "no such snapshot"           Step DeltaFailed
//	changed since 1?    blocks
//	open 1              whole
//	                    1 ◀── 2
//	                    ▲
//	                    └──── 3   Incremental, parent 1, reason DeltaFailed
//
// Image 3 reads what changed since 1, which includes what changed since 2. Chunks that image
// 2 has as well are found by their hashes, and not uploaded again.
//
// # Scenario: the PVC was deleted and created again
//
// The new volume has the same name and another volume handle.
//
//	repo snapshots      1 ◀── 2   of volume "a"
//	target              volume "b"
//	Choose              no parents                   Steps VolumeReplaced, VolumeReplaced
//	allocated?          blocks
//	                    1 ◀── 2       3   Full, reason VolumeReplaced
//
// Only the storage could say what differs between two volumes, and it does not.
//
// # Scenario: the storage reports wrong blocks
//
// The audit compares some chunks that the storage calls unchanged with the parent, and finds
// one that differs.
//
//	repo snapshots      1 ◀── 2
//	Choose              parents 2, 1
//	changed since 2?    blocks
//	audit               chunk at offset 4 MiB differs   Step AuditFailed
//	                    1 ◀── 2       3   Full, reason AuditFailed: reads everything
//
// It cannot be known which of the two is wrong: the list of blocks, or the image that was made
// by an earlier list. So no other parent is tried, and the storage is not asked what is
// allocated. The image shares contents with the earlier ones all the same, by their hashes.
//
// The package is pure: storage and repository are behind interfaces.
package chain

import (
	"fmt"
	"time"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

// Request is what the user asks for, and the volume as it is now.
type Request struct {
	// Parent is identity.ParentAuto, identity.ParentNone or the ID of a repo snapshot.
	Parent string
	// Full says why the caller wants a full image. If it is not empty, nothing else is asked.
	Full []Step
	// FullEvery is the age of the newest full image at which another one is due, or 0 for
	// never. Only identity.ParentAuto looks at it.
	FullEvery time.Duration
	Now       time.Time
	// Target is the image to be made: driver, volume handle, snapshot time, chunk
	// size and mover.
	Target repository.Meta
}

// Choice is the outcome of Choose.
type Choice struct {
	// Parents are tried in this order. A full image has none.
	Parents []repository.Snapshot
	// Steps say why other repo snapshots are no parents, or why there is no parent at all.
	// They leave out what is older than a parent. A damaged repo snapshot has no known age,
	// so it is never left out.
	Steps []Step
}

// Choose picks parents from the repo snapshots of the volume, newest first.
func Choose(r Request, history []repository.Snapshot) Choice {
	if len(r.Full) > 0 {
		return Choice{Steps: r.Full}
	}
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
	told := map[Step]bool{}
	found := r.Parent == identity.ParentAuto
	for _, s := range history {
		if r.Parent != identity.ParentAuto && string(s.ID) != r.Parent {
			continue
		}
		found = true
		if step, ok := usable(r.Target, s); !ok {
			if len(choice.Parents) > 0 && s.Damage == nil {
				continue // a newer parent is tried first
			}
			if told[step] {
				continue // the newest one stands for all of which the same is wrong
			}
			told[step] = true
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

// chunkSize is the chunk size of the new image if the parent has chunks of the given size.
// It stays the same, unless the volume has become far too large for it: the index of many
// small chunks is large.
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
