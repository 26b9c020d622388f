package worker

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/restore"
	"github.com/blockmover/blockmover/internal/rollback"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/heap"
)

// restore makes the device equal to an image.
func (w *Worker) restore(ctx context.Context, r task.Request, options datapath.Options) (task.Report, error) {
	report := task.Report{}
	lap := w.laps()
	store, err := w.Environment.OpenStore(ctx)
	if err != nil {
		return task.Report{Untouched: true}, err
	}
	report.Steps.Open = lap()
	defer w.closeStore(ctx, store)
	heap.Limit()
	options.Resume = r.Restore.Resume
	options.Compare = r.Restore.InPlace != nil
	var plan func(ctx context.Context, image repository.VolumeReader, dev device.Writer) (*block.Bitmap, error)
	if live := r.Restore.InPlace; live != nil {
		plan = func(ctx context.Context, image repository.VolumeReader, dev device.Writer) (*block.Bitmap, error) {
			only, err := w.rollback(ctx, store, r, image, dev, &report)
			report.Steps.Plan += lap()
			return only, err
		}
	}
	result, err := restore.Run(ctx, restore.Job{
		Store:    store,
		Snapshot: r.Restore.SnapshotID,
		Open: func(size int64) (device.Writer, error) {
			dev, err := w.Environment.OpenWriter(size)
			if err != nil {
				return nil, err
			}
			return device.LimitWriter(ctx, livingWriter{dev, &w.life}, r.RateLimit), nil
		},
		Begun: func(image repository.VolumeReader, dev device.Writer) error {
			report.Steps.Plan = lap()
			report.SnapshotID = r.Restore.SnapshotID
			if !r.Restore.DiskImage {
				report.Filesystem = filesystemOf(image)
			}
			w.Log.Info("Restore begins", "snapshotID", r.Restore.SnapshotID, "size", image.Meta().Size, "deviceSize", dev.Size(),
				"resume", options.Resume, "inPlace", r.Restore.InPlace != nil)
			return fits(r.Restore.InPlace, image.Meta())
		},
		Plan:    plan,
		Options: options,
	})
	report.Steps.Move = lap()
	report.VolumeSize = result.Size
	report.BytesWritten, report.BytesFound, report.ZeroBytes = result.BytesWritten, result.BytesFound, result.ZeroBytes
	report.Untouched = errors.Is(err, restore.ErrUntouched) || result.BytesWritten+result.ZeroBytes == 0
	if err != nil {
		return report, err
	}
	w.Log.Info("Restore is complete", "bytesWritten", report.BytesWritten, "bytesFound", report.BytesFound, "zeroBytes", report.ZeroBytes)
	return report, nil
}

// fits refuses an image of another volume than the live one, unless that was asked for. The
// image says itself what it is of.
func fits(live *task.InPlace, image repository.Meta) error {
	if live == nil {
		return nil
	}
	handle := image.VolumeHandle
	if handle == "" && live.Mode != inplace.AnyVolume {
		return fault.Mark(fmt.Errorf("refuse to write in place: the image does not say which volume it is of: set the annotation %s of the Restore to %s to write it to PVC %s all the same",
			identity.AnnotationInPlace, inplace.AnyVolume, live.Claim))
	}
	if handle != "" && image.Driver != "" && image.Driver != live.Driver {
		handle = image.Driver + "/" + handle // one driver's handle says nothing to another
	}
	if err := inplace.CheckHandle(live.Mode, inplace.Volume{Claim: live.Claim, UID: live.ClaimUID, Handle: live.VolumeHandle}, handle); err != nil {
		return fault.Mark(fmt.Errorf("refuse to write in place: %w", err))
	}
	return nil
}

// rollback asks the storage what of a live volume may differ from the image. It returns nil if all
// may. The report says why.
func (w *Worker) rollback(ctx context.Context, store repository.Store, r task.Request, image repository.VolumeReader, dev device.Writer, report *task.Report) (*block.Bitmap, error) {
	live := r.Restore.InPlace
	share, err := policy.ParsePercent(live.Audit)
	if err != nil {
		return nil, fault.Mark(fmt.Errorf("read audit %q: %w", live.Audit, err))
	}
	volume := rollback.Volume{Driver: live.Driver, Handle: live.VolumeHandle, Size: dev.Size(), Wanted: r.Restore.SnapshotID, Image: image}
	history, err := store.List(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	bases, steps := rollback.Bases(volume, history)
	var plan rollback.Plan
	if len(bases) > 0 {
		source, err := w.liveSource(ctx, live)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			steps = append(steps, chain.Step{Reason: chain.CBTUnavailable, Detail: err.Error()})
		default:
			in := rollback.Input{Volume: volume, Bases: bases, Store: store, Source: source, Collect: w.Collect, Audit: share, Seed: r.OperationID, Device: dev}
			in.Collect.Notify = w.waitsFor
			if plan, err = rollback.Find(ctx, in); err != nil {
				return nil, err
			}
		}
	}
	steps = append(steps, plan.Steps...)
	report.Parent, report.Reasons, report.Detail = plan.Base, rollback.Reasons(steps), rollback.Detail(steps)
	if len(report.Reasons) > 0 {
		report.Reason = report.Reasons[0]
	}
	report.Resumptions, report.ChunksAudited, report.BytesAudited = plan.Source.Resumptions, plan.Audited.Chunks, plan.Audited.Bytes
	w.Log.Info("It is known what may differ", "base", plan.Base, "whole", plan.Only == nil, "blocks", plan.Source.Blocks,
		"bytesAudited", plan.Audited.Bytes, "reasons", report.Reasons, "detail", report.Detail)
	return plan.Only, nil
}

// liveSource waits for the VolumeSnapshot of a live volume. The manager takes it when it sees that
// the worker has the device to itself: what the snapshot does not have, nobody has written.
func (w *Worker) liveSource(ctx context.Context, live *task.InPlace) (cbt.Source, error) {
	if live.Metadata == nil {
		return nil, errors.New(live.MetadataUnavailable)
	}
	w.held.Store(true)
	w.now <- struct{}{}
	defer w.held.Store(false)
	source, err := w.Environment.LiveSource(ctx)
	if err != nil {
		return nil, err
	}
	return livingSource{source, &w.life}, nil
}
