package kopia

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// cachedSegments is how many parsed segments a reader keeps, of about 7 KiB each. It is
// enough for all places that a restore reads from at once.
const cachedSegments = 64

// reader reads one image.
type reader struct {
	ctx context.Context //nolint:containedctx // it is that of OpenReader: io.ReaderAt takes none
	rep repo.Repository
	// name is that of the image, for errors, to which explain adds what is known.
	name    string
	explain func(error) error
	meta    repository.Meta
	layout  repository.Layout
	root    []object.ID
	zero    map[object.ID]bool
	ranges  *rangeReader
	walk    *walk
	regions *regions

	mu    sync.Mutex
	cache map[object.ID]segment
	order []object.ID
}

// OpenReader implements repository.Store.
func (s *Store) OpenReader(ctx context.Context, id repository.SnapshotID) (repository.VolumeReader, error) {
	r, err := s.openReader(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("open image of repo snapshot %s: %w", id, mark(err))
	}
	return r, nil
}

func (s *Store) openReader(ctx context.Context, id repository.SnapshotID) (*reader, error) {
	snap, img, err := s.load(ctx, id)
	if err != nil {
		return nil, err
	}
	l, err := repository.NewLayout(img.document.Meta)
	if err != nil {
		return nil, corrupt(err)
	}
	r := &reader{
		ctx:     ctx,
		rep:     s.rep,
		explain: s.explainIndex,
		name:    fmt.Sprintf("image %s of volume %s", id, snap.Volume),
		meta:    img.document.Meta,
		layout:  l,
		zero:    map[object.ID]bool{},
		ranges:  newRangeReader(s.rep),
		walk:    newWalk(),
		regions: newRegions(),
		cache:   map[object.ID]segment{},
	}
	if r.root, err = loadRoot(ctx, s.rep, img.disk, l); err != nil {
		return nil, s.explainImage(ctx, snap.Volume, err)
	}
	// What is called zero is never read, so it is checked here. A zero object that cannot be read
	// is not used. It may be gone, because garbage collection does not know volume.json. If it is
	// damaged, the reads of it fail, and say what part of the volume that is.
	for _, z := range img.document.Zero {
		buf := make([]byte, z.Length)
		err := r.readContent(ctx, buf, 0, entry{Length: z.Length, Object: z.Object})
		switch {
		case errors.Is(err, repository.ErrNotFound), isDamaged(err):
			continue
		case err != nil:
			return nil, fmt.Errorf("read zero object: %w", err)
		case !block.IsZero(buf):
			return nil, corrupt(fmt.Errorf("object %v is called zero and is not", z.Object))
		}
		r.zero[z.Object] = true
	}
	return r, nil
}

// Meta implements repository.VolumeReader.
func (r *reader) Meta() repository.Meta { return r.meta }

// ReadInOrder implements repository.VolumeReader.
func (r *reader) ReadInOrder() { r.regions.fetchAll(r) }

// Close implements repository.VolumeReader.
func (r *reader) Close() error {
	r.regions.close()
	r.walk.loading.Wait()
	return nil
}

// IsZero implements repository.VolumeReader.
func (r *reader) IsZero(ctx context.Context, chunk int64) (bool, error) {
	if err := r.layout.CheckChunk(chunk); err != nil {
		return false, fmt.Errorf("look up chunk: %w", err)
	}
	index, _ := r.layout.SegmentAt(chunk)
	r.walk.reach(ctx, r, index)
	entries, err := r.chunk(ctx, chunk)
	if err != nil {
		return false, fmt.Errorf("look up chunk %d of %s: %w", chunk, r.name, r.explain(mark(err)))
	}
	for _, e := range entries {
		if !r.zero[e.Object] {
			return false, nil
		}
	}
	return true, nil
}

// ReadAt implements io.ReaderAt.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: negative offset", r.name, off)
	}
	if off >= r.meta.Size {
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > r.meta.Size-off {
		p = p[:r.meta.Size-off]
		atEnd = io.EOF
	}
	if err := r.read(p, off); err != nil {
		return 0, fmt.Errorf("read %s at %d: %w", r.name, off, r.explain(mark(err)))
	}
	return len(p), atEnd
}

// part is the share of one entry in a read.
type part struct {
	entry
	// skip is where the part begins in the entry.
	skip int64
	to   []byte
}

// read fills p from an offset. The whole range is in the image.
func (r *reader) read(p []byte, off int64) error {
	parts, err := r.parts(p, off)
	if err != nil {
		return err
	}
	ahead := r.regions.enter(r, off, int64(len(p)))
	defer r.regions.leave(ahead)
	ctx, ok := r.regions.wait(r.ctx, ahead)
	if !ok {
		ids := make([]content.ID, len(parts))
		for i, part := range parts {
			ids[i], _, _ = part.Object.ContentID()
		}
		var release func()
		if ctx, release, err = r.ranges.fetch(r.ctx, ids); err != nil {
			return err
		}
		defer release()
	}
	for _, part := range parts {
		if r.readFetched(ctx, part) {
			continue
		}
		if err := r.readContent(ctx, part.to, part.skip, part.entry); err != nil {
			return err
		}
	}
	return nil
}

// readFetched fills a part that is a whole content which was fetched.
func (r *reader) readFetched(ctx context.Context, p part) bool {
	id, compressed, direct := p.Object.ContentID()
	return direct && !compressed && int64(len(p.to)) == p.Length && r.ranges != nil && r.ranges.read(ctx, id, p.to)
}

// parts divides a read among entries, and fills in zeros at once.
func (r *reader) parts(p []byte, off int64) ([]part, error) {
	var parts []part
	for len(p) > 0 {
		chunk := r.layout.ChunkAt(off)
		entries, err := r.chunk(r.ctx, chunk)
		if err != nil {
			return nil, err
		}
		within := off - chunk*r.layout.ChunkSize()
		for _, e := range entries {
			skip := within - (e.Start - entries[0].Start)
			if skip >= e.Length {
				continue
			}
			to := p[:min(int64(len(p)), e.Length-skip)]
			if r.zero[e.Object] {
				clear(to)
			} else {
				parts = append(parts, part{e, skip, to})
			}
			p = p[len(to):]
			off += int64(len(to))
			within += int64(len(to))
			if len(p) == 0 {
				break
			}
		}
	}
	return parts, nil
}

// readContent fills p from the given place in the content of one entry.
func (r *reader) readContent(ctx context.Context, p []byte, skip int64, e entry) error {
	o, err := r.rep.OpenObject(ctx, e.Object)
	if err != nil {
		return fmt.Errorf("open object %v: %w", e.Object, translate(err))
	}
	defer o.Close() //nolint:errcheck // it holds nothing
	if o.Length() != e.Length {
		return corrupt(fmt.Errorf("object %v has length %d, want %d", e.Object, o.Length(), e.Length))
	}
	if _, err := o.Seek(skip, io.SeekStart); err != nil {
		return fmt.Errorf("seek in object %v: %w", e.Object, err)
	}
	if _, err := io.ReadFull(o, p); err != nil {
		return fmt.Errorf("read object %v: %w", e.Object, translate(err))
	}
	return nil
}

// chunk returns the entries of a chunk. There is always at least one.
func (r *reader) chunk(ctx context.Context, chunk int64) ([]entry, error) {
	index, within := r.layout.SegmentAt(chunk)
	s, err := r.segment(ctx, r.root[index], r.layout.SegmentLength(index))
	if err != nil {
		return nil, fmt.Errorf("segment %d: %w", index, err)
	}
	return s.chunk(int(within)), nil
}

// segment returns a parsed segment, from the cache if possible. Two goroutines may load the
// same one, which is harmless.
func (r *reader) segment(ctx context.Context, id object.ID, length int64) (segment, error) {
	r.mu.Lock()
	s, ok := r.cache[id]
	r.mu.Unlock()
	if ok && int64(s.count())*r.layout.ChunkSize() != length {
		return segment{}, corrupt(errors.New("one segment stands for two of different length"))
	}
	if ok {
		return s, nil
	}
	s, err := loadSegment(ctx, r.rep, id, length, r.layout.ChunkSize())
	if err != nil {
		return segment{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.cache[id]; !ok {
		if len(r.order) == cachedSegments {
			delete(r.cache, r.order[0])
			r.order = r.order[1:]
		}
		r.cache[id] = s
		r.order = append(r.order, id)
	}
	return s, nil
}
