package kopia

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// writer builds one image.
//
// Chunks that were put are kept as object IDs, by segment, until their segment
// is sealed: by Advance, or by Commit. Sealing stores the segment's index, which
// for an incremental image starts from the parent's. What stays in memory is one
// object ID for each segment (36 bytes: 18 MiB for 64 TiB) and the segments that
// are not sealed yet.
type writer struct {
	rep     repo.Repository
	objects *objectWriter
	hold    *hold
	layout  layout
	doc     document
	parent  *parentImage
	// zero and zeroPage are a chunk and a page of zeros.
	zero, zeroPage object.ID
	// resumed is the first segment that an earlier run has not finished.
	resumed int64
	// interval is how many bytes may be put between two checkpoints.
	interval int64
	// tail must be put where it is 0 or more: see the rule on sizes in
	// repository.Store.NewWriter.
	tail int64

	mu    sync.Mutex
	state writerState
	open  map[int64]*openSegment
	// frontier is the first segment that Advance has not closed to Puts.
	frontier int64
	stats    repository.WriteStats
	// unrecorded is how many bytes were put since the last checkpoint.
	unrecorded int64

	// storing is held for reading while a chunk is stored and recorded: a checkpoint
	// must not flush what it does not refer to.
	storing sync.RWMutex

	// inheriting guards bases: the parent's segments at the places that are open.
	inheriting sync.Mutex
	bases      map[int64]segment

	// sealing is held while segments are sealed, which writes to the repository.
	// It guards what follows, and the hold.
	sealing sync.Mutex
	root    []object.ID
	// zeroSegments remembers the segments of zeros by their length: a sparse volume
	// of 10 TiB has 80,000 of them.
	zeroSegments map[int64]object.ID
}

type writerState int

const (
	writing writerState = iota
	failed
	ended
)

// openSegment holds the chunks of one segment that were put.
type openSegment struct {
	chunks []object.ID
	// pages are those of the chunks that were put in pages, by chunk; one that is
	// empty is inherited.
	pages map[int64][]object.ID
	// put is how many chunks were put as a whole.
	put int64
}

// parentImage is what an incremental image inherits from.
type parentImage struct {
	image
	layout layout
	root   []object.ID
}

// NewWriter implements repository.Store.
func (s *Store) NewWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (repository.VolumeWriter, error) {
	w, err := s.newWriter(ctx, meta, o)
	if err != nil {
		return nil, fmt.Errorf("start image: %w", err)
	}
	return w, nil
}

func (s *Store) newWriter(ctx context.Context, meta repository.Meta, o repository.WriterOptions) (*writer, error) {
	if err := checkVolume(o.Volume); err != nil {
		return nil, err
	}
	if o.Operation == "" {
		return nil, errNoOperation
	}
	meta.Version = repository.MetaVersion
	meta.Parent = o.Parent
	meta.Kind = repository.Full
	w := &writer{rep: s.rep, tail: -1, interval: o.CheckpointInterval, open: map[int64]*openSegment{}, bases: map[int64]segment{}, zeroSegments: map[int64]object.ID{}}
	var from image
	if o.Parent != "" {
		meta.Kind = repository.Incremental
		var err error
		if _, from, err = s.load(ctx, o.Parent); err != nil {
			return nil, fmt.Errorf("load parent %s: %w", o.Parent, err)
		}
		if err := inheritLayout(&meta, from.document.Meta); err != nil {
			return nil, err
		}
		if end := min(meta.Size, from.document.Size); meta.Size != from.document.Size && end%meta.ChunkSize != 0 {
			w.tail = end / meta.ChunkSize
		}
	}
	meta = meta.WithDefaults()
	var err error
	if w.layout, err = newLayout(meta); err != nil {
		return nil, err
	}
	w.root = make([]object.ID, w.layout.segments())
	w.doc = document{Meta: meta, Zero: from.document.Zero}
	if err := s.begin(ctx, w, o, from); err != nil {
		return nil, err
	}
	return w, nil
}

// begin is what NewWriter writes: the hold first, so that nothing that is
// checked after it can go.
func (s *Store) begin(ctx context.Context, w *writer, o repository.WriterOptions, parent image) (err error) {
	if err := s.rep.Refresh(ctx); err != nil {
		return fmt.Errorf("refresh repository index: %w", err)
	}
	if err := s.sweepHolds(ctx); err != nil {
		return err
	}
	if w.hold, err = s.newHold(ctx, o.Volume, o.Operation); err != nil {
		return err
	}
	_, session, err := s.rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "Blockmover backup"})
	if err != nil {
		return err
	}
	if w.objects, err = newObjectWriter(s.rep, session, o.Compression); err != nil {
		return errors.Join(err, session.Close(ctx))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, session.Close(ctx))
			if ctx.Err() == nil { // told to stop, the next run goes on from here
				err = errors.Join(err, w.hold.release(ctx, s.rep))
			}
		}
	}()
	if err := s.takeUp(ctx, w, parent); err != nil {
		return err
	}
	if o.Parent != "" {
		if w.parent, err = s.loadParent(ctx, parent); err != nil {
			return fmt.Errorf("load parent %s: %w", o.Parent, err)
		}
	}
	return w.storeZeros(ctx)
}

// takeUp goes on from the checkpoint of an earlier run, where there is one, and
// makes the hold refer to it or else to the parent.
func (s *Store) takeUp(ctx context.Context, w *writer, parent image) error {
	earlier, err := s.findCheckpoint(ctx, w.hold, w.doc.Meta)
	if err != nil {
		return err
	}
	if earlier.root != object.EmptyID {
		if err := w.resume(ctx, earlier); err != nil {
			return err
		}
	}
	switch {
	case w.resumed > 0:
		return w.hold.take(ctx, w.objects.w, earlier.root, earlier.manifest.Summary)
	case parent.root != object.EmptyID:
		return w.hold.take(ctx, w.objects.w, parent.root, parent.manifest.Summary)
	}
	return w.hold.release(ctx, s.rep) // what an earlier run has left is of no use
}

// storeZeros stores a chunk and a page of zeros: not before the hold is taken,
// which flushes what nothing refers to yet.
func (w *writer) storeZeros(ctx context.Context) (err error) {
	w.zero, _, err = w.objects.write(ctx, "", make([]byte, w.layout.ChunkSize()))
	if err != nil {
		return err
	}
	w.zeroPage, _, err = w.objects.write(ctx, "", make([]byte, w.layout.page))
	if err != nil {
		return err
	}
	for _, own := range []zeroObject{{w.layout.ChunkSize(), w.zero}, {w.layout.page, w.zeroPage}} {
		if !slices.Contains(w.doc.Zero, own) {
			w.doc.Zero = append(slices.Clone(w.doc.Zero), own)
		}
	}
	return nil
}

// inheritLayout makes meta cut its image like the parent's, or says that it
// asks for another cut.
func inheritLayout(meta *repository.Meta, parent repository.Meta) error {
	if meta.ChunkSize == 0 {
		meta.ChunkSize = parent.ChunkSize
	}
	if meta.SegmentSize == 0 {
		meta.SegmentSize = parent.SegmentSize
	}
	if meta.ChunkSize != parent.ChunkSize || meta.SegmentSize != parent.SegmentSize {
		return fmt.Errorf("chunk and segment size are %d and %d bytes, those of the parent %d and %d",
			meta.ChunkSize, meta.SegmentSize, parent.ChunkSize, parent.SegmentSize)
	}
	return nil
}

// loadParent reads the root of a parent and checks that all of its segments are
// in the repository.
func (s *Store) loadParent(ctx context.Context, img image) (*parentImage, error) {
	// What another process has deleted since the hold was looked for must be seen.
	if err := s.rep.Refresh(ctx); err != nil {
		return nil, fmt.Errorf("refresh repository index: %w", err)
	}
	l, err := newLayout(img.document.Meta)
	if err != nil {
		return nil, corrupt(err)
	}
	root, err := loadRoot(ctx, s.rep, img.disk, l)
	if err != nil {
		return nil, err
	}
	var last object.ID
	for i, segment := range root {
		if segment == last {
			continue // a run of zeros
		}
		if err := checkPresent(ctx, s.rep, segment); err != nil {
			return nil, fmt.Errorf("segment %d: %w", i, err)
		}
		last = segment
	}
	return &parentImage{image: img, layout: l, root: root}, nil
}

// Meta implements repository.VolumeWriter.
func (w *writer) Meta() repository.Meta { return w.doc.Meta }

// Put implements repository.VolumeWriter.
func (w *writer) Put(ctx context.Context, chunk int64, data []byte) error {
	if err := w.put(ctx, chunk, data); err != nil {
		return w.fail(fmt.Errorf("put chunk %d: %w", chunk, err))
	}
	return nil
}

func (w *writer) put(ctx context.Context, first int64, data []byte) error {
	size := w.layout.ChunkSize()
	count := int64(len(data)) / size
	if count == 0 || int64(len(data)) != count*size {
		return fmt.Errorf("%d bytes, want whole chunks of %d", len(data), size)
	}
	last := first + count - 1
	if err := errors.Join(w.layout.CheckChunk(first), w.layout.CheckChunk(last)); err != nil {
		return err
	}
	if !block.IsZero(data[(count-1)*size+w.layout.Extent(last).Length:]) {
		return errors.New("padding after the end of the volume is not zero")
	}
	for c := first; c <= last; c++ {
		if err := w.check(c); err != nil {
			return err
		}
	}
	w.storing.RLock()
	defer w.storing.RUnlock()
	var (
		chunks  []int64
		objects [][]byte
	)
	for c := first; c <= last; c++ {
		object := data[(c-first)*size:][:size]
		if !block.IsZero(object) {
			chunks, objects = append(chunks, c), append(objects, object)
			continue
		}
		zeros := repository.WriteStats{ChunksWritten: 1, ZeroBytes: w.layout.Extent(c).Length} // without the padding, which nobody read
		if err := w.record(c, w.zero, zeros); err != nil {
			return err
		}
	}
	return w.objects.writeAll(ctx, objects, func(i int, id object.ID, fresh int64) error {
		return w.record(chunks[i], id, repository.WriteStats{ChunksWritten: 1, BytesUploaded: min(fresh, w.layout.Extent(chunks[i]).Length)})
	})
}

// check fails early, before a chunk is hashed.
func (w *writer) check(chunk int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checkLocked(chunk)
}

func (w *writer) checkLocked(chunk int64) error {
	segment := chunk / w.layout.perSegment()
	switch {
	case w.state != writing:
		return errNotWriting
	case segment < w.frontier:
		return fmt.Errorf("its segment %d is finished already", segment)
	}
	within := chunk % w.layout.perSegment()
	if s := w.open[segment]; s != nil && (s.chunks[within] != object.EmptyID || s.pages[within] != nil) {
		return errors.New("it was put before")
	}
	return nil
}

var errNotWriting = errors.New("the image is committed, aborted or has failed")

// record notes a chunk that was put as a whole.
func (w *writer) record(chunk int64, id object.ID, add repository.WriteStats) error {
	return w.recordIn(chunk, add, w.layout.Extent(chunk).Length, func(s *openSegment, within int64) {
		s.chunks[within] = id
		s.put++
	})
}

// recordIn notes a chunk in its segment; bytes of it were read from the device.
func (w *writer) recordIn(chunk int64, add repository.WriteStats, bytes int64, note func(s *openSegment, within int64)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.checkLocked(chunk); err != nil {
		return err
	}
	segment := chunk / w.layout.perSegment()
	s := w.open[segment]
	if s == nil {
		s = &openSegment{
			chunks: make([]object.ID, w.layout.length(segment)/w.layout.ChunkSize()),
			pages:  map[int64][]object.ID{},
		}
		w.open[segment] = s
	}
	note(s, chunk%w.layout.perSegment())
	if chunk == w.tail {
		w.tail = -1
	}
	w.addLocked(add)
	w.unrecorded += bytes
	return nil
}

func (w *writer) addLocked(s repository.WriteStats) {
	w.stats.BytesUploaded += s.BytesUploaded
	w.stats.MetadataBytes += s.MetadataBytes
	w.stats.ChunksWritten += s.ChunksWritten
	w.stats.ChunksInherited += s.ChunksInherited
	w.stats.ZeroBytes += s.ZeroBytes
}

func (w *writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == writing {
		w.state = failed
	}
	return err
}

// Advance implements repository.VolumeWriter.
func (w *writer) Advance(ctx context.Context, chunk int64) error {
	if chunk < 0 || chunk > w.layout.Chunks() {
		return w.fail(fmt.Errorf("advance to chunk %d of %d", chunk, w.layout.Chunks()))
	}
	segment := chunk / w.layout.perSegment()
	if chunk == w.layout.Chunks() {
		segment = w.layout.segments()
	}
	if err := w.sealUpTo(ctx, segment); err != nil {
		return w.fail(fmt.Errorf("advance to chunk %d: %w", chunk, err))
	}
	if err := w.checkpointIfDue(ctx); err != nil {
		return w.fail(fmt.Errorf("record what is finished: %w", err))
	}
	return nil
}

// sealUpTo finishes all segments before the given one.
func (w *writer) sealUpTo(ctx context.Context, end int64) error {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	for {
		index, put, err := w.closeNext(end)
		if err != nil || index < 0 {
			return err
		}
		if err := w.seal(ctx, index, put); err != nil {
			return fmt.Errorf("finish segment %d: %w", index, err)
		}
	}
}

// closeNext takes the next segment before the given one away from Puts. It
// returns -1 when there is none, and nil for a segment that nothing was put in.
func (w *writer) closeNext(end int64) (int64, *openSegment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.state != writing:
		return -1, nil, errNotWriting
	case w.frontier >= end:
		return -1, nil, nil
	}
	index := w.frontier
	put := w.open[index]
	delete(w.open, index)
	w.frontier++
	return index, put, nil
}

// seal finds or writes one segment. put is nil where no chunk of it was put.
func (w *writer) seal(ctx context.Context, index int64, put *openSegment) error {
	defer w.dropBase(index)
	length := w.layout.length(index)
	chunks := length / w.layout.ChunkSize()
	inherited, inheritedLength := w.inherited(index)
	if put == nil {
		switch inheritedLength {
		case length:
			w.root[index] = inherited
			w.add(repository.WriteStats{ChunksInherited: chunks})
			return nil
		case 0:
			id, err := w.zeroSegment(ctx, length)
			w.root[index] = id
			return err
		}
		put = &openSegment{chunks: make([]object.ID, chunks)}
	}
	entries, kept, err := w.merge(ctx, index, put)
	if err != nil {
		return err
	}
	id, fresh, err := w.objects.writeIndex(ctx, len(entries), func(i int) entry { return entries[i] })
	if err != nil {
		return err
	}
	w.root[index] = id
	w.add(repository.WriteStats{MetadataBytes: fresh, ChunksInherited: kept})
	return nil
}

func (w *writer) add(s repository.WriteStats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addLocked(s)
}

// inherited is the parent's segment at an index and its length, which is 0
// where there is none.
func (w *writer) inherited(index int64) (object.ID, int64) {
	if w.parent == nil || index >= int64(len(w.parent.root)) {
		return object.EmptyID, 0
	}
	return w.parent.root[index], w.parent.layout.length(index)
}

// merge lists the entries of a segment: what was put, else what the parent has,
// else zeros. It also says how many chunks are the parent's.
func (w *writer) merge(ctx context.Context, index int64, put *openSegment) ([]entry, int64, error) {
	var base segment
	if put.put < int64(len(put.chunks)) {
		var err error
		if base, err = w.base(ctx, index); err != nil {
			return nil, 0, err
		}
	}
	chunkSize := w.layout.ChunkSize()
	entries := make([]entry, 0, len(put.chunks))
	var kept int64
	for i, id := range put.chunks {
		start := int64(i) * chunkSize
		var inherited []entry
		if i < base.count() {
			inherited = base.chunk(i)
		}
		pages := put.pages[int64(i)]
		switch {
		case id != object.EmptyID:
			entries = append(entries, entry{Start: start, Length: chunkSize, Object: id})
			continue
		case pages != nil:
			inherited = w.mergePages(start, pages, inherited)
		case len(inherited) == 0:
			entries = append(entries, entry{Start: start, Length: chunkSize, Object: w.zero})
			continue
		default:
			kept++
		}
		for _, e := range inherited {
			// What this writer has stored need not be in the index yet.
			if e.Object != w.zero && e.Object != w.zeroPage && !slices.Contains(pages, e.Object) {
				if err := checkPresent(ctx, w.rep, e.Object); err != nil {
					return nil, 0, fmt.Errorf("inherit chunk from parent: %w", err)
				}
			}
			entries = append(entries, e)
		}
	}
	return entries, kept, nil
}

func (w *writer) zeroSegment(ctx context.Context, length int64) (object.ID, error) {
	if id, ok := w.zeroSegments[length]; ok {
		return id, nil
	}
	chunkSize := w.layout.ChunkSize()
	id, fresh, err := w.objects.writeIndex(ctx, int(length/chunkSize), func(i int) entry {
		return entry{Start: int64(i) * chunkSize, Length: chunkSize, Object: w.zero}
	})
	if err != nil {
		return object.EmptyID, err
	}
	w.add(repository.WriteStats{MetadataBytes: fresh})
	w.zeroSegments[length] = id
	return id, nil
}

// Commit implements repository.VolumeWriter.
func (w *writer) Commit(ctx context.Context) (repository.Image, repository.WriteStats, error) {
	img, err := w.commit(ctx)
	if err != nil {
		return repository.Image{}, repository.WriteStats{}, w.fail(fmt.Errorf("commit image: %w", err))
	}
	return img, w.stats, nil
}

func (w *writer) commit(ctx context.Context) (repository.Image, error) {
	w.mu.Lock()
	tail := w.tail
	w.mu.Unlock()
	if tail >= 0 {
		return repository.Image{}, fmt.Errorf("the size differs from the parent's and chunk %d, where one of them ends, was not put", tail)
	}
	if err := w.sealUpTo(ctx, w.layout.segments()); err != nil {
		return repository.Image{}, err
	}
	disk, err := w.writeRoot(ctx, w.layout.segments())
	if err != nil {
		return repository.Image{}, err
	}
	dir, summary, err := writeDirectory(ctx, w.objects, disk, w.layout.PaddedSize(), w.doc)
	if err != nil {
		return repository.Image{}, err
	}
	// Until the repo snapshot is saved, the hold alone refers to the image.
	if err := w.keep(ctx, dir, summary); err != nil {
		return repository.Image{}, err
	}
	if !w.end(writing) {
		return repository.Image{}, errNotWriting
	}
	if err := w.objects.w.Close(ctx); err != nil {
		return repository.Image{}, err
	}
	return repository.Image{Root: dir.String(), Meta: w.doc.Meta}, nil
}

// writeRoot stores the root of the first segments.
func (w *writer) writeRoot(ctx context.Context, segments int64) (object.ID, error) {
	disk, fresh, err := w.objects.writeIndex(ctx, int(segments), func(i int) entry {
		return entry{Start: int64(i) * w.layout.segment, Length: w.layout.length(int64(i)), Object: w.root[i]}
	})
	if err != nil {
		return object.EmptyID, fmt.Errorf("write root: %w", err)
	}
	w.add(repository.WriteStats{MetadataBytes: fresh})
	return disk, nil
}

// Suspend implements repository.VolumeWriter.
func (w *writer) Suspend() {
	if w.end(writing, failed) {
		// Closing a session that was not flushed drops its buffers. The context of the
		// backup may be over by now.
		_ = w.objects.w.Close(context.Background())
	}
}

// Abort implements repository.VolumeWriter. What was stored already stays until
// the repository's maintenance finds that nothing refers to it.
func (w *writer) Abort() {
	if w.end(writing, failed) {
		_ = w.objects.w.Close(context.Background())
		// A hold that stays is swept when its time is over.
		_ = w.hold.abandon(w.rep)
	}
}

// end moves the writer from one of the states to ended.
func (w *writer) end(from ...writerState) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(from, w.state) {
		return false
	}
	w.state = ended
	clear(w.open)
	return true
}
