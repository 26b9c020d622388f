package kopia

import (
	"context"
	"fmt"
	"slices"

	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/ledger"
)

// sealer stores the indexes of an image: those of its segments, and the root. It keeps
// one object ID for each segment: 36 bytes, 18 MiB for 64 TiB. Only paged may be called
// beside another of its methods.
type sealer struct {
	objects *objectWriter
	layout  repository.Layout
	parent  *parentImage
	zero    zeros
	// root has the segments that are sealed.
	root []object.ID
	// zeroSegments remembers the segments of zeros by their length: a sparse volume
	// of 10 TiB has 80,000 of them.
	zeroSegments map[int64]object.ID
}

// zeros are a chunk and a page of zeros.
type zeros struct{ chunk, page object.ID }

// storeZeros stores them.
func storeZeros(ctx context.Context, objects *objectWriter, l repository.Layout) (z zeros, err error) {
	if z.chunk, _, err = objects.write(ctx, "", make([]byte, l.ChunkSize())); err != nil {
		return zeros{}, err
	}
	if z.page, _, err = objects.write(ctx, "", make([]byte, l.PageSize())); err != nil {
		return zeros{}, err
	}
	return z, nil
}

// has reports whether an object is one of them.
func (z zeros) has(id object.ID) bool { return id == z.chunk || id == z.page }

// is reports whether a chunk is the zero chunk. It knows only the zero chunk of this writer:
// what the parent's document calls zero was not checked.
func (z zeros) is(chunk []entry) bool { return len(chunk) == 1 && chunk[0].Object == z.chunk }

// addTo adds the zeros to those that a document names.
func (z zeros) addTo(named []zeroObject, l repository.Layout) []zeroObject {
	for _, own := range []zeroObject{{l.ChunkSize(), z.chunk}, {l.PageSize(), z.page}} {
		if !slices.Contains(named, own) {
			named = append(slices.Clone(named), own)
		}
	}
	return named
}

// paged reports whether the parent has a chunk in pages, or as the zero chunk.
func (s *sealer) paged(ctx context.Context, chunk int64) (bool, error) {
	index, within := s.layout.SegmentAt(chunk)
	base, err := s.parent.segment(ctx, index)
	if err != nil || int(within) >= base.count() {
		return false, err
	}
	entries := base.chunk(int(within))
	if s.zero.is(entries) {
		return true, nil
	}
	return !slices.ContainsFunc(entries, func(e entry) bool { return e.Length != s.layout.PageSize() }), nil
}

// seal finds or writes one segment. It returns what that adds to the statistics.
func (s *sealer) seal(ctx context.Context, put ledger.Segment[object.ID]) (add repository.WriteStats, err error) {
	defer s.parent.forget(put.Index)
	if put.Chunks != nil {
		s.root[put.Index], add, err = s.merge(ctx, put)
		return add, err
	}
	length := s.layout.SegmentLength(put.Index)
	switch inherited, inheritedLength := s.parent.at(put.Index); inheritedLength {
	case length:
		s.root[put.Index], add.ChunksInherited = inherited, s.layout.SegmentChunks(put.Index)
	case 0:
		s.root[put.Index], add.MetadataBytes, err = s.zeroSegment(ctx, length)
	default:
		put.Chunks = make([]object.ID, s.layout.SegmentChunks(put.Index))
		s.root[put.Index], add, err = s.merge(ctx, put)
	}
	return add, err
}

// merge writes a segment: chunks that were put, else those of the parent, else zeros.
func (s *sealer) merge(ctx context.Context, put ledger.Segment[object.ID]) (object.ID, repository.WriteStats, error) {
	var base segment
	if !put.Whole() {
		var err error
		if base, err = s.parent.segment(ctx, put.Index); err != nil {
			return object.EmptyID, repository.WriteStats{}, err
		}
	}
	var add repository.WriteStats
	entries := make([]entry, 0, len(put.Chunks))
	for i, id := range put.Chunks {
		start := int64(i) * s.layout.ChunkSize()
		var inherited []entry
		if i < base.count() {
			inherited = base.chunk(i)
		}
		pages := put.Pages[int64(i)]
		switch {
		case id != object.EmptyID:
			entries = append(entries, entry{Start: start, Length: s.layout.ChunkSize(), Object: id})
			continue
		case pages != nil:
			inherited = s.mergePages(start, pages, inherited)
		case len(inherited) == 0:
			entries = append(entries, entry{Start: start, Length: s.layout.ChunkSize(), Object: s.zero.chunk})
			continue
		default:
			add.ChunksInherited++
		}
		for _, e := range inherited {
			// What this writer has stored may not be in the index yet.
			if !s.zero.has(e.Object) && !slices.Contains(pages, e.Object) {
				if err := checkPresent(ctx, s.objects.committed, e.Object); err != nil {
					return object.EmptyID, add, fmt.Errorf("inherit chunk from parent: %w", err)
				}
			}
			entries = append(entries, e)
		}
	}
	id, fresh, err := s.objects.writeIndex(ctx, len(entries), func(i int) entry { return entries[i] })
	add.MetadataBytes = fresh
	return id, add, err
}

// mergePages returns the pages of one chunk: those that were put, else those of the parent.
// The chunk of the parent is in pages, or zero, or not needed.
func (s *sealer) mergePages(start int64, pages []object.ID, inherited []entry) []entry {
	if !slices.ContainsFunc(pages, func(id object.ID) bool { return id != s.zero.page }) {
		return []entry{{Start: start, Length: s.layout.ChunkSize(), Object: s.zero.chunk}}
	}
	zero := s.zero.is(inherited)
	result := make([]entry, len(pages))
	for i, id := range pages {
		switch {
		case id != object.EmptyID:
		case zero:
			id = s.zero.page
		default:
			id = inherited[i].Object
		}
		result[i] = entry{Start: start + int64(i)*s.layout.PageSize(), Length: s.layout.PageSize(), Object: id}
	}
	return result
}

// zeroSegment finds or writes a segment of zeros. It returns how many bytes of index were
// new.
func (s *sealer) zeroSegment(ctx context.Context, length int64) (object.ID, int64, error) {
	if id, ok := s.zeroSegments[length]; ok {
		return id, 0, nil
	}
	chunkSize := s.layout.ChunkSize()
	id, fresh, err := s.objects.writeIndex(ctx, int(length/chunkSize), func(i int) entry {
		return entry{Start: int64(i) * chunkSize, Length: chunkSize, Object: s.zero.chunk}
	})
	if err != nil {
		return object.EmptyID, 0, err
	}
	s.zeroSegments[length] = id
	return id, fresh, nil
}

// writeRoot stores the root of the first n segments. It returns how many bytes of index were
// new.
func (s *sealer) writeRoot(ctx context.Context, n int64) (object.ID, int64, error) {
	disk, fresh, err := s.objects.writeIndex(ctx, int(n), func(i int) entry {
		return entry{Start: int64(i) * s.layout.SegmentSize(), Length: s.layout.SegmentLength(int64(i)), Object: s.root[i]}
	})
	if err != nil {
		return object.EmptyID, 0, fmt.Errorf("write root: %w", err)
	}
	return disk, fresh, nil
}
