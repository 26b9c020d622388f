package repositorytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/ledger"
)

// NewWriter implements repository.Store.
func (m *Memory) NewWriter(_ context.Context, meta repository.Meta, o repository.WriterOptions) (repository.VolumeWriter, error) {
	op := operation{o.Volume, o.Operation}
	if err := op.check(); err != nil {
		return nil, err
	}
	meta.Version, meta.Kind, meta.Parent = repository.MetaVersion, repository.Full, o.Parent
	w := &memoryWriter{store: m, operation: op, basis: o.Basis}
	var options ledger.Options
	if o.Parent != "" {
		meta.Kind = repository.Incremental
		var err error
		if _, w.parent, err = m.find(o.Parent); err != nil {
			return nil, err
		}
		if meta, err = meta.InheritLayout(w.parent.meta); err != nil {
			return nil, err
		}
		options.ParentSize = w.parent.meta.Size
	}
	meta = meta.WithDefaults()
	var err error
	if w.layout, err = repository.NewLayout(meta); err != nil {
		return nil, err
	}
	w.image = &volume{meta: meta, chunks: map[int64]string{}, paged: map[int64]bool{}}
	options.Resumed = m.resume(op, o.Basis, w.image)
	w.ledger = ledger.New[string](w.layout, options)
	return w, nil
}

// resume takes over what an earlier run of the operation has recorded of an image, and
// returns the number of segments. What it has recorded of another one is forgotten.
func (m *Memory) resume(op operation, basis string, v *volume) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.unfinished[op]
	if !ok {
		return 0
	}
	recorded := c.image.meta
	recorded.SnapshotTime = v.meta.SnapshotTime
	if recorded != v.meta || c.basis != basis || v.meta.SnapshotHandle == "" {
		delete(m.unfinished, op)
		return 0
	}
	maps.Copy(v.chunks, c.image.chunks)
	maps.Copy(v.paged, c.image.paged)
	return c.segments
}

// memoryWriter names a chunk or a page by what it holds.
type memoryWriter struct {
	store     *Memory
	operation operation
	basis     string
	layout    repository.Layout
	parent    *volume
	ledger    *ledger.Ledger[string]

	// sealing guards image, which has the segments that are sealed.
	sealing sync.Mutex
	image   *volume
}

// Meta implements repository.VolumeWriter.
func (w *memoryWriter) Meta() repository.Meta { return w.image.meta }

// Resumed implements repository.VolumeWriter.
func (w *memoryWriter) Resumed() int64 { return w.ledger.Resumed() }

// Put implements repository.VolumeWriter.
func (w *memoryWriter) Put(_ context.Context, first int64, data []byte) error {
	count, err := w.layout.CheckChunks(first, data)
	if err == nil {
		err = w.ledger.Check(first, count)
	}
	for i := int64(0); err == nil && i < count; i++ {
		chunk := data[i*w.layout.ChunkSize():][:w.layout.ChunkSize()]
		stored := ledger.Stored[string]{Whole: string(chunk), Bytes: w.layout.Extent(first + i).Length}
		err = w.ledger.Put(first+i, stored, w.stats(first+i, chunk))
	}
	return w.failed("put chunk", err)
}

// stats is what a chunk that is put adds.
func (w *memoryWriter) stats(chunk int64, data []byte) repository.WriteStats {
	add := repository.WriteStats{ChunksWritten: 1}
	switch {
	case block.IsZero(data):
		add.ZeroBytes = w.layout.Extent(chunk).Length
	case w.parent == nil || w.parent.chunks[chunk] != string(data):
		add.BytesUploaded = w.layout.Extent(chunk).Length
	}
	return add
}

// Paged implements repository.VolumeWriter.
func (w *memoryWriter) Paged(_ context.Context, chunk int64) (bool, error) {
	if w.ledger.MustBeWhole(chunk) || chunk >= w.parent.count() {
		return false, nil
	}
	return w.parent.chunks[chunk] == "" || w.parent.paged[chunk] && w.parent.meta.PageSize == w.layout.PageSize(), nil
}

// PutPages implements repository.VolumeWriter.
func (w *memoryWriter) PutPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	return w.failed("put pages", w.putPages(ctx, chunk, runs))
}

func (w *memoryWriter) putPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	total, err := w.layout.CheckPages(chunk, runs)
	if err != nil {
		return err
	}
	if paged, err := w.Paged(ctx, chunk); err != nil || !paged && total < w.layout.ChunkSize() {
		return errors.Join(err, errors.New("the parent does not have the chunk in pages"))
	}
	pages := make([]string, w.layout.ChunkPages())
	for _, run := range runs {
		for off := int64(0); off < int64(len(run.Data)); off += w.layout.PageSize() {
			pages[(run.Offset+off)/w.layout.PageSize()] = string(run.Data[off:][:w.layout.PageSize()])
		}
	}
	stored := ledger.Stored[string]{Pages: pages, Bytes: total}
	return w.ledger.Put(chunk, stored, w.stats(chunk, []byte(w.merge(chunk, pages))))
}

// merge is a chunk of which pages were put.
func (w *memoryWriter) merge(chunk int64, pages []string) string {
	inherited := w.inherited(chunk)
	var merged strings.Builder
	for i, page := range pages {
		if page == "" {
			page = inherited[int64(i)*w.layout.PageSize():][:w.layout.PageSize()]
		}
		merged.WriteString(page)
	}
	return merged.String()
}

// inherited is a chunk of the parent.
func (w *memoryWriter) inherited(chunk int64) string {
	if chunk < w.parent.count() {
		if data, ok := w.parent.chunks[chunk]; ok {
			return data
		}
	}
	return string(make([]byte, w.layout.ChunkSize()))
}

// Advance implements repository.VolumeWriter.
func (w *memoryWriter) Advance(_ context.Context, chunk int64) error {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	return w.failed("advance", w.sealUpTo(chunk))
}

// sealUpTo completes all segments that end before a chunk, and makes a checkpoint of them.
func (w *memoryWriter) sealUpTo(chunk int64) error {
	for {
		put, ok, err := w.ledger.Next(chunk)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		w.ledger.Sealed(repository.WriteStats{ChunksInherited: w.seal(put)})
	}
	done, err := w.ledger.Progress()
	if err != nil {
		return err
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	image := &volume{meta: w.image.meta, chunks: maps.Clone(w.image.chunks), paged: maps.Clone(w.image.paged)}
	w.store.unfinished[w.operation] = checkpoint{image, done.Sealed, w.basis}
	w.ledger.Recorded()
	return nil
}

// seal completes a segment, and returns how many chunks are the parent's.
func (w *memoryWriter) seal(put ledger.Segment[string]) int64 {
	var kept int64
	for i := range w.layout.SegmentChunks(put.Index) {
		chunk := w.layout.ChunkAt(w.layout.EndOf(put.Index)) + i
		var data string
		switch {
		case put.Chunks != nil && put.Chunks[i] != "":
			data = put.Chunks[i]
		case put.Pages[i] != nil:
			data, w.image.paged[chunk] = w.merge(chunk, put.Pages[i]), true
		case chunk < w.parent.count():
			data, w.image.paged[chunk] = w.inherited(chunk), w.parent.paged[chunk]
			kept++
		}
		if !block.IsZero([]byte(data)) {
			w.image.chunks[chunk] = data
		}
	}
	return kept
}

// Commit implements repository.VolumeWriter.
func (w *memoryWriter) Commit(_ context.Context, s repository.Snapshot) (repository.SnapshotID, repository.WriteStats, error) {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	err := w.sealUpTo(w.layout.Chunks())
	if err == nil {
		err = w.ledger.Finish()
	}
	if err != nil {
		return "", repository.WriteStats{}, w.failed("commit", err)
	}
	return w.store.save(w.operation, s, w.image), w.ledger.Stats(), nil
}

// failed ends the ledger where there is an error, and wraps it.
func (w *memoryWriter) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return w.ledger.Fail(fmt.Errorf("%s: %w", what, err))
}

// Close implements repository.VolumeWriter.
func (w *memoryWriter) Close(_ context.Context, how repository.Ending) error {
	if w.ledger.End() && how == repository.Discard {
		w.store.mu.Lock()
		defer w.store.mu.Unlock()
		delete(w.store.unfinished, w.operation)
	}
	return nil
}
