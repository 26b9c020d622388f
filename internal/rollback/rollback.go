// Package rollback finds out what of a live volume may differ from an image, without reading
// all of it. A restore in place then looks at nothing else.
//
// The storage can compare two snapshots of a volume. So there must be a base: a snapshot that
// the storage still has, and of which the repository has an image. And there must be a
// snapshot of the volume as it is now. Then
//
//	volume now ─ delta of the storage ─ base ─ Store.Compare ─ wanted image
//
// and where neither of both differs, the volume is equal to the wanted image. The base may be
// the wanted image itself: then the second difference is empty.
//
// What lies beyond the end of the base, of the image or of the volume belongs to the
// difference. A sample of the rest is audited, as backups do: it is read and compared with the
// wanted image. If one chunk differs, the storage has not told the truth, and the whole volume is
// compared.
//
// # Attempts
//
// The snapshot of the volume must be younger than the last write of anybody else. So each attempt
// takes its own, when it has the device to itself. What an earlier attempt has written is a change
// since the base like any other: the delta has it.
//
// # Fallbacks
//
// Whatever goes wrong leads to comparing the whole volume, with a reason. Only the device, an
// object store that is away and the context end the restore.
//
// The package is pure.
package rollback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/blockmover/blockmover/internal/audit"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
)

// Store is what Find needs of a repository.
type Store interface {
	OpenReader(ctx context.Context, id repository.SnapshotID) (repository.VolumeReader, error)
	Compare(ctx context.Context, a, b repository.SnapshotID, emit func(block.Extent) error) error
}

// Volume is the live volume, and the image that it shall be equal to.
type Volume struct {
	// Driver and Handle are CSI's names of the volume.
	Driver, Handle string
	// Size of the device in bytes.
	Size   int64
	Wanted repository.SnapshotID
	// Image is the reader of Wanted. The caller closes it.
	Image repository.VolumeReader
}

// Input of Find.
type Input struct {
	Volume
	// Bases are those that Bases returns.
	Bases []repository.Snapshot
	Store Store
	// Source tells what has changed between a base and now.
	Source  cbt.Source
	Collect cbt.Options
	// Audit is the share of the unchanged chunks that are read from Device and compared. Seed
	// chooses them.
	Audit  policy.Percent
	Seed   string
	Device io.ReaderAt
}

// Plan is what a restore looks at, and why.
type Plan struct {
	// Only has the pages that may differ, or is nil if all may.
	Only *block.Bitmap
	// Base is the repo snapshot of the base, or "".
	Base repository.SnapshotID
	// Steps are what went wrong on the way.
	Steps []chain.Step
	// Source counts what the storage said, and Audited what was compared.
	Source  cbt.Stats
	Audited audit.Result
}

// Bases returns the repo snapshots whose instants the storage may know, newest first, or
// why there are none. The history is that of the volume, newest first.
func Bases(v Volume, history []repository.Snapshot) ([]repository.Snapshot, []chain.Step) {
	var bases []repository.Snapshot
	steps := make([]chain.Step, 0, len(history))
	for _, s := range history {
		reason, detail := chain.Reason(""), ""
		switch {
		case s.Damage != nil:
			reason, detail = chain.ParentDamaged, s.Damage.Error()
		case s.Meta.Mover != identity.DataMover:
			reason, detail = chain.MoverChanged, fmt.Sprintf("it is of data mover %q", s.Meta.Mover)
		case s.Meta.Driver != v.Driver || s.Meta.VolumeHandle != v.Handle:
			reason, detail = chain.VolumeReplaced, fmt.Sprintf("it is of volume %q", s.Meta.VolumeHandle)
		case s.Meta.ChangeID == "":
			reason, detail = chain.NoChangeID, "it names no instant"
		default:
			bases = append(bases, s)
			continue
		}
		steps = append(steps, chain.Step{Reason: reason, Detail: fmt.Sprintf("repo snapshot %s: %s", s.ID, detail)})
	}
	switch {
	case len(bases) > 0:
		return bases, nil
	case len(steps) == 0:
		steps = []chain.Step{{Reason: chain.NoParent, Detail: "the repository has no image of the volume to begin with"}}
	}
	return nil, steps
}

// Find asks the storage. A Plan without Only is no error. Errors come from the device, from an
// object store that is away, and from the context.
func Find(ctx context.Context, in Input) (Plan, error) {
	f := finder{Input: in}
	for _, base := range in.Bases {
		only, err := f.since(ctx, base)
		switch {
		case err != nil:
			return f.plan, fmt.Errorf("find what may differ from repo snapshot %s: %w", in.Wanted, err)
		case only != nil:
			f.plan.Only, f.plan.Base = only, base.ID
			return f.plan, nil
		case f.plan.Audited.Differs:
			return f.plan, nil
		}
	}
	return f.plan, nil
}

type finder struct {
	Input
	plan Plan
}

func (f *finder) broke(reason chain.Reason, format string, args ...any) {
	f.plan.Steps = append(f.plan.Steps, chain.Step{Reason: reason, Detail: fmt.Sprintf(format, args...)})
}

// since tries a base. It returns nil if that cannot be used.
func (f *finder) since(ctx context.Context, base repository.Snapshot) (*block.Bitmap, error) {
	only, stats, err := cbt.CollectChanged(ctx, f.Source, cbt.ChangeID(base.Meta.ChangeID), f.Size, f.Collect)
	f.plan.Source.Messages += stats.Messages
	f.plan.Source.Blocks += stats.Blocks
	f.plan.Source.Resumptions += stats.Resumptions
	if err != nil {
		reason := chain.DeltaFailed
		if errors.Is(err, cbt.ErrUnavailable) {
			reason = chain.CBTUnavailable
		}
		f.broke(reason, "since repo snapshot %s: %v", base.ID, err)
		return nil, ctx.Err()
	}
	if err := f.addImages(ctx, only, base); err != nil {
		reason := chain.Blame(err)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case reason == "":
			return nil, err
		}
		f.broke(reason, "repo snapshot %s: %v", base.ID, err)
		return nil, nil
	}
	if err := f.audit(ctx, only, base); err != nil || f.plan.Audited.Differs {
		return nil, err
	}
	return only, nil
}

// addImages adds where the base and the wanted image differ, and what lies beyond the end of one
// of the three.
func (f *finder) addImages(ctx context.Context, only *block.Bitmap, base repository.Snapshot) error {
	meta := f.Image.Meta()
	if base.ID != f.Wanted {
		err := f.Store.Compare(ctx, base.ID, f.Wanted, func(e block.Extent) error {
			if e.Offset >= f.Size {
				return nil // the volume was larger once
			}
			e.Length = min(e.Length, f.Size-e.Offset)
			return only.Set(e)
		})
		if err != nil {
			return err
		}
	}
	end := min(base.Meta.Size, meta.Size, f.Size)
	if end == f.Size && base.Meta.Size == meta.Size {
		return nil
	}
	// The chunk in which the smallest ends has zeros for what it does not have.
	start := end - end%max(base.Meta.ChunkSize, meta.ChunkSize)
	if start >= f.Size {
		return nil
	}
	return only.Set(block.Extent{Offset: start, Length: f.Size - start})
}

// audit compares some of the chunks that nobody calls different.
func (f *finder) audit(ctx context.Context, only *block.Bitmap, base repository.Snapshot) error {
	if f.Audit == 0 {
		return nil
	}
	g, err := block.NewGeometry(f.Size, f.Image.Meta().ChunkSize)
	if err != nil {
		return err
	}
	found, err := audit.Run(ctx, audit.Input{Percent: f.Audit, Seed: f.Seed, Device: f.Device, Geometry: g, Changed: only, Image: f.Image})
	f.plan.Audited.Chunks += found.Chunks
	f.plan.Audited.Bytes += found.Bytes
	if err != nil || !found.Differs {
		return err
	}
	f.plan.Audited.Differs, f.plan.Audited.Offset = true, found.Offset
	f.broke(chain.AuditFailed, "the storage calls the chunk at offset %d unchanged since repo snapshot %s, and the volume differs there from the image: "+
		"incremental images of this volume may be wrong, too", found.Offset, base.ID)
	return nil
}

// Reasons returns the reasons of steps, each once. The first is the one that counts most.
func Reasons(steps []chain.Step) []string {
	var reasons []string
	for _, s := range steps {
		if !slices.Contains(reasons, string(s.Reason)) {
			reasons = append(reasons, string(s.Reason))
		}
	}
	if i := slices.Index(reasons, string(chain.AuditFailed)); i > 0 {
		reasons = slices.Insert(slices.Delete(reasons, i, i+1), 0, string(chain.AuditFailed))
	}
	return reasons
}

// Detail renders steps for people.
func Detail(steps []chain.Step) string {
	texts := make([]string, len(steps))
	for i, s := range steps {
		texts[i] = s.String()
	}
	return strings.Join(texts, "; ")
}
