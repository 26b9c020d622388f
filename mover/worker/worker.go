// Package worker is the process in a mover pod. It moves the data of one volume, once, and
// reports.
//
// Its input is a task.Request in the environment. Its result is a task.Report in the
// termination message. In between it writes its progress into its log, where the manager reads
// it. Through the API it writes nothing.
//
// Packages backup and restore have the steps, and say what holds when they are interrupted.
// The worker opens device, repository and block metadata for them, and renders their results.
//
// # How it ends
//
// Every error becomes a report with its class (package fault), including a panic of the
// goroutine that runs the operation. A worker in which nothing moves any more gives up, and so
// does a restore that has lost the API server: its volume may be given to another node. A
// worker that is told to stop (SIGTERM: its node is drained, or the operation is canceled)
// stops and leaves no report. It has not failed. The manager knows whether it wanted that,
// and decides whether another attempt follows.
package worker

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"

	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
)

// closeTimeout bounds the closing of a repository after the operation.
const closeTimeout = 5 * time.Second

// Environment is what an operation works on.
type Environment interface {
	// OpenReader opens what the task backs up. What is there in part only is a backup.Changes.
	OpenReader(ctx context.Context) (device.Reader, error)
	// OpenWriter opens the device for an image of the given size.
	OpenWriter(size int64) (device.Writer, error)
	// OpenStore opens the backup repository of the task.
	OpenStore(ctx context.Context) (repository.Store, error)
	// Source is the changed-block tracking of the snapshot on the device. If there is none,
	// the error wraps cbt.ErrUnavailable.
	Source() (cbt.Source, error)
	// LiveSource is the changed-block tracking of the VolumeSnapshot that the manager takes of a
	// live volume. It waits until that can be used. If there is none, the error wraps
	// cbt.ErrUnavailable.
	LiveSource(ctx context.Context) (cbt.Source, error)
	// ReachAPI fails if the API server is out of reach.
	ReachAPI(ctx context.Context) error
}

// Worker runs one operation.
type Worker struct {
	Environment Environment
	// Out takes the lines of the progress.
	Out io.Writer
	Log logr.Logger
	// Stop ends the context of Run with a cause.
	Stop context.CancelCauseFunc
	// Now is the clock.
	Now func() time.Time
	// Collect and DataPath tune the parts. DataPath.Progress is the worker's own.
	Collect  cbt.Options
	DataPath datapath.Options

	life life
	// waiting is what the operation waits for, or "".
	waiting atomic.Pointer[string]
	// held is set while the VolumeSnapshot of a live volume is waited for. The manager, which takes it,
	// is told now.
	held atomic.Bool
	now  chan struct{}
}

// Run does what the request asks for. With an error, the report says how far it came.
func (w *Worker) Run(ctx context.Context, r task.Request) (task.Report, error) {
	start := w.Now()
	progress := &datapath.Progress{}
	w.now = make(chan struct{}, 1)
	publishing, stop := context.WithCancel(ctx)
	published := make(chan struct{})
	go func() {
		defer close(published)
		publish(publishing, w.Log, w.Out, progressInterval, w.now, func() task.Progress {
			p := task.Progress{Done: progress.Done(), Total: progress.Total(), Read: progress.Read(), Held: w.held.Load()}
			if waiting := w.waiting.Load(); waiting != nil {
				p.Waiting = *waiting
			}
			return p
		})
	}()
	go w.life.watch(publishing, stallTimeout, watchInterval, w.Stop)
	if r.Restore != nil {
		go watchAPI(publishing, cutOffTimeout, watchInterval, w.Environment.ReachAPI, w.Stop)
	}

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
	if r.Restore != nil {
		report.BytesRead = progress.Read()
	}
	report.Duration = w.Now().Sub(start)
	return report, err
}

// laps returns a function that returns how long ago it was called last.
func (w *Worker) laps() func() time.Duration {
	last := w.Now()
	return func() time.Duration {
		now := w.Now()
		took := now.Sub(last)
		last = now
		return took
	}
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
