package kopia

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/ledger"
)

// closeTimeout bounds Close, which may have to work with a context that is over.
const closeTimeout = 30 * time.Second

// writer builds one image. The ledger knows what may be put and what was put, the
// objectWriter stores it, the sealer stores the indexes of it, and the hold keeps it.
//
// A goroutine takes locks in this order, and may leave some out:
//
//	sealing            one goroutine seals segments, makes a checkpoint, closes
//	storing            many goroutines store chunks, or one makes a checkpoint
//	parentImage.mu     one goroutine reads a segment of the parent
//	ledger, written    for the time of one call, and last
type writer struct {
	rep     repo.Repository
	objects *objectWriter
	layout  repository.Layout
	doc     document
	ledger  *ledger.Ledger[object.ID]

	// storing is held for reading while a chunk is stored and recorded: a checkpoint
	// must not flush what it does not refer to.
	storing sync.RWMutex

	// sealing guards what follows, except for sealer.paged, and for sealer.zero, which
	// does not change.
	sealing sync.Mutex
	sealer  *sealer
	hold    *hold
}

// NewWriter implements repository.Store.
func (s *Store) NewWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (repository.VolumeWriter, error) {
	w, err := s.newWriter(ctx, meta, o)
	if err != nil {
		return nil, fmt.Errorf("start image: %w", mark(err))
	}
	return w, nil
}

func (s *Store) newWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (_ *writer, err error) {
	if err := checkVolume(o.Volume); err != nil {
		return nil, err
	}
	if o.Operation == "" {
		return nil, errNoOperation
	}
	meta, from, err := s.inherit(ctx, meta, o.Parent)
	if err != nil {
		return nil, err
	}
	layout, err := repository.NewLayout(meta)
	if err != nil {
		return nil, err
	}
	h, err := newHold(ctx, s.rep, o, s.holdDelay)
	if err != nil {
		return nil, err
	}
	_, session, err := s.rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "Blockmover backup"})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, session.Close(ctx))
		}
	}()
	objects, err := newObjectWriter(s.rep, session, o.Compression)
	if err != nil {
		return nil, err
	}
	defer func() {
		// A run that is canceled, or has lost the object store, is continued by the next one.
		if err != nil && ctx.Err() == nil && !errors.Is(mark(err), repository.ErrUnavailable) {
			err = errors.Join(err, h.release(ctx))
		}
	}()
	w := &writer{rep: s.rep, objects: objects, hold: h, layout: layout, doc: document{Meta: meta, Zero: from.document.Zero}}
	if err := w.begin(ctx, from, o.CheckpointInterval); err != nil {
		return nil, err
	}
	return w, nil
}

// inherit completes the meta of an image, and finds its parent where it has one.
func (s *Store) inherit(ctx context.Context, meta repository.Meta, parent repository.SnapshotID) (repository.Meta, image, error) {
	meta.Version, meta.Kind, meta.Parent = repository.MetaVersion, repository.Full, parent
	if parent == "" {
		return meta.WithDefaults(), image{}, nil
	}
	meta.Kind = repository.Incremental
	from, err := s.loadParent(ctx, parent)
	if err != nil {
		return meta, image{}, fmt.Errorf("load parent %s: %w", parent, err)
	}
	meta, err = meta.InheritLayout(from.document.Meta)
	return meta.WithDefaults(), from, err
}

// loadParent loads the repo snapshot of a parent, which was listed before it was chosen.
func (s *Store) loadParent(ctx context.Context, id repository.SnapshotID) (image, error) {
	var from image
	err := withIndex(ctx, s.rep, func() (err error) {
		_, from, err = s.loadKnown(ctx, id)
		return err
	})
	return from, err
}

// begin continues from the checkpoint of an earlier run, if there is one. Its hold refers to the checkpoint then, or else, later, to the
// parent.
func (w *writer) begin(ctx context.Context, from image, interval int64) error {
	earlier, finished, err := resume(ctx, w.rep, w.hold, w.doc.Meta, w.layout)
	if err != nil {
		return err
	}
	switch {
	case len(finished) > 0:
		w.doc.Zero = earlier.document.Zero
		w.hold.parent = "" // the checkpoint keeps it, too
		err = w.hold.take(ctx, w.objects.w, earlier.root, earlier.manifest.Summary)
	case from.root != object.EmptyID:
		w.hold.root, w.hold.summary = from.root, from.manifest.Summary
		err = w.hold.renew(ctx, w.objects.w)
	default:
		err = w.hold.release(ctx) // what an earlier run left is of no use
	}
	if err != nil {
		return err
	}
	w.sealer = &sealer{objects: w.objects, layout: w.layout, root: make([]object.ID, w.layout.Segments()), zeroSegments: map[int64]object.ID{}}
	copy(w.sealer.root, finished)
	if from.root != object.EmptyID {
		if w.sealer.parent, err = loadParent(ctx, w.rep, from); err != nil {
			return fmt.Errorf("load parent %s: %w", w.doc.Parent, err)
		}
	}
	// This comes after the hold, which may flush: nothing refers to the zeros yet.
	if w.sealer.zero, err = storeZeros(ctx, w.objects, w.layout); err != nil {
		return err
	}
	w.doc.Zero = w.sealer.zero.addTo(w.doc.Zero, w.layout)
	w.ledger = ledger.New[object.ID](w.layout, ledger.Options{
		ParentSize: from.document.Size, Resumed: int64(len(finished)), Interval: interval,
	})
	return nil
}

// Meta implements repository.VolumeWriter.
func (w *writer) Meta() repository.Meta { return w.doc.Meta }

// Resumed implements repository.VolumeWriter.
func (w *writer) Resumed() int64 { return w.ledger.Resumed() }

// Put implements repository.VolumeWriter.
func (w *writer) Put(ctx context.Context, chunk int64, data []byte) error {
	if err := w.put(ctx, chunk, data); err != nil {
		return w.ledger.Fail(fmt.Errorf("put chunk %d: %w", chunk, markWrite(err)))
	}
	return nil
}

func (w *writer) put(ctx context.Context, first int64, data []byte) error {
	count, err := w.layout.CheckChunks(first, data)
	if err != nil {
		return err
	}
	if err := w.ledger.Check(first, count); err != nil {
		return err
	}
	w.storing.RLock()
	defer w.storing.RUnlock()
	var (
		chunks  []int64
		objects [][]byte
	)
	size := w.layout.ChunkSize()
	for c := first; c < first+count; c++ {
		object := data[(c-first)*size:][:size]
		if !block.IsZero(object) {
			chunks, objects = append(chunks, c), append(objects, object)
			continue
		}
		zeros := repository.WriteStats{ChunksWritten: 1, ZeroBytes: w.layout.Extent(c).Length} // without the padding, which nobody read
		if err := w.ledger.Put(c, whole(w.sealer.zero.chunk, zeros.ZeroBytes), zeros); err != nil {
			return err
		}
	}
	return w.objects.writeAll(ctx, objects, func(i int, id object.ID, fresh int64) error {
		length := w.layout.Extent(chunks[i]).Length
		return w.ledger.Put(chunks[i], whole(id, length), repository.WriteStats{ChunksWritten: 1, BytesUploaded: min(fresh, length)})
	})
}

// whole is a chunk of so many bytes of the volume that is stored whole.
func whole(id object.ID, bytes int64) ledger.Stored[object.ID] {
	return ledger.Stored[object.ID]{Whole: id, Bytes: bytes}
}

// Paged implements repository.VolumeWriter.
func (w *writer) Paged(ctx context.Context, chunk int64) (bool, error) {
	if err := w.layout.CheckChunk(chunk); err != nil {
		return false, w.ledger.Fail(fmt.Errorf("look up chunk: %w", err))
	}
	paged, err := w.paged(ctx, chunk)
	if err != nil {
		return false, w.ledger.Fail(fmt.Errorf("look up chunk %d: %w", chunk, mark(w.explain(ctx, err))))
	}
	return paged, nil
}

func (w *writer) paged(ctx context.Context, chunk int64) (bool, error) {
	if w.ledger.MustBeWhole(chunk) {
		return false, nil
	}
	return w.sealer.paged(ctx, chunk)
}

// PutPages implements repository.VolumeWriter.
func (w *writer) PutPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	if err := w.putPages(ctx, chunk, runs); err != nil {
		return w.ledger.Fail(fmt.Errorf("put pages of chunk %d: %w", chunk, markWrite(w.explain(ctx, err))))
	}
	return nil
}

func (w *writer) putPages(ctx context.Context, chunk int64, runs []repository.Pages) error {
	total, err := w.layout.CheckPages(chunk, runs)
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
	if err := w.ledger.Check(chunk, 1); err != nil {
		return err
	}
	w.storing.RLock()
	defer w.storing.RUnlock()
	ids := make([]object.ID, w.layout.ChunkPages())
	stats := repository.WriteStats{ChunksWritten: 1}
	var (
		pages   []int64
		objects [][]byte
	)
	size := w.layout.PageSize()
	for _, run := range runs {
		for off := int64(0); off < int64(len(run.Data)); off += size {
			page, data := (run.Offset+off)/size, run.Data[off:off+size]
			if block.IsZero(data) {
				ids[page] = w.sealer.zero.page
				stats.ZeroBytes += w.layout.PageLength(chunk, page)
				continue
			}
			pages, objects = append(pages, page), append(objects, data)
		}
	}
	err = w.objects.writeAll(ctx, objects, func(i int, id object.ID, fresh int64) error {
		ids[pages[i]] = id
		stats.BytesUploaded += min(fresh, w.layout.PageLength(chunk, pages[i]))
		return nil
	})
	if err != nil {
		return err
	}
	return w.ledger.Put(chunk, ledger.Stored[object.ID]{Pages: ids, Bytes: total}, stats)
}

// Advance implements repository.VolumeWriter.
func (w *writer) Advance(ctx context.Context, chunk int64) error {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	err := w.sealUpTo(ctx, chunk)
	switch {
	case err != nil:
	case w.ledger.Due():
		if err = w.checkpoint(ctx); err != nil {
			err = fmt.Errorf("record what is finished: %w", err)
		}
	default:
		err = w.hold.renew(ctx, w.objects.w)
	}
	if err != nil {
		return w.ledger.Fail(fmt.Errorf("advance to chunk %d: %w", chunk, markWrite(w.explain(ctx, err))))
	}
	return nil
}

// sealUpTo seals all segments that end before a chunk. The caller holds w.sealing.
func (w *writer) sealUpTo(ctx context.Context, chunk int64) error {
	for {
		put, ok, err := w.ledger.Next(chunk)
		if err != nil || !ok {
			return err
		}
		add, err := w.sealer.seal(ctx, put)
		if err != nil {
			return fmt.Errorf("finish segment %d: %w", put.Index, err)
		}
		w.ledger.Sealed(add)
	}
}

// Close implements repository.VolumeWriter. What was stored already stays until the
// repository's maintenance finds that nothing refers to it.
func (w *writer) Close(ctx context.Context, how repository.Ending) error {
	if !w.ledger.End() {
		return nil
	}
	w.sealing.Lock()
	defer w.sealing.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	// Closing a session that was not flushed drops its buffers.
	err := w.objects.w.Close(ctx)
	if how == repository.Discard {
		err = errors.Join(err, w.hold.release(ctx))
	}
	if err != nil {
		return fmt.Errorf("close image: %w", err)
	}
	return nil
}
