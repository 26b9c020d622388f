package cbt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockmover/blockmover/internal/block"
)

// Options of Collect. The zero value of each field means its default.
type Options struct {
	// PageSize of the bitmap; default block.PageSize.
	PageSize int64
	// Patience is how long to wait in all for a stream that breaks and brings no block;
	// default 300 times Backoff, which is 5 minutes. A sidecar that restarts with its driver
	// may take as long.
	Patience time.Duration
	// Backoff is the wait before the first resumption. It doubles with each resumption that
	// brings no block, up to 30 times. Default 1 s.
	Backoff time.Duration
	// Notify, if not nil, is called with the error that is waited for, and with nil when the
	// stream goes on.
	Notify func(error)
}

const (
	defaultBackoff  = time.Second
	maxBackoffs     = 30
	defaultBackoffs = 300
	// maxResumptions bounds a stream that breaks again and again after a few blocks. With
	// 1000, a server that cuts streams after a minute may take 16 hours.
	maxResumptions = 1000
)

// Stats says how a stream went, resumptions included.
type Stats struct {
	Messages    int64
	Blocks      int64
	Resumptions int64
	// Waited is how much patience was used up.
	Waited time.Duration
}

// CollectAllocated collects the allocated blocks of the target into the bitmap of a device of
// size bytes.
func CollectAllocated(ctx context.Context, src Source, size int64, o Options) (*block.Bitmap, Stats, error) {
	b, stats, err := collect(ctx, size, o, src.Allocated)
	if err == nil && stats.Messages == 0 {
		// An empty list says that the volume is empty. Only a message says of which volume.
		err = errors.New("the stream ended without a message: nothing states which volume is empty")
	}
	if err != nil {
		return nil, stats, fmt.Errorf("collect allocated blocks: %w", err)
	}
	return b, stats, nil
}

// CollectChanged collects the blocks that differ between base and target into the bitmap of a
// device of size bytes.
func CollectChanged(ctx context.Context, src Source, base ChangeID, size int64, o Options) (*block.Bitmap, Stats, error) {
	if base == "" {
		return nil, Stats{}, errors.New("collect changed blocks: change ID is empty")
	}
	b, stats, err := collect(ctx, size, o, func(ctx context.Context, from int64, record func(Batch) error) error {
		return src.Changed(ctx, base, from, record)
	})
	if err != nil {
		return nil, stats, fmt.Errorf("collect changed blocks: %w", err)
	}
	return b, stats, nil
}

type stream func(ctx context.Context, from int64, record func(Batch) error) error

func collect(ctx context.Context, size int64, o Options, run stream) (*block.Bitmap, Stats, error) {
	o = o.withDefaults(size)
	bitmap, err := block.NewBitmap(size, o.PageSize)
	if err != nil {
		return nil, Stats{}, err
	}
	c := collector{bitmap: bitmap, size: size, notify: o.Notify}
	for barren := 0; ; barren++ {
		blocks := c.stats.Blocks
		c.resumed = true
		err := run(ctx, c.next, c.record)
		switch {
		case err == nil:
			return bitmap, c.stats, nil
		case !errors.Is(err, ErrInterrupted) || ctx.Err() != nil:
			return nil, c.stats, err
		case c.next >= size:
			// The stream broke after the last block of the volume.
			return bitmap, c.stats, nil
		case c.stats.Blocks > blocks:
			barren, c.stats.Waited = 0, 0
		}
		pause := o.Backoff * time.Duration(min(1<<min(barren, maxBackoffs), maxBackoffs))
		if c.stats.Waited+pause > o.Patience || c.stats.Resumptions >= maxResumptions {
			return nil, c.stats, fmt.Errorf("give up at offset %d after %d resumptions: %w", c.next, c.stats.Resumptions, err)
		}
		c.stats.Resumptions++
		c.stats.Waited += pause
		c.waits(err)
		if err := sleep(ctx, pause); err != nil {
			return nil, c.stats, err
		}
	}
}

func (o Options) withDefaults(size int64) Options {
	if o.PageSize == 0 {
		o.PageSize = block.PageSize(size)
	}
	if o.Backoff == 0 {
		o.Backoff = defaultBackoff
	}
	if o.Patience == 0 {
		o.Patience = defaultBackoffs * o.Backoff
	}
	return o
}

// sleep waits, or returns the error of the context.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// collector checks a stream and its resumptions as one sequence.
type collector struct {
	bitmap *block.Bitmap
	size   int64
	stats  Stats
	// notify is Options.Notify. waiting is set between its calls.
	notify  func(error)
	waiting bool

	// started says that a batch has come, so that fixed is known.
	started bool
	fixed   bool
	// length of the blocks, if it is fixed and a block has come.
	length int64
	// next is the end of the last block.
	next int64
	// resumed is set until the first block of a stream has come. That block may begin before
	// the offset that was asked for.
	resumed bool
}

// waits notifies that the stream is waited for, or with nil that it goes on.
func (c *collector) waits(why error) {
	if c.notify != nil && (why != nil || c.waiting) {
		c.notify(why)
	}
	c.waiting = why != nil
}

func (c *collector) record(b Batch) error {
	c.stats.Messages++
	c.waits(nil)
	switch {
	case b.Capacity != c.size:
		return fmt.Errorf("storage describes a volume of %d bytes, the device has %d", b.Capacity, c.size)
	case c.started && b.Fixed != c.fixed:
		return errors.New("storage changes between blocks of fixed and of variable length")
	}
	c.started, c.fixed = true, b.Fixed
	for _, e := range b.Blocks {
		if err := c.block(e); err != nil {
			return err
		}
		c.stats.Blocks++
	}
	return nil
}

func (c *collector) block(e block.Extent) error {
	if c.fixed {
		var err error
		if e, err = c.fixedBlock(e); err != nil {
			return err
		}
	}
	if err := e.CheckWithin(c.size); err != nil {
		return err
	}
	if e.Offset < c.next && (!c.resumed || e.End() <= c.next) {
		return fmt.Errorf("block %s begins before the end %d of the one before it", e, c.next)
	}
	c.resumed = false
	c.next = e.End()
	return c.bitmap.Set(e)
}

// fixedBlock checks the length of a block if all have one length, and cuts off what is not
// there.
//
// CSI says that the length "MUST be constant". So if the size of the volume is no multiple of
// it, the last block reaches over the end of the volume, and is cut off there. A driver that
// shortens the last block instead means the same. Any other difference is an error.
func (c *collector) fixedBlock(e block.Extent) (block.Extent, error) {
	if e.Length <= 0 || e.Offset < 0 || e.Offset >= c.size {
		return e, e.CheckWithin(c.size)
	}
	atEnd := e.Length >= c.size-e.Offset
	if c.length == 0 && !atEnd {
		c.length = e.Length
	}
	shortened := e.Length == c.size-e.Offset && e.Length < c.length
	if c.length != 0 && e.Length != c.length && !shortened {
		return e, fmt.Errorf("block %s has length %d, want %d as all before it", e, e.Length, c.length)
	}
	if atEnd {
		e.Length = c.size - e.Offset
	}
	return e, nil
}
