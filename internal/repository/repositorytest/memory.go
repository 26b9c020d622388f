// Package repositorytest holds the contract of repository.Store as a test
// suite, and a Store in memory.
package repositorytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// Memory is a Store in memory. It is safe for concurrent use.
type Memory struct {
	mu        sync.Mutex
	next      int
	images    map[string]*volume
	snapshots map[repository.SnapshotID]entry
	// unfinished is what operations have recorded in Advance.
	unfinished map[operation]checkpoint
}

type operation struct {
	volume repository.VolumeKey
	id     string
}

type checkpoint struct {
	meta repository.Meta
	put  map[int64]string
	end  int64
}

type entry struct {
	repository.Snapshot
	root string
}

// volume is one image: its chunks that are not zero.
type volume struct {
	meta   repository.Meta
	chunks map[int64]string
	// paged are the chunks that were last put in pages.
	paged map[int64]bool
}

var _ repository.Store = (*Memory)(nil)

// NewMemory returns an empty Store.
func NewMemory() *Memory {
	return &Memory{images: map[string]*volume{}, snapshots: map[repository.SnapshotID]entry{}, unfinished: map[operation]checkpoint{}}
}

func (m *Memory) name(kind string) string {
	m.next++
	return kind + "-" + strconv.Itoa(m.next)
}

// Save implements repository.Catalog.
func (m *Memory) Save(_ context.Context, s repository.Snapshot, img repository.Image) (repository.SnapshotID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	op := operation{s.Volume, s.Tags[repository.TagOperation]}
	if err := op.check(); err != nil {
		return "", err
	}
	if m.images[img.Root] == nil {
		return "", fmt.Errorf("image %q: %w", img.Root, repository.ErrNotFound)
	}
	for id, e := range m.snapshots {
		if e.Volume == s.Volume && e.Tags[repository.TagOperation] == op.id {
			return id, nil
		}
	}
	s.ID = repository.SnapshotID(m.name("snapshot"))
	s.Meta = m.images[img.Root].meta
	s.Tags = maps.Clone(s.Tags)
	s.Damage = nil
	delete(m.unfinished, op)
	m.snapshots[s.ID] = entry{s, img.Root}
	return s.ID, nil
}

func (o operation) check() error {
	switch {
	case o.id == "":
		return errors.New("operation ID is missing")
	case o.volume.Namespace == "" || o.volume.PVC == "":
		return errors.New("volume is missing")
	}
	return nil
}

// Get implements repository.Catalog.
func (m *Memory) Get(_ context.Context, id repository.SnapshotID) (repository.Snapshot, error) {
	s, _, err := m.find(id)
	return s, err
}

func (m *Memory) find(id repository.SnapshotID) (repository.Snapshot, *volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.snapshots[id]
	if !ok {
		return repository.Snapshot{}, nil, fmt.Errorf("repo snapshot %s: %w", id, repository.ErrNotFound)
	}
	return e.Snapshot, m.images[e.root], nil
}

// List implements repository.Catalog.
func (m *Memory) List(_ context.Context, v repository.VolumeKey) ([]repository.Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var result []repository.Snapshot
	for _, e := range m.snapshots {
		if e.Volume == v {
			result = append(result, e.Snapshot)
		}
	}
	slices.SortFunc(result, func(a, b repository.Snapshot) int { return b.Meta.SnapshotTime.Compare(a.Meta.SnapshotTime) })
	return result, nil
}

// Volumes implements repository.Catalog.
func (m *Memory) Volumes(context.Context) ([]repository.VolumeKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[repository.VolumeKey]bool{}
	for _, e := range m.snapshots {
		found[e.Volume] = true
	}
	return slices.SortedFunc(maps.Keys(found), repository.VolumeKey.Compare), nil
}

// Delete implements repository.Catalog.
func (m *Memory) Delete(_ context.Context, id repository.SnapshotID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.snapshots, id)
	return nil
}

// NewWriter implements repository.Store.
func (m *Memory) NewWriter(_ context.Context, meta repository.Meta, o repository.WriterOptions) (repository.VolumeWriter, error) {
	op, parent := operation{o.Volume, o.Operation}, o.Parent
	if err := op.check(); err != nil {
		return nil, err
	}
	meta.Version, meta.Kind, meta.Parent = repository.MetaVersion, repository.Full, parent
	w := &memoryWriter{store: m, operation: op, put: map[int64]string{}, paged: map[int64]bool{}}
	if parent != "" {
		meta.Kind = repository.Incremental
		var err error
		if _, w.parent, err = m.find(parent); err != nil {
			return nil, err
		}
		p := w.parent.meta
		if meta.ChunkSize == 0 {
			meta.ChunkSize = p.ChunkSize
		}
		if meta.SegmentSize == 0 {
			meta.SegmentSize = p.SegmentSize
		}
		if meta.ChunkSize != p.ChunkSize || meta.SegmentSize != p.SegmentSize {
			return nil, errors.New("chunk or segment size differs from the parent's")
		}
	}
	meta = meta.WithDefaults()
	var err error
	w.geometry, err = block.NewGeometry(meta.Size, meta.ChunkSize)
	w.meta = meta
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.unfinished[op]
	c.meta.SnapshotTime = meta.SnapshotTime
	if c.meta == meta && meta.SnapshotHandle != "" {
		w.put, w.advanced, w.resumed = maps.Clone(c.put), c.end, c.end
	} else {
		delete(m.unfinished, op)
	}
	return w, err
}

type memoryWriter struct {
	store     *Memory
	operation operation
	meta      repository.Meta
	geometry  block.Geometry
	parent    *volume
	resumed   int64

	mu       sync.Mutex
	put      map[int64]string
	paged    map[int64]bool
	advanced int64
	stats    repository.WriteStats
	// over is set by an error, ended by what ends a writer; both by Commit.
	over, ended bool
}

func (w *memoryWriter) Meta() repository.Meta { return w.meta }

func (w *memoryWriter) Resumed() int64 { return w.resumed }

func (w *memoryWriter) Put(_ context.Context, first int64, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := int64(len(data)); n == 0 || n%w.meta.ChunkSize != 0 {
		w.over = true
		return fmt.Errorf("put: %d bytes, want whole chunks of %d", n, w.meta.ChunkSize)
	}
	for i := range int64(len(data)) / w.meta.ChunkSize {
		if err := w.putLocked(first+i, data[i*w.meta.ChunkSize:][:w.meta.ChunkSize]); err != nil {
			return err
		}
	}
	return nil
}

func (w *memoryWriter) putLocked(chunk int64, data []byte) error {
	_, twice := w.put[chunk]
	err := w.geometry.CheckChunk(chunk)
	switch {
	case w.over:
		return errors.New("put: the image is committed, aborted or has failed")
	case err != nil:
	case !block.IsZero(data[w.geometry.Extent(chunk).Length:]):
		err = errors.New("put: padding is not zero")
	case twice || chunk < w.advanced:
		err = fmt.Errorf("put: chunk %d comes too late", chunk)
	}
	if err != nil {
		w.over = true
		return err
	}
	w.put[chunk] = string(data)
	w.stats.ChunksWritten++
	if block.IsZero(data) {
		w.stats.ZeroBytes += w.geometry.Extent(chunk).Length
	} else if w.parent == nil || w.parent.chunks[chunk] != string(data) {
		w.stats.BytesUploaded += w.geometry.Extent(chunk).Length
	}
	return nil
}

// Paged implements repository.VolumeWriter.
func (w *memoryWriter) Paged(_ context.Context, chunk int64) (bool, error) {
	if w.parent == nil {
		return false, nil
	}
	p := w.parent.meta
	end := min(p.Size, w.meta.Size)
	if chunk*w.meta.ChunkSize >= end || p.Size != w.meta.Size && chunk == end/w.meta.ChunkSize {
		return false, nil
	}
	return w.parent.chunks[chunk] == "" || w.parent.paged[chunk] && p.PageSize == w.meta.PageSize, nil
}

func (w *memoryWriter) PutPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	buf := make([]byte, w.meta.ChunkSize)
	if w.parent != nil {
		copy(buf, w.parent.chunks[chunk])
	}
	var total, end int64
	for _, run := range runs {
		n := int64(len(run.Data))
		if run.Offset < end || n == 0 || (run.Offset|n)%w.meta.PageSize != 0 || run.Offset+n > w.meta.ChunkSize {
			return w.spoil(fmt.Errorf("put pages: %d bytes at %d", n, run.Offset))
		}
		end = run.Offset + int64(copy(buf[run.Offset:], run.Data))
		total += n
	}
	paged, err := w.Paged(ctx, chunk)
	if err != nil || total == 0 || total < w.meta.ChunkSize && !paged {
		return w.spoil(fmt.Errorf("put pages: %d bytes, not in pages", total))
	}
	if err := w.Put(ctx, chunk, buf); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paged[chunk] = true
	return nil
}

func (w *memoryWriter) spoil(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	return err
}

func (w *memoryWriter) Advance(_ context.Context, chunk int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || chunk < 0 || chunk > w.geometry.Chunks() {
		w.over = true
		return fmt.Errorf("advance to chunk %d of %d", chunk, w.geometry.Chunks())
	}
	perSegment := w.meta.SegmentSize / w.meta.ChunkSize
	if chunk < w.geometry.Chunks() {
		chunk -= chunk % perSegment
	}
	if chunk <= w.advanced {
		return nil
	}
	w.advanced = chunk
	done := maps.Clone(w.put)
	maps.DeleteFunc(done, func(c int64, _ string) bool { return c >= chunk })
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.unfinished[w.operation] = checkpoint{w.meta, done, chunk}
	return nil
}

func (w *memoryWriter) Commit(context.Context) (repository.Image, repository.WriteStats, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return repository.Image{}, repository.WriteStats{}, errors.New("commit: the image is committed, aborted or has failed")
	}
	w.over, w.ended = true, true
	v := &volume{meta: w.meta, chunks: map[int64]string{}, paged: w.paged}
	if w.parent != nil {
		p := w.parent.meta
		end := min(p.Size, w.meta.Size)
		_, put := w.put[end/w.meta.ChunkSize]
		if p.Size != w.meta.Size && end%w.meta.ChunkSize != 0 && !put {
			return repository.Image{}, repository.WriteStats{}, errors.New("commit: the chunk in which the smaller volume ends was not put")
		}
		w.stats.ChunksInherited = w.inherit(v)
	}
	for c, data := range w.put {
		if block.IsZero([]byte(data)) {
			delete(v.chunks, c)
		} else {
			v.chunks[c] = data
		}
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	root := w.store.name("image")
	w.store.images[root] = v
	return repository.Image{Root: root, Meta: w.meta}, w.stats, nil
}

// inherit takes what the parent has and counts the chunks that stay.
func (w *memoryWriter) inherit(v *volume) int64 {
	g, err := block.NewGeometry(w.parent.meta.Size, w.parent.meta.ChunkSize)
	if err != nil {
		return 0
	}
	var kept int64
	for c := range min(g.Chunks(), w.geometry.Chunks()) {
		if data, ok := w.parent.chunks[c]; ok {
			v.chunks[c] = data
		}
		if _, put := w.put[c]; !put {
			v.paged[c] = w.parent.paged[c]
			kept++
		}
	}
	return kept
}

func (w *memoryWriter) Abort() {
	if w.end() {
		w.store.mu.Lock()
		defer w.store.mu.Unlock()
		delete(w.store.unfinished, w.operation)
	}
}

func (w *memoryWriter) Suspend() { w.end() }

// end reports whether it was this call that ended the writer.
func (w *memoryWriter) end() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := !w.ended
	w.over, w.ended = true, true
	return first
}

// OpenReader implements repository.Store.
func (m *Memory) OpenReader(_ context.Context, id repository.SnapshotID) (repository.VolumeReader, error) {
	_, v, err := m.find(id)
	if err != nil {
		return nil, err
	}
	return memoryReader{v}, nil
}

// Compare implements repository.Store.
func (m *Memory) Compare(_ context.Context, a, b repository.SnapshotID, emit func(block.Extent) error) error {
	_, x, err := m.find(a)
	if err != nil {
		return err
	}
	_, y, err := m.find(b)
	if err != nil {
		return err
	}
	end, size := min(x.meta.Size, y.meta.Size), x.meta.ChunkSize
	if size != y.meta.ChunkSize {
		return emit(block.Extent{Length: end})
	}
	var last block.Extent
	for off := int64(0); off < end; off += size {
		if x.chunks[off/size] == y.chunks[off/size] {
			continue
		}
		if off > last.End() || last.Length == 0 {
			if last.Length > 0 {
				if err := emit(last); err != nil {
					return err
				}
			}
			last.Offset = off
		}
		last.Length = min(off+size, end) - last.Offset
	}
	if last.Length == 0 {
		return nil
	}
	return emit(last)
}

// Close implements repository.Store.
func (m *Memory) Close(context.Context) error { return nil }

type memoryReader struct{ *volume }

func (r memoryReader) Meta() repository.Meta { return r.meta }

func (r memoryReader) Close() error { return nil }

func (r memoryReader) IsZero(_ context.Context, chunk int64) (bool, error) {
	g, err := block.NewGeometry(r.meta.Size, r.meta.ChunkSize)
	if err == nil {
		err = g.CheckChunk(chunk)
	}
	_, data := r.chunks[chunk]
	return !data, err
}

// Matches implements repository.VolumeReader.
func (r memoryReader) Matches(ctx context.Context, chunk int64, data []byte) (bool, error) {
	zero, err := r.IsZero(ctx, chunk)
	switch {
	case err != nil:
		return false, err
	case int64(len(data)) != r.meta.ChunkSize:
		return false, fmt.Errorf("compare: %d bytes, want %d", len(data), r.meta.ChunkSize)
	case zero:
		return block.IsZero(data), nil
	}
	return r.chunks[chunk] == string(data), nil
}

func (r memoryReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read image: negative offset")
	}
	n := 0
	for n < len(p) && off < r.meta.Size {
		within := off % r.meta.ChunkSize
		part := p[n:]
		part = part[:min(int64(len(part)), r.meta.ChunkSize-within, r.meta.Size-off)]
		if data, ok := r.chunks[off/r.meta.ChunkSize]; ok {
			copy(part, data[within:])
		} else {
			clear(part)
		}
		n += len(part)
		off += int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
