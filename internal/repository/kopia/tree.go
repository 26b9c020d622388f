package kopia

import (
	"context"
	"errors"
	"fmt"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/repository"
)

// loadRoot reads the object IDs of all segments.
func loadRoot(ctx context.Context, rep repo.Repository, disk object.ID, l repository.Layout) ([]object.ID, error) {
	return loadSegments(ctx, rep, disk, l, l.Segments())
}

// loadSegments reads the object IDs of the first n segments; disk ends with
// them.
func loadSegments(ctx context.Context, rep repo.Repository, disk object.ID, l repository.Layout, n int64) ([]object.ID, error) {
	// How many there are is said by volume.json, and how many are there by the index. A list of what is only said to be there could
	// take any memory.
	root := make([]object.ID, 0, min(n, pieceEntries))
	err := readIndex(ctx, rep, disk, l.EndOf(n), int(n), func(e entry) error {
		if e.Length != l.SegmentLength(int64(len(root))) {
			return fmt.Errorf("segment has length %d, want %d", e.Length, l.SegmentLength(int64(len(root))))
		}
		if _, ok := e.Object.IndexObjectID(); !ok {
			return fmt.Errorf("segment %v has no index", e.Object)
		}
		root = append(root, e.Object)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	return root, nil
}

// segment is the content of one segment: its entries, and where those of each chunk begin.
type segment struct {
	entries []entry
	chunks  []int
}

// loadSegment reads the entries of a segment of length bytes.
func loadSegment(ctx context.Context, rep repo.Repository, id object.ID, length, chunkSize int64) (segment, error) {
	var s segment
	err := readIndex(ctx, rep, id, length, int(length/min(repository.MinPageSize, chunkSize)), func(e entry) error {
		if _, _, direct := e.Object.ContentID(); !direct {
			return fmt.Errorf("chunk %v is not a content", e.Object)
		}
		switch within := e.Start % chunkSize; {
		case within+e.Length > chunkSize:
			return errors.New("entry crosses the end of a chunk")
		case within == 0:
			s.chunks = append(s.chunks, len(s.entries))
		}
		s.entries = append(s.entries, e)
		return nil
	})
	if err != nil {
		return segment{}, fmt.Errorf("read segment: %w", err)
	}
	return s, nil
}

// count is the number of chunks.
func (s segment) count() int { return len(s.chunks) }

// chunk returns the entries of one chunk; their starts are relative to the
// segment.
func (s segment) chunk(i int) []entry {
	if i == len(s.chunks)-1 {
		return s.entries[s.chunks[i]:]
	}
	return s.entries[s.chunks[i]:s.chunks[i+1]]
}
