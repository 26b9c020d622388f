// Package datapath moves the bytes of a volume: from a device into an image (Backup), and
// from an image onto a device (Restore).
//
// Both are pipelines. One producer walks through the volume in ascending order and cuts the
// work into items of at most ReadSize bytes. Each of Depth goroutines takes an item, waits for a
// buffer, reads it and writes it. The buffers have room for two large items of each worker, whatever
// the size of the volume: one is read while the other one is written. Of small items, Depth are in
// flight, each of which may wait for a device with a long latency. A call returns when all
// goroutines have ended. The first error, or the end of the context, stops them all.
//
// After an error of Restore, the device holds a mixture of old and new bytes. It has to be
// restored again before it can be used.
//
// The package is pure: device and repository are behind interfaces.
package datapath

import (
	"runtime"
	"sync/atomic"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// Defaults of Options.
const (
	// MinWorkers keep a storage with long latency busy. maxWorkers bound the memory on
	// machines with many cores.
	MinWorkers = 4
	maxWorkers = 16
	// defaultReadSize is large enough that the number of requests slows no storage down: at
	// least 2 * 4 * 2 MiB are in flight. With 1 MiB, a full backup takes some percent less CPU time,
	// and longer where each read takes milliseconds.
	defaultReadSize = 2 << 20
	// defaultDepth is what a volume of a cloud takes at once. More adds nothing.
	defaultDepth = 32
)

// DefaultWorkers returns the number of cores, from 4 to 16.
func DefaultWorkers() int { return min(max(MinWorkers, runtime.GOMAXPROCS(0)), maxWorkers) }

// Options of both pipelines. The zero value of each field means its default.
type Options struct {
	// Workers is how many items are put into an image at once, and half of how many of ReadSize are
	// in flight; default the number of cores, from 4 to 16.
	Workers int
	// Depth is how many items of any size are in flight; default 32, or Workers if that is set.
	Depth int
	// ReadSize is the most bytes that an item has; default 2 MiB. It is rounded down to whole
	// chunks, and is at least one chunk.
	ReadSize int64
	// InFlight is how many bytes of a Backup may be under way at once, from the first chunk that
	// is not complete on; default repository.MaxInFlight, which is also the most.
	InFlight int64
	// Progress, if not nil, shows the progress of the call.
	Progress *Progress
	// Verify makes Restore read the whole device after Sync and compare it with what was
	// written.
	Verify bool
	// Resume makes Restore read the device first, and fetch and write only what differs from
	// the image. It is for a device on which an earlier Restore was interrupted.
	Resume bool
	// Compare is Resume for a device that holds another state of the volume. Of what differs
	// it writes only the blocks of 4 KiB that do, and it zeroes only what is not zero.
	Compare bool
	// Only, if not nil, has the pages of the device that Restore looks at. The caller knows
	// that everything else is equal to the image.
	Only *block.Bitmap
}

func (o Options) withDefaults(chunkSize int64) Options {
	switch {
	case o.Depth > 0:
	case o.Workers > 0:
		o.Depth = o.Workers
	default:
		o.Depth = defaultDepth
	}
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers()
	}
	o.Depth = max(o.Depth, o.Workers)
	if o.ReadSize <= 0 {
		o.ReadSize = defaultReadSize
	}
	if o.InFlight <= 0 || o.InFlight > repository.MaxInFlight {
		o.InFlight = repository.MaxInFlight
	}
	o.Resume = o.Resume || o.Compare
	o.ReadSize = max(1, o.ReadSize/chunkSize) * chunkSize
	if o.Progress == nil {
		o.Progress = &Progress{}
	}
	return o
}

// memory is what the buffers have together. Compare holds the device's bytes and the image's.
func (o Options) memory() int64 {
	m := 2 * int64(o.Workers) * o.ReadSize
	if o.Compare {
		m *= 2
	}
	return m
}

// Progress is how much of the work is done, in bytes. What need not be read or written does
// not count. What earlier runs of the operation have finished is done from the start. It is
// safe for concurrent use.
type Progress struct {
	done, total, read atomic.Int64
}

// Done returns the work that is done.
func (p *Progress) Done() int64 { return p.done.Load() }

// Read returns what was read from a device that is backed up, or that is compared with an image.
func (p *Progress) Read() int64 { return p.read.Load() }

// Total returns all of the work. It is 0 until it is known.
func (p *Progress) Total() int64 { return p.total.Load() }
