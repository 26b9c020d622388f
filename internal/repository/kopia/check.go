package kopia

import (
	"context"
	"fmt"

	"github.com/blockmover/blockmover/internal/repository"
)

// Check implements repository.Catalog.
func (s *Store) Check(ctx context.Context, id repository.SnapshotID) error {
	if err := s.check(ctx, id); err != nil {
		return fmt.Errorf("check image of repo snapshot %s: %w", id, mark(err))
	}
	return nil
}

func (s *Store) check(ctx context.Context, id repository.SnapshotID) error {
	r, err := s.openReader(ctx, id)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // it only waits
	if r.ranges == nil {
		return errNoStorage
	}
	packs := packSet{}
	for i, object := range r.root {
		r.walk.reach(ctx, r, int64(i))
		if i > 0 && object == r.root[i-1] {
			continue // a run of zeros
		}
		segment, err := r.segment(ctx, object, r.layout.SegmentLength(int64(i)))
		if err != nil {
			return fmt.Errorf("segment %d: %w", i, err)
		}
		for c := range segment.count() {
			for _, e := range segment.chunk(c) {
				if err := packs.add(ctx, s.rep, firstContent(e.Object)); err != nil {
					return fmt.Errorf("chunk %d of segment %d: %w", c, i, err)
				}
			}
		}
	}
	return packs.check(ctx, r.ranges.blobs)
}
