// Package worker is the process in a mover pod. It moves the data of one volume,
// once, and reports.
//
// Its input is a task.Request in the environment, its result a task.Report in
// the termination message. In between it shows its progress in the status of the
// DataUpload or DataDownload, of which it owns that field and no other.
//
//	backup                                 restore
//	saved before by this operation? done   open the image
//	open repository and device             open the device
//	choose what to inherit and to read     write every byte, sync, close
//	read, write, commit
//	save the repo snapshot
//
// A backup that is repeated, because its pod was lost after the repo snapshot was
// saved and before that was reported, finds it by its operation ID. A restore
// that is repeated reads the device first, and fetches what is not there.
//
// # How it ends
//
// An error, a panic of the goroutine that runs the operation included, is in the
// report. A worker that is told to stop (SIGTERM: its node is drained, or the
// operation is canceled) stops where it is and leaves no report: it has not
// failed, and the manager, which knows whether it wanted that, decides whether
// there is another attempt. That goes on from the last checkpoint, as it does after
// a kill. A backup that fails drops what it has.
package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"

	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/heap"
)

// closeTimeout bounds the closing of a repository whose operation is over.
const closeTimeout = 5 * time.Second

// Environment is what an operation works with.
type Environment interface {
	// OpenReader and OpenWriter open the device of the task.
	OpenReader() (device.Reader, error)
	OpenWriter() (device.Writer, error)
	// OpenStore opens the backup repository of the task.
	OpenStore(ctx context.Context) (repository.Store, error)
	// Source is the changed-block tracking of the snapshot on the device. Its
	// error wraps cbt.ErrUnavailable where there is none.
	Source() (cbt.Source, error)
}

// Worker runs one operation.
type Worker struct {
	Environment Environment
	Sink        ProgressSink
	Log         logr.Logger
	// Now is the clock.
	Now func() time.Time
	// Collect and DataPath tune the parts. DataPath.Progress is the worker's own.
	Collect  cbt.Options
	DataPath datapath.Options
}

// Run does what the request asks for. The report says how far that went also
// when there is an error.
func (w *Worker) Run(ctx context.Context, r task.Request) (task.Report, error) {
	start := w.Now()
	progress := &datapath.Progress{}
	publishing, stop := context.WithCancel(ctx)
	published := make(chan struct{})
	go func() {
		defer close(published)
		publish(publishing, w.Log, w.Sink, progressInterval, func() Progress {
			return Progress{Done: progress.Done(), Total: progress.Total()}
		})
	}()

	options := w.DataPath
	options.Progress = progress
	var report task.Report
	var err error
	if r.Backup != nil {
		report, err = w.backup(ctx, r, options)
	} else {
		report, err = w.restore(ctx, r, options)
	}
	stop()
	<-published
	report.Duration = w.Now().Sub(start)
	return report, err
}

// closeStore closes a repository. By then everything that matters is flushed.
func (w *Worker) closeStore(ctx context.Context, store repository.Store) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	w.warn("Cannot close repository", store.Close(ctx))
}

// warn logs what does not matter to the result.
func (w *Worker) warn(message string, err error) {
	if err != nil {
		w.Log.Info(message, "severity", "warning", "error", err.Error())
	}
}

// restore makes the device equal to an image.
func (w *Worker) restore(ctx context.Context, r task.Request, options datapath.Options) (report task.Report, err error) {
	store, err := w.Environment.OpenStore(ctx)
	if err != nil {
		return report, err
	}
	defer w.closeStore(ctx, store)
	heap.Limit()
	image, err := store.OpenReader(ctx, r.Restore.SnapshotID)
	if err != nil {
		return report, err
	}
	defer func() { w.warn("Cannot close image", image.Close()) }()
	report.SnapshotID = r.Restore.SnapshotID
	report.VolumeSize = image.Meta().Size
	report.Filesystem = filesystemOf(image)

	dev, err := w.Environment.OpenWriter()
	if err != nil {
		return report, err
	}
	dev = device.LimitWriter(ctx, dev, r.RateLimit)
	options.Resume = r.Restore.Resume
	w.Log.Info("Restore begins", "snapshotID", r.Restore.SnapshotID, "size", report.VolumeSize, "deviceSize", dev.Size(), "resume", options.Resume)
	stats, err := datapath.Restore(ctx, image, dev, options)
	report.BytesWritten, report.BytesFound, report.ZeroBytes = stats.BytesWritten, stats.BytesFound, stats.ZeroBytes
	// A device that was written is complete only when it is closed.
	if closeErr := dev.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("close device: %w", closeErr)
	}
	if err != nil {
		return report, err
	}
	w.Log.Info("Restore is complete", "bytesWritten", report.BytesWritten, "bytesFound", report.BytesFound, "zeroBytes", report.ZeroBytes)
	return report, nil
}
