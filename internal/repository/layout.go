package repository

import (
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/block"
)

// MinPageSize is the shortest page that an image may have.
const MinPageSize = 4 << 10

// maxSegmentSize is what a stock reader of the repository may have to buffer.
const maxSegmentSize = 256 << 20

// Layout is how an image is cut into segments, chunks and pages. The zero value is
// not usable; see NewLayout.
type Layout struct {
	block.Geometry
	segment int64
	page    int64
}

// NewLayout checks the sizes in meta, none of which may be 0, and combines them.
func NewLayout(meta Meta) (Layout, error) {
	g, err := block.NewGeometry(meta.Size, meta.ChunkSize)
	if err != nil {
		return Layout{}, err
	}
	if s := meta.SegmentSize; s < meta.ChunkSize || s > maxSegmentSize || s%meta.ChunkSize != 0 {
		return Layout{}, fmt.Errorf("segment size is %d bytes, want a multiple of the chunk size %d up to %d", s, meta.ChunkSize, maxSegmentSize)
	}
	if p := meta.PageSize; p < MinPageSize || p > meta.ChunkSize || meta.ChunkSize%p != 0 {
		return Layout{}, fmt.Errorf("page size is %d bytes, want a divisor of the chunk size %d from %d", p, meta.ChunkSize, MinPageSize)
	}
	return Layout{Geometry: g, segment: meta.SegmentSize, page: meta.PageSize}, nil
}

// InheritLayout returns the meta of an incremental image with the chunk and segment
// size of its parent where it has none. Other sizes than the parent's are an error.
func (m Meta) InheritLayout(parent Meta) (Meta, error) {
	if m.ChunkSize == 0 {
		m.ChunkSize = parent.ChunkSize
	}
	if m.SegmentSize == 0 {
		m.SegmentSize = parent.SegmentSize
	}
	if m.ChunkSize != parent.ChunkSize || m.SegmentSize != parent.SegmentSize {
		return Meta{}, fmt.Errorf("chunk and segment size are %d and %d bytes, those of the parent %d and %d",
			m.ChunkSize, m.SegmentSize, parent.ChunkSize, parent.SegmentSize)
	}
	return m, nil
}

// SegmentSize is the length of every segment but perhaps the last, in bytes.
func (l Layout) SegmentSize() int64 { return l.segment }

// PageSize is the length of every page, in bytes.
func (l Layout) PageSize() int64 { return l.page }

// Segments is the number of segments, a short one at the end included.
func (l Layout) Segments() int64 { return (l.PaddedSize() + l.segment - 1) / l.segment }

// SegmentAt returns the segment of a chunk, and the place of the chunk in it.
func (l Layout) SegmentAt(chunk int64) (segment, within int64) {
	perSegment := l.segment / l.ChunkSize()
	return chunk / perSegment, chunk % perSegment
}

// SegmentLength is how many bytes of the padded volume a segment holds. It is 0 for
// a segment that is not the volume's.
func (l Layout) SegmentLength(segment int64) int64 {
	return max(0, min(l.segment, l.PaddedSize()-segment*l.segment))
}

// SegmentChunks is how many chunks a segment holds.
func (l Layout) SegmentChunks(segment int64) int64 { return l.SegmentLength(segment) / l.ChunkSize() }

// EndOf is where the first n segments end in the padded volume.
func (l Layout) EndOf(n int64) int64 { return min(n*l.segment, l.PaddedSize()) }

// ChunkPages is how many pages a chunk has.
func (l Layout) ChunkPages() int64 { return l.ChunkSize() / l.page }

// PageLength is how many bytes of the volume a page of a chunk holds, without the
// padding.
func (l Layout) PageLength(chunk, page int64) int64 {
	return min(max(l.Extent(chunk).Length-page*l.page, 0), l.page)
}

// errPadding is the error of data that goes on after the end of the volume.
var errPadding = errors.New("padding after the end of the volume is not zero")

// CheckChunks checks what VolumeWriter.Put is given, and returns the number of
// chunks.
func (l Layout) CheckChunks(first int64, data []byte) (int64, error) {
	count := int64(len(data)) / l.ChunkSize()
	if count == 0 || int64(len(data)) != count*l.ChunkSize() {
		return 0, fmt.Errorf("%d bytes, want whole chunks of %d", len(data), l.ChunkSize())
	}
	last := first + count - 1
	if err := errors.Join(l.CheckChunk(first), l.CheckChunk(last)); err != nil {
		return 0, err
	}
	if !block.IsZero(data[(count-1)*l.ChunkSize()+l.Extent(last).Length:]) {
		return 0, errPadding
	}
	return count, nil
}

// CheckPages checks what VolumeWriter.PutPages is given, and returns the number of
// bytes.
func (l Layout) CheckPages(chunk int64, runs []Pages) (int64, error) {
	if err := l.CheckChunk(chunk); err != nil {
		return 0, err
	}
	size := l.Extent(chunk).Length
	var total, end int64
	for _, run := range runs {
		n := int64(len(run.Data))
		if run.Offset < end || n == 0 || n > l.ChunkSize()-run.Offset || (run.Offset|n)%l.page != 0 {
			return 0, fmt.Errorf("%d bytes at %d are not the next pages of %d bytes", n, run.Offset, l.page)
		}
		if inside := max(size-run.Offset, 0); n > inside && !block.IsZero(run.Data[inside:]) {
			return 0, errPadding
		}
		end = run.Offset + n
		total += n
	}
	if total == 0 {
		return 0, errors.New("no pages")
	}
	return total, nil
}
