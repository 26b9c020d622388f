package worker

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/restore"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/heap"
)

// restore makes the device equal to an image.
func (w *Worker) restore(ctx context.Context, r task.Request, options datapath.Options) (task.Report, error) {
	store, err := w.Environment.OpenStore(ctx)
	if err != nil {
		return task.Report{Untouched: true}, err
	}
	defer w.closeStore(ctx, store)
	heap.Limit()
	options.Resume = r.Restore.Resume
	options.Compare = r.Restore.InPlace != nil
	report := task.Report{}
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
			report.SnapshotID = r.Restore.SnapshotID
			if !r.Restore.DiskImage {
				report.Filesystem = filesystemOf(image)
			}
			w.Log.Info("Restore begins", "snapshotID", r.Restore.SnapshotID, "size", image.Meta().Size, "deviceSize", dev.Size(),
				"resume", options.Resume, "inPlace", r.Restore.InPlace != nil)
			return fits(r.Restore.InPlace, image.Meta())
		},
		Options: options,
	})
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
	if handle != "" && image.Driver != "" && image.Driver != live.Driver {
		handle = image.Driver + "/" + handle // one driver's handle says nothing to another
	}
	if err := inplace.CheckHandle(live.Mode, live.Claim, live.VolumeHandle, handle); err != nil {
		return fault.Mark(fmt.Errorf("refuse to write in place: %w", err))
	}
	return nil
}
