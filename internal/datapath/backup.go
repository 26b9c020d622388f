package datapath

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
)

// BackupStats says what a Backup did.
type BackupStats struct {
	BytesRead int64
}

// Backup reads what the bitmap touches, from Resumed of the writer on, and puts it into the
// writer: whole chunks, or, of a chunk that the parent has in pages, the pages that changed.
// It neither commits nor closes the writer.
func Backup(ctx context.Context, dev device.Reader, read *block.Bitmap, w repository.VolumeWriter, o Options) (BackupStats, error) {
	stats, err := backup(ctx, dev, read, w, o)
	if err != nil {
		return stats, fmt.Errorf("back up device: %w", err)
	}
	return stats, nil
}

func backup(ctx context.Context, dev device.Reader, read *block.Bitmap, w repository.VolumeWriter, o Options) (BackupStats, error) {
	meta := w.Meta()
	g, err := block.NewGeometry(meta.Size, meta.ChunkSize)
	if err != nil {
		return BackupStats{}, err
	}
	if dev.Size() != meta.Size || read.Size() != meta.Size {
		return BackupStats{}, fmt.Errorf("device has %d bytes, bitmap %d, image %d", dev.Size(), read.Size(), meta.Size)
	}
	o = o.withDefaults(g.ChunkSize())
	all := chunkBytes(touched(read, g, 0), g)
	o.Progress.total.Store(all)
	o.Progress.done.Store(all - chunkBytes(touched(read, g, w.Resumed()), g))

	b := backupRun{
		dev: dev, w: w, geometry: g, pageSize: g.ChunkSize(), progress: o.Progress,
		buffers: newBuffers(o.memory()), puts: semaphore.NewWeighted(int64(o.Workers)),
	}
	if meta.Kind == repository.Incremental {
		b.partial, b.pageSize = read, meta.PageSize
	}
	b.frontier.window = semaphore.NewWeighted(o.InFlight)
	items := make(chan item)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(items)
		return b.produce(ctx, touched(read, g, w.Resumed()), o, items)
	})
	for range o.Depth {
		group.Go(func() error {
			for it := range items {
				if err := b.move(ctx, it); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = group.Wait()
	return BackupStats{BytesRead: b.read.Load()}, err
}

// touched yields the chunks of the bitmap from the given one on.
func touched(read *block.Bitmap, g block.Geometry, from int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for c := range read.Chunks(g) {
			if c >= from && !yield(c) {
				return
			}
		}
	}
}

// chunkBytes returns how many bytes of the volume the chunks hold.
func chunkBytes(chunks iter.Seq[int64], g block.Geometry) int64 {
	var n int64
	for c := range chunks {
		n += g.Extent(c).Length
	}
	return n
}

// item is a run of consecutive chunks that are put whole, or one chunk of which pages have changed.
type item struct {
	// seq counts items from 0.
	seq        int64
	first, end int64
	// pages are the runs of pages that have changed, relative to the chunk.
	pages []block.Extent
	// bytes is what it takes of the window.
	bytes int64
}

// produce joins neighbouring chunks into items of at most o.ReadSize bytes. Those of which pages have changed stay
// alone, so that they wait for the device side by side. Each item takes its bytes of the window, which
// has o.InFlight. The frontier gives them back.
//
// A worker whose Put fills a pack waits for its upload. The others fill the next packs meanwhile,
// and upload them beside it. Without a bound, one slow read would let them run ahead of the
// frontier without end, and the writer would have to hold what it knows of all that they put.
func (b *backupRun) produce(ctx context.Context, chunks iter.Seq[int64], o Options, items chan<- item) error {
	chunkSize := b.geometry.ChunkSize()
	send := func(it item) error {
		it.bytes = min((it.end-it.first)*chunkSize, o.InFlight)
		if err := b.frontier.window.Acquire(ctx, it.bytes); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case items <- it:
			return nil
		}
	}
	var it item
	for c := range chunks {
		pages := b.changedPages(c)
		if c == it.end && it.pages == nil && pages == nil && (it.end-it.first)*chunkSize < o.ReadSize {
			it.end++
			continue
		}
		if it.end > it.first {
			if err := send(it); err != nil {
				return err
			}
			it.seq++
		}
		it.first, it.end, it.pages = c, c+1, pages
	}
	if it.end > it.first {
		return send(it)
	}
	return nil
}

type backupRun struct {
	dev      device.Reader
	w        repository.VolumeWriter
	geometry block.Geometry
	// partial says which parts of a chunk have changed. It is nil if the rest of a chunk
	// cannot be inherited.
	partial  *block.Bitmap
	pageSize int64
	progress *Progress
	read     atomic.Int64
	buffers  *buffers
	// puts bounds how many goroutines put something at once: that takes a core, not the device.
	puts     *semaphore.Weighted
	frontier frontier
}

// move reads one item and puts its chunks.
func (b *backupRun) move(ctx context.Context, it item) error {
	buf, err := b.buffers.get(ctx, (it.end-it.first)*b.geometry.ChunkSize())
	if err != nil {
		return err
	}
	defer b.buffers.put(buf)
	if it.pages != nil {
		err = b.movePages(ctx, it.first, it.pages, buf.Bytes)
	} else {
		err = b.moveChunks(ctx, it.first, it.end, buf.Bytes)
	}
	if err != nil {
		return err
	}
	if reached, ok := b.frontier.pass(it); ok {
		return b.w.Advance(ctx, reached)
	}
	return nil
}

// moveChunks reads and puts consecutive whole chunks.
func (b *backupRun) moveChunks(ctx context.Context, first, end int64, buf []byte) error {
	chunkSize := b.geometry.ChunkSize()
	data := buf[:(end-first)*chunkSize]
	if err := b.fill(data, first*chunkSize); err != nil {
		return err
	}
	err := b.put(ctx, func() error { return b.w.Put(ctx, first, data) })
	if err != nil {
		return err
	}
	last := b.geometry.Extent(end - 1)
	b.progress.done.Add(last.End() - first*chunkSize)
	return nil
}

// movePages reads and puts the given pages of a chunk, or all of them if the parent does not
// have the chunk in pages.
func (b *backupRun) movePages(ctx context.Context, chunk int64, runs []block.Extent, buf []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	paged, err := b.w.Paged(ctx, chunk)
	if err != nil {
		return err
	}
	if !paged {
		runs = []block.Extent{{Length: b.geometry.ChunkSize()}}
	}
	pages := make([]repository.Pages, len(runs))
	for i, r := range runs {
		data := buf[r.Offset:r.End()]
		if err := b.fill(data, chunk*b.geometry.ChunkSize()+r.Offset); err != nil {
			return err
		}
		pages[i] = repository.Pages{Offset: r.Offset, Data: data}
	}
	if err := b.put(ctx, func() error { return b.w.PutPages(ctx, chunk, pages) }); err != nil {
		return err
	}
	b.progress.done.Add(b.geometry.Extent(chunk).Length)
	return nil
}

func (b *backupRun) put(ctx context.Context, do func() error) error {
	if err := b.puts.Acquire(ctx, 1); err != nil {
		return err
	}
	defer b.puts.Release(1)
	return do()
}

// fill reads from the device, and fills with zeros beyond its end.
func (b *backupRun) fill(p []byte, off int64) error {
	n := max(min(int64(len(p)), b.geometry.Size()-off), 0)
	clear(p[n:])
	if _, err := b.dev.ReadAt(p[:n], off); err != nil {
		return err
	}
	b.read.Add(n)
	b.progress.read.Add(n)
	return nil
}

// changedPages returns the runs of pages of a chunk that have changed, relative to the chunk.
// It returns nil for a chunk that has to be put whole.
func (b *backupRun) changedPages(chunk int64) []block.Extent {
	if b.partial == nil {
		return nil
	}
	whole := b.geometry.Extent(chunk)
	var runs []block.Extent
	var changed int64
	for off := int64(0); off < whole.Length; off += b.pageSize {
		page := block.Extent{Offset: whole.Offset + off, Length: b.pageSize}
		if !b.partial.AnyIn(page) {
			continue
		}
		changed += b.pageSize
		if n := len(runs); n > 0 && runs[n-1].End() == off {
			runs[n-1].Length += b.pageSize
		} else {
			runs = append(runs, block.Extent{Offset: off, Length: b.pageSize})
		}
	}
	if changed >= whole.Length {
		return nil
	}
	return runs
}

// frontier finds the place before which all items are complete. Items complete in any order.
type frontier struct {
	// window is without the bytes of each item from next on that was sent out.
	window *semaphore.Weighted

	mu sync.Mutex
	// next is the first item that is not complete.
	next int64
	// complete are those after it, by number. There are never more than the window allows.
	complete map[int64]item
}

// pass records an item that is complete. If it was the first that was missing, pass returns the
// chunk before which nothing is missing now.
func (f *frontier) pass(it item) (int64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if it.seq != f.next {
		if f.complete == nil {
			f.complete = map[int64]item{}
		}
		f.complete[it.seq] = it
		return 0, false
	}
	for {
		f.window.Release(it.bytes)
		f.next++
		after, ok := f.complete[f.next]
		if !ok {
			return it.end, true
		}
		delete(f.complete, f.next)
		it = after
	}
}
