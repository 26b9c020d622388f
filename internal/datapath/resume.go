package datapath

import (
	"context"

	"github.com/blockmover/blockmover/internal/block"
)

// missing reads a piece from the device into buf, and returns the runs of chunks that differ
// from the image. It trusts no record of an earlier run. So it does not matter who wrote what
// is on the device, when, and whether all of it was durable.
func (r *restoreRun) missing(ctx context.Context, p piece, buf []byte) ([]block.Extent, error) {
	if _, err := r.dev.ReadAt(buf[:p.Length], p.Offset); err != nil {
		return nil, err
	}
	r.options.Progress.read.Add(p.Length)
	var runs []block.Extent
	chunkSize := r.geometry.ChunkSize()
	for off := int64(0); off < p.Length; off += chunkSize {
		chunk := buf[off : off+chunkSize]
		e := block.Extent{Offset: p.Offset + off, Length: min(chunkSize, p.Length-off)}
		clear(chunk[e.Length:]) // the last chunk may end before
		same, err := r.reader.Matches(ctx, e.Offset/chunkSize, chunk)
		switch n := len(runs); {
		case err != nil:
			return nil, err
		case same:
			r.found.Add(e.Length)
		case n > 0 && runs[n-1].End() == e.Offset:
			runs[n-1].Length += e.Length
		default:
			runs = append(runs, e)
		}
	}
	return runs, nil
}
