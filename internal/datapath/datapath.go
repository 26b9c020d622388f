// Package datapath moves the bytes of a volume: from a device into an image
// (Backup), and from an image onto a device (Restore).
//
// Both are pipelines of one producer, which walks the volume in ascending order
// and cuts the work into items of at most ReadSize bytes, and Workers that take
// an item each: read it, and write it. Memory is Workers * ReadSize, whatever
// the size of the volume. The calls return when all goroutines have ended; the
// first error, or the end of the context, stops them all.
//
// What is not promised: after an error of Restore the device holds a mixture of
// old and new bytes. It has to be restored again before anyone may use it.
//
// The package is pure: device and repository are behind interfaces.
package datapath

import (
	"runtime"
	"sync/atomic"
)

// Defaults of Options.
const (
	// minWorkers keep a storage busy that takes its time to answer; maxWorkers bound
	// the memory on machines with many cores.
	minWorkers = 4
	maxWorkers = 16
	// defaultReadSize is large enough that no storage is slow for the number of its
	// requests: at least 4 * 4 MiB in flight.
	defaultReadSize = 4 << 20
)

// defaultWorkers let each core have work while as many items wait for the
// storage.
func defaultWorkers() int { return min(max(minWorkers, 2*runtime.GOMAXPROCS(0)), maxWorkers) }

// Options of both pipelines. The zero value of each field means its default.
type Options struct {
	// Workers is how many items are in flight; default twice the cores, from 4 to 16.
	Workers int
	// ReadSize is how many bytes an item has at most; default 4 MiB. It is rounded
	// down to whole chunks, of which there is at least one.
	ReadSize int64
	// Progress, where it is not nil, shows how far the call is.
	Progress *Progress
	// Verify makes Restore read everything again after Sync and compare it with
	// what was written.
	Verify bool
	// Resume makes Restore read the device first and leave alone what the image has
	// there, instead of fetching and writing it: for a device on which an earlier
	// Restore was interrupted.
	Resume bool
}

func (o Options) withDefaults(chunkSize int64) Options {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers()
	}
	if o.ReadSize <= 0 {
		o.ReadSize = defaultReadSize
	}
	o.ReadSize = max(1, o.ReadSize/chunkSize) * chunkSize
	if o.Progress == nil {
		o.Progress = &Progress{}
	}
	return o
}

// Progress is how much of the work is done, in bytes of work: what need not be
// read or written does not count. Any goroutine may look at it at any time.
type Progress struct {
	done, total atomic.Int64
}

// Done is the work that is done.
func (p *Progress) Done() int64 { return p.done.Load() }

// Total is all of the work, 0 until it is known.
func (p *Progress) Total() int64 { return p.total.Load() }
