package datapath

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
)

// ErrTooSmall is wrapped by the error of a Restore onto a device that is smaller than the
// volume was. Restore has written nothing then.
var ErrTooSmall = errors.New("device is smaller than the volume")

// maxZeroRun bounds one call of Zero, which cannot be canceled while the device zeroes.
const maxZeroRun = 4 << 30

// RestoreStats says what a Restore did, in bytes. After an error, the last writes may have been
// counted and not done.
type RestoreStats struct {
	// BytesWritten came from the repository. ZeroBytes did not: they are the holes of the
	// image, and what the device has beyond its end.
	BytesWritten int64
	ZeroBytes    int64
	// BytesFound were on the device before; see Options.Resume and Options.Compare.
	BytesFound int64
}

// Restore makes the device equal to the image. Every byte is written, found equal, or zeroed,
// and everything beyond the size of the image is zeroed. Restore returns after Sync. It does
// not close the device.
func Restore(ctx context.Context, r repository.VolumeReader, dev device.Writer, o Options) (RestoreStats, error) {
	stats, err := restore(ctx, r, dev, o)
	if err != nil {
		return stats, fmt.Errorf("restore device: %w", err)
	}
	return stats, nil
}

func restore(ctx context.Context, r repository.VolumeReader, dev device.Writer, o Options) (RestoreStats, error) {
	meta := r.Meta()
	g, err := block.NewGeometry(meta.Size, meta.ChunkSize)
	if err != nil {
		return RestoreStats{}, err
	}
	if dev.Size() < g.Size() {
		return RestoreStats{}, fmt.Errorf("%w: %d bytes, want %d", ErrTooSmall, dev.Size(), g.Size())
	}
	o = o.withDefaults(g.ChunkSize())
	run := restoreRun{reader: r, dev: dev, geometry: g, options: o, buffers: newBuffers(o.memory())}
	if run.device, err = block.NewGeometry(dev.Size(), g.ChunkSize()); err != nil {
		return RestoreStats{}, err
	}
	if o.Only != nil && (o.Only.Size() != dev.Size() || o.Verify) {
		return RestoreStats{}, fmt.Errorf("a part of a device of %d bytes was chosen in a volume of %d; a part cannot be verified", dev.Size(), o.Only.Size())
	}
	o.Progress.total.Store(run.total())
	if o.Verify {
		o.Progress.total.Store(2 * dev.Size())
		run.sums = newChecksums(dev.Size(), g.ChunkSize())
	}
	if o.Only == nil && !o.Resume {
		r.ReadInOrder()
	}
	stats, err := run.write(ctx)
	if err != nil {
		return stats, err
	}
	if err := dev.Sync(); err != nil {
		return stats, err
	}
	if o.Verify {
		return stats, run.verify(ctx)
	}
	return stats, nil
}

type restoreRun struct {
	reader   repository.VolumeReader
	dev      device.Writer
	geometry block.Geometry
	// device is the whole device, in chunks of the image.
	device  block.Geometry
	options Options
	buffers *buffers
	sums    *checksums

	found, written, zeroed atomic.Int64
}

// total returns the bytes to look at.
func (r *restoreRun) total() int64 {
	if r.options.Only == nil {
		return r.device.Size()
	}
	total := r.options.Only.CountChunks(r.device) * r.device.ChunkSize()
	if r.options.Only.AnyIn(r.device.Extent(r.device.Chunks() - 1)) {
		total -= r.device.PaddedSize() - r.device.Size()
	}
	return total
}

// chosen reports whether Restore looks at a chunk of the device.
func (r *restoreRun) chosen(chunk int64) bool {
	return r.options.Only == nil || r.options.Only.AnyIn(r.device.Extent(chunk))
}

// piece is one item of a restore.
type piece struct {
	block.Extent
	zero bool
}

func (r *restoreRun) write(ctx context.Context) (RestoreStats, error) {
	pieces := make(chan piece)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(pieces)
		return r.plan(ctx, func(p piece) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case pieces <- p:
				return nil
			}
		})
	})
	for range r.options.Depth {
		group.Go(func() error {
			for p := range pieces {
				if err := r.move(ctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return RestoreStats{BytesWritten: r.written.Load(), ZeroBytes: r.zeroed.Load(), BytesFound: r.found.Load()}, err
}

// plan walks through the image and sends pieces in ascending order: runs of data of at most
// ReadSize bytes, and runs of zeros of at most maxZeroRun.
func (r *restoreRun) plan(ctx context.Context, send func(piece) error) error {
	var run piece
	flush := func() error {
		if run.Length == 0 {
			return nil
		}
		err := send(run)
		run = piece{Extent: block.Extent{Offset: run.End()}}
		return err
	}
	grow := func(e block.Extent, zero bool) error {
		limit := r.options.ReadSize
		if zero {
			limit = maxZeroRun
		}
		if run.zero != zero || run.Length+e.Length > limit {
			if err := flush(); err != nil {
				return err
			}
		}
		run.zero = zero
		run.Length += e.Length
		return nil
	}
	skip := func(end int64) error {
		err := flush()
		run = piece{Extent: block.Extent{Offset: end}}
		return err
	}
	for c := range r.geometry.Chunks() {
		if !r.chosen(c) {
			if err := skip(r.geometry.Extent(c).End()); err != nil {
				return err
			}
			continue
		}
		zero, err := r.reader.IsZero(ctx, c)
		if err != nil {
			return err
		}
		if err := grow(r.geometry.Extent(c), zero); err != nil {
			return err
		}
	}
	for off := r.geometry.Size(); off < r.dev.Size(); {
		end := min(r.dev.Size(), off+maxZeroRun/2)
		if r.options.Only != nil {
			end = r.device.Extent(r.device.ChunkAt(off)).End()
		}
		step := grow
		if !r.chosen(r.device.ChunkAt(off)) {
			step = func(e block.Extent, _ bool) error { return skip(e.End()) }
		}
		if err := step(block.Extent{Offset: off, Length: end - off}, true); err != nil {
			return err
		}
		off = end
	}
	return flush()
}

// move writes one piece.
func (r *restoreRun) move(ctx context.Context, p piece) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.zero && !r.options.Compare {
		r.zeroed.Add(p.Length)
		if err := device.Zero(ctx, r.dev, p.Extent); err != nil {
			return err
		}
		r.sums.addZeros(p.Extent)
		r.options.Progress.done.Add(p.Length)
		return nil
	}
	// Whole chunks have room for the zeros that the sums want.
	chunk := r.geometry.ChunkSize()
	size := min((p.Length+chunk-1)/chunk*chunk, r.options.ReadSize)
	need := size
	if r.options.Compare {
		need = 2 * size
	}
	all, err := r.buffers.get(ctx, need)
	if err != nil {
		return err
	}
	defer r.buffers.put(all)
	buf, fresh := all.Bytes[:size], all.Bytes[size:]
	if p.zero {
		return r.clear(ctx, p.Extent, buf)
	}
	return r.fill(ctx, p, buf, fresh)
}

// fill writes a piece of data. fresh is a second buffer, for Compare.
func (r *restoreRun) fill(ctx context.Context, p piece, buf, fresh []byte) error {
	runs := []block.Extent{p.Extent}
	if r.options.Resume {
		var err error
		if runs, err = r.missing(ctx, p, buf); err != nil {
			return err
		}
	}
	for _, e := range runs {
		have := buf[e.Offset-p.Offset:][:e.Length]
		data := have
		if r.options.Compare {
			data = fresh[:e.Length]
		}
		if n, err := r.reader.ReadAt(data, e.Offset); n < len(data) {
			return fmt.Errorf("read image %s: %w", e, err)
		}
		if r.options.Compare {
			if err := r.replace(e.Offset, have, data); err != nil {
				return err
			}
			continue
		}
		r.written.Add(e.Length)
		if _, err := r.dev.WriteAt(data, e.Offset); err != nil {
			return err
		}
	}
	r.sums.add(p.Offset, buf[:p.Length], buf)
	r.options.Progress.done.Add(p.Length)
	return nil
}

// verify reads the whole device and compares its checksums with those of what was written.
func (r *restoreRun) verify(ctx context.Context) error {
	got := newChecksums(r.dev.Size(), r.geometry.ChunkSize())
	got.seed = r.sums.seed
	extents := make(chan block.Extent)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(extents)
		for off := int64(0); off < r.dev.Size(); off += r.options.ReadSize {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case extents <- block.Extent{Offset: off, Length: min(r.options.ReadSize, r.dev.Size()-off)}:
			}
		}
		return nil
	})
	for range r.options.Workers {
		group.Go(func() error {
			buf := device.NewBuffer(int(r.options.ReadSize))
			for e := range extents {
				if _, err := r.dev.ReadAt(buf[:e.Length], e.Offset); err != nil {
					return err
				}
				got.add(e.Offset, buf[:e.Length], buf)
				r.options.Progress.done.Add(e.Length)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if bad, differ := r.sums.difference(got); differ {
		return fmt.Errorf("verify: device does not hold what was written to it, in %s", bad)
	}
	return nil
}
