package datapath

import (
	"bytes"
	"context"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
)

// compareUnit is what Compare writes at least: the block of nearly all file systems and
// databases. A chunk that differs in one block is fetched whole, since it is one content of the
// repository, but the device keeps the blocks that are right.
const compareUnit = 4 << 10

// replace writes what differs between two contents of a range of the device. have is what the
// device holds. Afterwards it is equal to want.
func (r *restoreRun) replace(offset int64, have, want []byte) error {
	for e := range differing(have, want) {
		r.written.Add(e.Length)
		if _, err := r.dev.WriteAt(want[e.Offset:e.End()], offset+e.Offset); err != nil {
			return err
		}
		r.found.Add(-e.Length)
	}
	r.found.Add(int64(len(want)))
	copy(have, want)
	return nil
}

// clear zeroes what is not zero in a range of the device.
func (r *restoreRun) clear(ctx context.Context, whole block.Extent, buf []byte) error {
	zeros := make([]byte, min(int64(len(buf)), whole.Length))
	for off := whole.Offset; off < whole.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		have := buf[:min(int64(len(buf)), whole.End()-off)]
		if _, err := r.dev.ReadAt(have, off); err != nil {
			return err
		}
		r.options.Progress.read.Add(int64(len(have)))
		r.found.Add(int64(len(have)))
		for e := range differing(have, zeros[:len(have)]) {
			r.zeroed.Add(e.Length)
			r.found.Add(-e.Length)
			if err := device.Zero(ctx, r.dev, block.Extent{Offset: off + e.Offset, Length: e.Length}); err != nil {
				return err
			}
		}
		off += int64(len(have))
		r.options.Progress.done.Add(int64(len(have)))
	}
	r.sums.addZeros(whole)
	return nil
}

// differing yields the runs of blocks in which two contents of the same length differ.
func differing(a, b []byte) func(yield func(block.Extent) bool) {
	return func(yield func(block.Extent) bool) {
		var run block.Extent
		for off := 0; off < len(a); off += compareUnit {
			end := min(off+compareUnit, len(a))
			if !bytes.Equal(a[off:end], b[off:end]) {
				if run.Length == 0 {
					run.Offset = int64(off)
				}
				run.Length = int64(end) - run.Offset
				continue
			}
			if run.Length > 0 && !yield(run) {
				return
			}
			run = block.Extent{}
		}
		if run.Length > 0 {
			yield(run)
		}
	}
}
