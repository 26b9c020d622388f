package kopia

import (
	"context"
	"fmt"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// Compare implements repository.Store: equal objects are equal bytes, so only
// the segments that are not the same object are loaded, and no data.
func (s *Store) Compare(ctx context.Context, a, b repository.SnapshotID, emit func(block.Extent) error) error {
	if err := s.compare(ctx, a, b, emit); err != nil {
		return fmt.Errorf("compare repo snapshots %s and %s: %w", a, b, err)
	}
	return nil
}

func (s *Store) compare(ctx context.Context, a, b repository.SnapshotID, emit func(block.Extent) error) error {
	c := comparison{emit: emit}
	var err error
	if c.a, err = s.openReader(ctx, a); err != nil {
		return err
	}
	if c.b, err = s.openReader(ctx, b); err != nil {
		return err
	}
	c.end = min(c.a.meta.Size, c.b.meta.Size)
	if c.a.meta.ChunkSize != c.b.meta.ChunkSize || c.a.meta.SegmentSize != c.b.meta.SegmentSize {
		return emit(block.Extent{Length: c.end}) // the segments of one are at other places than those of the other
	}
	for i := int64(0); i*c.a.layout.SegmentSize() < c.end; i++ {
		if c.a.root[i] == c.b.root[i] {
			continue
		}
		if err := c.segment(ctx, i); err != nil {
			return fmt.Errorf("segment %d: %w", i, err)
		}
	}
	return c.flush()
}

// comparison finds the ranges in which two images have different objects.
type comparison struct {
	a, b *reader
	// end is that of the smaller volume.
	end  int64
	emit func(block.Extent) error
	// last may still grow.
	last block.Extent
}

// segment compares the entries of one segment. They may have different lengths in the two
// images.
func (c *comparison) segment(ctx context.Context, index int64) error {
	x, err := c.a.segment(ctx, c.a.root[index], c.a.layout.SegmentLength(index))
	if err != nil {
		return err
	}
	y, err := c.b.segment(ctx, c.b.root[index], c.b.layout.SegmentLength(index))
	if err != nil {
		return err
	}
	base := index * c.a.layout.SegmentSize()
	for i, j := 0, 0; i < len(x.entries) && j < len(y.entries); {
		e, f := x.entries[i], y.entries[j]
		start, end := max(e.Start, f.Start), min(e.Start+e.Length, f.Start+f.Length)
		if !c.same(e, f) {
			if err := c.differ(base+start, base+end); err != nil {
				return err
			}
		}
		if e.Start+e.Length == end {
			i++
		}
		if f.Start+f.Length == end {
			j++
		}
	}
	return nil
}

// same reports whether two entries have the same bytes where they overlap.
func (c *comparison) same(e, f entry) bool {
	return e == f || c.a.zero[e.Object] && c.b.zero[f.Object]
}

// differ joins neighbouring ranges.
func (c *comparison) differ(start, end int64) error {
	if start == c.last.End() && c.last.Length > 0 {
		c.last.Length += end - start
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.last = block.Extent{Offset: start, Length: end - start}
	return nil
}

func (c *comparison) flush() error {
	e := c.last
	e.Length = min(e.Length, c.end-e.Offset) // the rest is padding in one of the images
	if e.Length <= 0 {
		return nil
	}
	return c.emit(e)
}
