package worker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/device"
)

const (
	// stallTimeout is for how long nothing may move before a worker gives up. Repeated
	// requests to an object store, a slow commit and the patience with a metadata service
	// take minutes.
	stallTimeout = 30 * time.Minute
	// cutOffTimeout is for how long the API server may be out of reach before a restore stops
	// writing. A cluster that has lost a node detaches its volumes by force after 6 minutes,
	// and then gives them to another node.
	cutOffTimeout = 4 * time.Minute
	// watchInterval is how often both are looked at.
	watchInterval = 15 * time.Second
)

var (
	errStalled = errors.New("nothing moves")
	errCutOff  = errors.New("the API server is out of reach")
)

// life counts what moves: accesses to the device, messages of the metadata service.
type life struct{ beats atomic.Int64 }

// watch calls stop when nothing has moved for longer than timeout.
func (l *life) watch(ctx context.Context, timeout, interval time.Duration, stop func(error)) {
	last, since := l.beats.Load(), time.Now()
	every(ctx, interval, func() bool {
		if now := l.beats.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < timeout {
			return true
		}
		stop(fmt.Errorf("%w: no byte of the volume and no message of the metadata service for %s", errStalled, timeout))
		return false
	})
}

// watchAPI calls stop when reach has failed for longer than timeout.
func watchAPI(ctx context.Context, timeout, interval time.Duration, reach func(context.Context) error, stop func(error)) {
	since := time.Now()
	every(ctx, interval, func() bool {
		bounded, cancel := context.WithTimeout(ctx, interval)
		defer cancel()
		err := reach(bounded)
		if err == nil {
			since = time.Now()
		}
		if time.Since(since) < timeout {
			return true
		}
		stop(fmt.Errorf("%w for %s: the volume may be given to another node: %w", errCutOff, timeout, err))
		return false
	})
}

// every calls do at each interval until it returns false or the context ends.
func every(ctx context.Context, interval time.Duration, do func() bool) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if !do() {
				return
			}
		}
	}
}

// livingReader is a device whose accesses count.
type livingReader struct {
	device.Reader
	life *life
}

func (d livingReader) ReadAt(p []byte, off int64) (int, error) {
	defer d.life.beats.Add(1)
	return d.Reader.ReadAt(p, off)
}

type livingWriter struct {
	device.Writer
	life *life
}

func (d livingWriter) ReadAt(p []byte, off int64) (int, error) {
	defer d.life.beats.Add(1)
	return d.Writer.ReadAt(p, off)
}

func (d livingWriter) WriteAt(p []byte, off int64) (int, error) {
	defer d.life.beats.Add(1)
	return d.Writer.WriteAt(p, off)
}

func (d livingWriter) Zero(e block.Extent) error {
	defer d.life.beats.Add(1)
	return d.Writer.Zero(e)
}

// livingSource is a source whose messages count.
type livingSource struct {
	cbt.Source
	life *life
}

func (s livingSource) counted(record func(cbt.Batch) error) func(cbt.Batch) error {
	return func(b cbt.Batch) error {
		s.life.beats.Add(1)
		return record(b)
	}
}

func (s livingSource) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	return s.Source.Allocated(ctx, from, s.counted(record))
}

func (s livingSource) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	return s.Source.Changed(ctx, base, from, s.counted(record))
}
