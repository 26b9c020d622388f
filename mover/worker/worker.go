// Package worker is the process in a mover pod. It moves the data of one volume, once, and
// reports.
//
// Its input is a task.Request in the environment. Its result is a task.Report in the
// termination message. In between it writes its progress into the status of the DataUpload or
// DataDownload. It owns only that field.
//
// Packages backup and restore have the steps, and say what holds when they are interrupted.
// The worker opens device, repository and block metadata for them, and renders their results.
//
// # How it ends
//
// Every error becomes a report, including a panic of the goroutine that runs the operation. A
// worker that is told to stop (SIGTERM: its node is drained, or the operation is canceled)
// stops and leaves no report. It has not failed. The manager knows whether it wanted that,
// and decides whether another attempt follows.
// whether it wanted that, and decides whether another attempt follows.
package worker

import (
	"context"
	"time"

	"github.com/go-logr/logr"

	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/restore"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/heap"
)

// closeTimeout bounds the closing of a repository after the operation.
const closeTimeout = 5 * time.Second

// Environment is what an operation works on.
type Environment interface {
	// OpenReader and OpenWriter open the device of the task.
	OpenReader() (device.Reader, error)
	OpenWriter() (device.Writer, error)
	// OpenStore opens the backup repository of the task.
	OpenStore(ctx context.Context) (repository.Store, error)
	// Source is the changed-block tracking of the snapshot on the device. If there is none,
	// the error wraps cbt.ErrUnavailable.
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

// Run does what the request asks for. With an error, the report says how far it came.
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

// closeStore closes a repository. Everything that matters is flushed by then.
func (w *Worker) closeStore(ctx context.Context, store repository.Store) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	w.warn("Cannot close repository", store.Close(ctx))
}

// warn logs an error that does not change the result.
func (w *Worker) warn(message string, err error) {
	if err != nil {
		w.Log.Info(message, "severity", "warning", "error", err.Error())
	}
}

// restore makes the device equal to an image.
func (w *Worker) restore(ctx context.Context, r task.Request, options datapath.Options) (task.Report, error) {
	store, err := w.Environment.OpenStore(ctx)
	if err != nil {
		return task.Report{}, err
	}
	defer w.closeStore(ctx, store)
	heap.Limit()
	options.Resume = r.Restore.Resume
	report := task.Report{}
	result, err := restore.Run(ctx, restore.Job{
		Store:    store,
		Snapshot: r.Restore.SnapshotID,
		Open: func() (device.Writer, error) {
			dev, err := w.Environment.OpenWriter()
			if err != nil {
				return nil, err
			}
			return device.LimitWriter(ctx, dev, r.RateLimit), nil
		},
		Begun: func(image repository.VolumeReader, dev device.Writer) error {
			report.SnapshotID = r.Restore.SnapshotID
			report.Filesystem = filesystemOf(image)
			w.Log.Info("Restore begins", "snapshotID", r.Restore.SnapshotID, "size", image.Meta().Size, "deviceSize", dev.Size(), "resume", options.Resume)
			return nil
		},
		Options: options,
	})
	report.VolumeSize = result.Size
	report.BytesWritten, report.BytesFound, report.ZeroBytes = result.BytesWritten, result.BytesFound, result.ZeroBytes
	if err != nil {
		return report, err
	}
	w.Log.Info("Restore is complete", "bytesWritten", report.BytesWritten, "bytesFound", report.BytesFound, "zeroBytes", report.ZeroBytes)
	return report, nil
}
