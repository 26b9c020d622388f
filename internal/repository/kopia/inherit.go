package kopia

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/repository"
)

// parentImage is what an incremental image inherits from. It remembers the segments at the
// places where the writer is. A nil parent has nothing. It is safe for concurrent use.
type parentImage struct {
	rep    repo.Repository
	image  image
	layout repository.Layout
	root   []object.ID

	// mu guards segments. It is held while one is read, so that it is read once.
	mu       sync.Mutex
	segments map[int64]segment
}

// loadParent reads the root of a parent and checks that all of its segments are
// in the repository.
func loadParent(ctx context.Context, rep repo.Repository, img image) (*parentImage, error) {
	// What another process has deleted since the hold was looked for must be seen.
	if err := refresh(ctx, rep); err != nil {
		return nil, err
	}
	l, err := repository.NewLayout(img.document.Meta)
	if err != nil {
		return nil, corrupt(err)
	}
	root, err := loadRoot(ctx, rep, img.disk, l)
	if err != nil {
		return nil, err
	}
	if i, err := checkSegments(ctx, rep, root); err != nil {
		return nil, fmt.Errorf("segment %d: %w", i, err)
	}
	return &parentImage{rep: rep, image: img, layout: l, root: root, segments: map[int64]segment{}}, nil
}

// checkSegments checks that segments are in the repository. It returns the index of
// one that is not.
func checkSegments(ctx context.Context, rep repo.Repository, root []object.ID) (int, error) {
	for i, id := range root {
		if i > 0 && id == root[i-1] {
			continue // a run of zeros
		}
		if err := checkPresent(ctx, rep, id); err != nil {
			return i, err
		}
	}
	return 0, nil
}

// at is the segment at an index and its length, which is 0 where there is none.
func (p *parentImage) at(index int64) (object.ID, int64) {
	if p == nil || index >= int64(len(p.root)) {
		return object.EmptyID, 0
	}
	return p.root[index], p.layout.SegmentLength(index)
}

// segment reads the segment at an index; it is empty where there is none.
func (p *parentImage) segment(ctx context.Context, index int64) (segment, error) {
	id, length := p.at(index)
	if length == 0 {
		return segment{}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.segments[index]; ok {
		return s, nil
	}
	s, err := p.load(ctx, id, length)
	if err != nil {
		return segment{}, fmt.Errorf("inherit from parent: %w", err)
	}
	p.segments[index] = s
	return s, nil
}

// load reads a segment. Maintenance may have moved it to another pack, which an index
// that was read before does not know.
func (p *parentImage) load(ctx context.Context, id object.ID, length int64) (segment, error) {
	s, err := loadSegment(ctx, p.rep, id, length, p.layout.ChunkSize())
	if !errors.Is(err, repository.ErrNotFound) {
		return s, err
	}
	if err := refresh(ctx, p.rep); err != nil {
		return segment{}, err
	}
	return loadSegment(ctx, p.rep, id, length, p.layout.ChunkSize())
}

// forget drops the segment at an index that the writer has left.
func (p *parentImage) forget(index int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.segments, index)
}
