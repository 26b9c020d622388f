package kopia

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// Paged implements repository.VolumeWriter.
func (w *writer) Paged(ctx context.Context, chunk int64) (bool, error) {
	if err := w.layout.CheckChunk(chunk); err != nil {
		return false, w.fail(fmt.Errorf("look up chunk: %w", err))
	}
	paged, err := w.paged(ctx, chunk)
	if err != nil {
		return false, w.fail(fmt.Errorf("look up chunk %d: %w", chunk, err))
	}
	return paged, nil
}

func (w *writer) paged(ctx context.Context, chunk int64) (bool, error) {
	w.mu.Lock()
	tail := w.tail
	w.mu.Unlock()
	if w.parent == nil || chunk == tail {
		return false, nil // of the tail, the parent has what is padding in one of both
	}
	base, err := w.base(ctx, chunk/w.layout.perSegment())
	if err != nil {
		return false, err
	}
	i := int(chunk % w.layout.perSegment())
	if i >= base.count() {
		return false, nil
	}
	entries := base.chunk(i)
	if w.isZero(entries) {
		return true, nil
	}
	return !slices.ContainsFunc(entries, func(e entry) bool { return e.Length != w.layout.page }), nil
}

// isZero reports whether a chunk is the zero chunk. Only the writer's own is
// recognised: what the parent's document calls zero was not checked.
func (w *writer) isZero(entries []entry) bool {
	return len(entries) == 1 && entries[0].Object == w.zero
}

// PutPages implements repository.VolumeWriter.
func (w *writer) PutPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	if err := w.putPages(ctx, chunk, runs); err != nil {
		return w.fail(fmt.Errorf("put pages of chunk %d: %w", chunk, err))
	}
	return nil
}

func (w *writer) putPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	if err := w.layout.CheckChunk(chunk); err != nil {
		return err
	}
	total, err := w.checkRuns(chunk, runs)
	if err != nil {
		return err
	}
	if total < w.layout.ChunkSize() {
		paged, err := w.paged(ctx, chunk)
		if err != nil {
			return err
		}
		if !paged {
			return fmt.Errorf("%d bytes, want all %d: the parent does not have it in pages", total, w.layout.ChunkSize())
		}
	}
	if err := w.check(chunk); err != nil {
		return err
	}
	w.storing.RLock()
	defer w.storing.RUnlock()
	ids := make([]object.ID, w.layout.ChunkSize()/w.layout.page)
	stats := repository.WriteStats{ChunksWritten: 1}
	var (
		pages   []int64
		objects [][]byte
	)
	for _, run := range runs {
		for off := int64(0); off < int64(len(run.Data)); off += w.layout.page {
			page, data := (run.Offset+off)/w.layout.page, run.Data[off:off+w.layout.page]
			if block.IsZero(data) {
				ids[page] = w.zeroPage
				stats.ZeroBytes += w.pageLength(chunk, page)
				continue
			}
			pages, objects = append(pages, page), append(objects, data)
		}
	}
	err = w.objects.writeAll(ctx, objects, func(i int, id object.ID, fresh int64) error {
		ids[pages[i]] = id
		stats.BytesUploaded += min(fresh, w.pageLength(chunk, pages[i]))
		return nil
	})
	if err != nil {
		return err
	}
	return w.recordIn(chunk, stats, total, func(s *openSegment, within int64) { s.pages[within] = ids })
}

// checkRuns checks the shape of what PutPages is given, and adds it up.
func (w *writer) checkRuns(chunk int64, runs []repository.Pages) (int64, error) {
	size := w.layout.Extent(chunk).Length
	var total, end int64
	for _, run := range runs {
		n := int64(len(run.Data))
		if run.Offset < end || n == 0 || n > w.layout.ChunkSize()-run.Offset || (run.Offset|n)%w.layout.page != 0 {
			return 0, fmt.Errorf("%d bytes at %d are not the next pages of %d bytes", n, run.Offset, w.layout.page)
		}
		if inside := max(size-run.Offset, 0); n > inside && !block.IsZero(run.Data[inside:]) {
			return 0, errors.New("padding after the end of the volume is not zero")
		}
		end = run.Offset + n
		total += n
	}
	if total == 0 {
		return 0, errors.New("no pages")
	}
	return total, nil
}

// pageLength is how many bytes of the volume a page of a chunk has, without the
// padding, which nobody read.
func (w *writer) pageLength(chunk, page int64) int64 {
	return min(max(w.layout.Extent(chunk).Length-page*w.layout.page, 0), w.layout.page)
}

// mergePages lists the pages of one chunk: what was put, else the parent's. The
// parent's are in pages, or one zero, or not needed.
func (w *writer) mergePages(start int64, pages []object.ID, inherited []entry) []entry {
	if !slices.ContainsFunc(pages, func(id object.ID) bool { return id != w.zeroPage }) {
		return []entry{{Start: start, Length: w.layout.ChunkSize(), Object: w.zero}}
	}
	zero := w.isZero(inherited)
	result := make([]entry, len(pages))
	for i, id := range pages {
		switch {
		case id != object.EmptyID:
		case zero:
			id = w.zeroPage
		default:
			id = inherited[i].Object
		}
		result[i] = entry{Start: start + int64(i)*w.layout.page, Length: w.layout.page, Object: id}
	}
	return result
}

// base is the parent's segment at an index; it is empty where there is none.
func (w *writer) base(ctx context.Context, index int64) (segment, error) {
	id, length := w.inherited(index)
	if length == 0 {
		return segment{}, nil
	}
	w.inheriting.Lock()
	defer w.inheriting.Unlock()
	if s, ok := w.bases[index]; ok {
		return s, nil
	}
	s, err := w.loadInherited(ctx, id, length)
	if err != nil {
		return segment{}, fmt.Errorf("inherit from parent: %w", err)
	}
	w.bases[index] = s
	return s, nil
}

// dropBase forgets the parent's segment at an index that is not open any more.
func (w *writer) dropBase(index int64) {
	w.inheriting.Lock()
	defer w.inheriting.Unlock()
	delete(w.bases, index)
}

// loadInherited reads a segment of the parent. Maintenance may have moved it
// to another pack, which an index that was read before does not know.
func (w *writer) loadInherited(ctx context.Context, id object.ID, length int64) (segment, error) {
	s, err := loadSegment(ctx, w.rep, id, length, w.layout.ChunkSize())
	if !errors.Is(err, repository.ErrNotFound) {
		return s, err
	}
	if err := w.rep.Refresh(ctx); err != nil {
		return segment{}, fmt.Errorf("refresh repository index: %w", err)
	}
	return loadSegment(ctx, w.rep, id, length, w.layout.ChunkSize())
}
