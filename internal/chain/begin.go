package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/blockmover/blockmover/internal/audit"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
)

// Store is what Begin needs of a repository.
type Store interface {
	OpenReader(ctx context.Context, id repository.SnapshotID) (repository.VolumeReader, error)
	NewWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (repository.VolumeWriter, error)
}

// Input of Begin.
type Input struct {
	Request
	Volume repository.VolumeKey
	// History has the repo snapshots of the volume as a Catalog lists them. It has no repo
	// snapshots of failed operations.
	History []repository.Snapshot
	// Capacity is what Kubernetes says of the volume, in bytes, or 0. A target that is smaller
	// is backed up only if the storage says that the volume is.
	Capacity int64
	// Operation is the ID that the repo snapshot will be saved with.
	Operation string
	Store     Store
	// Source tells what changed and what is allocated. If it is nil, Unavailable says why
	// there is none.
	Source      cbt.Source
	Unavailable string
	Collect     cbt.Options
	// Compression and CheckpointInterval are those of repository.WriterOptions.
	Compression        repository.Compression
	CheckpointInterval int64
	// Audit is the share of the unchanged chunks that are read from Device and compared with
	// the parent.
	Audit  policy.Percent
	Device io.ReaderAt
}

// Run is a backup that has begun. Writer takes the chunks that Read touches.
type Run struct {
	Decision
	Writer repository.VolumeWriter
	Read   *block.Bitmap
}

// Decision is what a Run does, and why.
type Decision struct {
	Kind   repository.Kind
	Parent repository.SnapshotID
	// Reason and Detail are empty for an increment on the newest repo snapshot. Reasons has
	// the reasons of all steps, each once; Reason is one of them.
	Reason  Reason
	Reasons []Reason
	Detail  string
	// Source counts what the storage said, including failed attempts.
	Source cbt.Stats
	// Audited counts what was compared, including failed attempts.
	Audited audit.Result
}

// Begin finds the best way to make the image in.Target, of Target.Size bytes, and starts it.
// The caller commits or closes the writer.
//
// Errors come from writing a full image, from the device, or from the context. Anything else
// that goes wrong leads one rung down.
func Begin(ctx context.Context, in Input) (Run, error) {
	run, err := begin(ctx, in)
	if err != nil {
		return Run{}, fmt.Errorf("begin backup of %s: %w", in.Volume, err)
	}
	return run, nil
}

func begin(ctx context.Context, in Input) (Run, error) {
	if in.Target.Size <= 0 {
		return Run{}, fmt.Errorf("device has %d bytes", in.Target.Size)
	}
	choice := Choose(in.Request, in.History)
	l := ladder{Input: in, steps: choice.Steps}
	if in.Source == nil {
		l.broke(CBTUnavailable, errors.New(in.Unavailable))
	} else {
		for _, parent := range choice.Parents {
			run, ok, err := l.incremental(ctx, parent)
			if ok || err != nil {
				return run, err
			}
			if l.audited.Differs {
				break
			}
		}
	}
	return l.full(ctx)
}

// ladder is one way down the ladder; see the package documentation.
type ladder struct {
	Input
	steps   []Step
	stats   cbt.Stats
	audited audit.Result
}

// patient returns the options of the next stream. The patience is for all streams of a run: a
// service that is away is waited for once.
func (l *ladder) patient() cbt.Options {
	o := l.Collect
	if l.stats.Waited == 0 {
		return o
	}
	if o.Backoff == 0 {
		o.Backoff = time.Second
	}
	o.Patience = o.Backoff
	return o
}

func (l *ladder) broke(reason Reason, err error) {
	l.steps = append(l.steps, Step{reason, err.Error()})
}

func (l *ladder) count(s cbt.Stats) {
	l.stats.Messages += s.Messages
	l.stats.Blocks += s.Blocks
	l.stats.Resumptions += s.Resumptions
	l.stats.Waited += s.Waited
}

// incremental tries a parent. After an error nothing else can be tried.
func (l *ladder) incremental(ctx context.Context, parent repository.Snapshot) (Run, bool, error) {
	read, stats, err := cbt.CollectChanged(ctx, l.Source, cbt.ChangeID(parent.Meta.ChangeID), l.Target.Size, l.patient())
	l.count(stats)
	if err == nil && stats.Messages == 0 && l.isShort() {
		err = errors.New("the stream ended without a message: nothing states how large the volume is")
	}
	if err == nil {
		err = addResized(read, parent.Meta, l.Target.Size)
	}
	if err != nil {
		l.broke(failure(err, DeltaFailed), fmt.Errorf("since repo snapshot %s: %w", parent.ID, err))
		return Run{}, false, ctx.Err()
	}
	if err := l.audit(ctx, parent, read); err != nil {
		return Run{}, false, l.unusable(ctx, parent, err)
	}
	if l.audited.Differs {
		return Run{}, false, nil
	}
	w, err := l.writer(ctx, parent.ID, "changed")
	if err != nil {
		return Run{}, false, l.unusable(ctx, parent, err)
	}
	return l.run(w, read, repository.Incremental, parent.ID), true, nil
}

// unusable records why a parent cannot be inherited from. It returns the error if the parent is not
// the cause: then no other image would fare better, and another attempt may.
func (l *ladder) unusable(ctx context.Context, parent repository.Snapshot, err error) error {
	reason := Blame(err)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, audit.ErrDevice), reason == "":
		return err
	}
	l.broke(reason, fmt.Errorf("repo snapshot %s: %w", parent.ID, err))
	return nil
}

// Blame returns what an error of the repository says about the image that was read: ParentGone,
// ParentDamaged, or "" if it says nothing about it.
func Blame(err error) Reason {
	switch {
	case errors.Is(err, repository.ErrUnavailable):
		return ""
	case errors.Is(err, repository.ErrNotFound):
		return ParentGone
	case errors.Is(err, repository.ErrCorrupt):
		return ParentDamaged
	}
	return ""
}

// audit compares some of the unchanged chunks with a parent. It runs before the writer
// starts: then a repeated run that finds the same difference also finds the checkpoints of
// the full image.
func (l *ladder) audit(ctx context.Context, parent repository.Snapshot, read *block.Bitmap) error {
	if l.Audit == 0 {
		return nil
	}
	g, err := block.NewGeometry(l.Target.Size, parent.Meta.ChunkSize)
	if err != nil {
		return err
	}
	image, err := l.Store.OpenReader(ctx, parent.ID)
	if err != nil {
		return err
	}
	defer image.Close() //nolint:errcheck // it was only read
	return l.compare(ctx, g, read, image, func(offset int64) error {
		return fmt.Errorf("the storage calls the chunk at offset %d unchanged since repo snapshot %s, and it differs from it: "+
			"incremental images of this volume from before may be wrong, too", offset, parent.ID)
	})
}

// compare audits what a list of blocks leaves out. If it differs from the image, lie says what
// the storage has claimed.
func (l *ladder) compare(ctx context.Context, g block.Geometry, listed *block.Bitmap, image audit.Image, lie func(offset int64) error) error {
	found, err := audit.Run(ctx, audit.Input{
		Percent: l.Audit, Seed: l.Operation, Device: l.Device, Geometry: g, Changed: listed, Image: image,
	})
	l.audited.Chunks += found.Chunks
	l.audited.Bytes += found.Bytes
	if err == nil && found.Differs {
		l.audited.Differs, l.audited.Offset = true, found.Offset
		l.broke(AuditFailed, lie(found.Offset))
	}
	return err
}

func (l *ladder) writer(ctx context.Context, parent repository.SnapshotID, basis string) (repository.VolumeWriter, error) {
	return l.Store.NewWriter(ctx, l.Target, repository.WriterOptions{
		Volume: l.Volume, Operation: l.Operation, Parent: parent, Basis: basis,
		Compression: l.Compression, CheckpointInterval: l.CheckpointInterval,
	})
}

// failure returns the reason for an error of a Source.
func failure(err error, otherwise Reason) Reason {
	if errors.Is(err, cbt.ErrUnavailable) {
		return CBTUnavailable
	}
	return otherwise
}

// addResized adds what the parent does not have, or has as padding: everything from the chunk
// on in which the smaller volume ends. What a volume has grown by is read in full. Storage
// systems differ in whether they report it as changed, and volumes grow seldom.
func addResized(read *block.Bitmap, parent repository.Meta, size int64) error {
	if parent.Size == size {
		return nil
	}
	end := min(parent.Size, size)
	start := end - end%parent.ChunkSize
	if start == size {
		return nil // the smaller volume ends with a whole chunk
	}
	return read.Set(block.Extent{Offset: start, Length: size - start})
}

func (l *ladder) full(ctx context.Context) (Run, error) {
	read, basis, err := l.allocated(ctx)
	if err != nil {
		return Run{}, err
	}
	w, err := l.writer(ctx, "", basis)
	if err != nil {
		return Run{}, err
	}
	return l.run(w, read, repository.Full, ""), nil
}

// allocated returns what a full image reads, and who says so. A repeated run must not
// continue from what another basis has chosen: an audit may have refuted it.
func (l *ladder) allocated(ctx context.Context) (read *block.Bitmap, basis string, err error) {
	if l.Source != nil && !l.audited.Differs {
		read, stats, err := cbt.CollectAllocated(ctx, l.Source, l.Target.Size, l.patient())
		l.count(stats)
		if err == nil {
			err = l.auditZeros(ctx, read)
		}
		switch {
		case ctx.Err() != nil:
			return nil, "", ctx.Err()
		case errors.Is(err, audit.ErrDevice):
			return nil, "", err
		case err != nil:
			l.broke(failure(err, AllocatedFailed), err)
		case !l.audited.Differs:
			return read, "allocated", nil
		}
	}
	if l.isShort() {
		// Without a word of the storage, the rest of the volume would be lost.
		return nil, "", fault.Mark(fmt.Errorf("the device that was made from the snapshot has %d bytes, the PersistentVolume %d: "+
			"the driver reports a size of its snapshot that is smaller than the volume", l.Target.Size, l.Capacity))
	}
	page := l.Collect.PageSize
	if page == 0 {
		page = block.PageSize(l.Target.Size)
	}
	if read, err = block.NewBitmap(l.Target.Size, page); err != nil {
		return nil, "", err
	}
	read.SetAll()
	return read, "device", nil
}

// isShort reports whether the target is smaller than Kubernetes says of the volume.
func (l *ladder) isShort() bool { return l.Target.Size < l.Capacity }

// zeros is the image of what is not allocated.
type zeros struct{}

func (zeros) Matches(_ context.Context, _ int64, data []byte) (bool, error) {
	return block.IsZero(data), nil
}

// auditZeros reads some of the chunks that the storage calls not allocated. They must be
// zero.
func (l *ladder) auditZeros(ctx context.Context, allocated *block.Bitmap) error {
	if l.Audit == 0 {
		return nil
	}
	chunkSize := l.Target.ChunkSize
	if chunkSize == 0 {
		chunkSize = repository.DefaultChunkSize(l.Target.Size)
	}
	g, err := block.NewGeometry(l.Target.Size, chunkSize)
	if err != nil {
		return err
	}
	return l.compare(ctx, g, allocated, zeros{}, func(offset int64) error {
		return fmt.Errorf("the storage calls the chunk at offset %d not allocated, and it holds data: "+
			"full images of this volume from before may be wrong, too", offset)
	})
}

func (l *ladder) run(w repository.VolumeWriter, read *block.Bitmap, kind repository.Kind, parent repository.SnapshotID) Run {
	d := Decision{Kind: kind, Parent: parent, Source: l.stats, Audited: l.audited}
	if len(l.steps) > 0 {
		d.Reason = l.steps[0].Reason
		if l.audited.Differs {
			d.Reason = AuditFailed
		}
		texts := make([]string, len(l.steps))
		for i, s := range l.steps {
			texts[i] = s.String()
			if !slices.Contains(d.Reasons, s.Reason) {
				d.Reasons = append(d.Reasons, s.Reason)
			}
		}
		d.Detail = strings.Join(texts, "; ")
	}
	return Run{Decision: d, Writer: w, Read: read}
}
