// Package readcache reads an image as a file system's reader does: many small reads, of which most are near each other, over a
// link on which each request takes long.
//
// It keeps whole chunks, because the repository fetches whole chunks anyway. Chunks that one read wants completely are
// the content of a file: they are passed on and not kept, several at a time. When small reads go on from chunk to chunk, the
// next ones are fetched ahead. What is known to be zero is never read.
package readcache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Image is what is read. repository.VolumeReader is one.
type Image interface {
	io.ReaderAt
	// IsZero reports whether a chunk is known to be zero without reading it.
	IsZero(ctx context.Context, chunk int64) (bool, error)
}

const (
	// DefaultMemory bounds what is kept.
	DefaultMemory = 96 << 20
	// mostAtOnce is the longest read of the image: the repository makes one or two requests of it.
	mostAtOnce = 4 << 20
	// parallel is how many reads of the image run at once, those ahead included.
	parallel = 16
	// aheadBytes is how far ahead chunks are fetched, and aheadChunks the least number.
	aheadBytes  = 4 << 20
	aheadChunks = 4
)

// Cache is an io.ReaderAt. It is safe for concurrent use.
type Cache struct {
	ctx   context.Context //nolint:containedctx // io.ReaderAt takes none
	image Image
	size  int64
	chunk int64
	most  int
	slots chan struct{}

	mu     sync.Mutex
	chunks map[int64]*list.Element // of *entry
	recent *list.List              // the last one goes first
	// next is the chunk after the one that was read last.
	next int64
	// ahead is where what was fetched ahead ends, while reads go on from chunk to chunk.
	ahead int64
}

// entry is a chunk. ready is closed when data or err is set.
type entry struct {
	chunk int64
	ready chan struct{}
	data  []byte
	err   error
}

// New makes a cache of an image of size bytes, in chunks of chunk bytes. Reads end when ctx is over. memory is in bytes.
func New(ctx context.Context, image Image, size, chunk, memory int64) *Cache {
	return &Cache{
		ctx: ctx, image: image, size: size, chunk: chunk,
		most:   int(max(memory/chunk, 2*aheadChunks)),
		slots:  make(chan struct{}, parallel),
		chunks: map[int64]*list.Element{}, recent: list.New(), next: -1,
	}
}

// ReadAt implements io.ReaderAt.
func (c *Cache) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read image at %d: negative offset", off)
	}
	if off >= c.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > c.size-off {
		p, end = p[:c.size-off], io.EOF
	}
	group, ctx := errgroup.WithContext(c.ctx)
	for rest := p; len(rest) > 0; {
		n := c.piece(off, int64(len(rest)))
		part, at := rest[:n], off
		group.Go(func() error { return c.read(ctx, part, at) })
		rest, off = rest[n:], off+n
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return len(p), end
}

// piece is how long the next piece of a read is: a part of a chunk, or some whole chunks.
func (c *Cache) piece(off, length int64) int64 {
	within := off % c.chunk
	if within != 0 || length < c.chunk {
		return min(length, c.chunk-within)
	}
	return min(length, max(mostAtOnce, c.chunk)) / c.chunk * c.chunk
}

// read reads a piece.
func (c *Cache) read(ctx context.Context, p []byte, off int64) error {
	if int64(len(p)) >= c.chunk {
		return c.pass(ctx, p, off)
	}
	number := off / c.chunk
	c.readAhead(number)
	data, err := c.get(ctx, number)
	if err != nil {
		return err
	}
	if data == nil {
		clear(p)
		return nil
	}
	copy(p, data[off%c.chunk:])
	return nil
}

// pass reads whole chunks, in runs of those that are neither zero nor kept.
func (c *Cache) pass(ctx context.Context, p []byte, off int64) error {
	run := int64(0) // bytes before p that are due
	flush := func(at int64) error {
		if run == 0 {
			return nil
		}
		start := at - run
		run = 0
		return c.fetch(ctx, p[start-off:at-off], start)
	}
	for at := off; at < off+int64(len(p)); at += c.chunk {
		to := p[at-off:][:c.chunk]
		known, data, err := c.known(ctx, at/c.chunk)
		if err != nil {
			return err
		}
		if !known {
			run += c.chunk
			continue
		}
		if err := flush(at); err != nil {
			return err
		}
		if data == nil {
			clear(to)
		} else {
			copy(to, data)
		}
	}
	return flush(off + int64(len(p)))
}

// known returns a chunk that is zero (nil) or in the cache.
func (c *Cache) known(ctx context.Context, number int64) (bool, []byte, error) {
	c.mu.Lock()
	found := c.chunks[number]
	c.mu.Unlock()
	if found != nil {
		e, _ := found.Value.(*entry)
		select {
		case <-e.ready:
			if e.err == nil {
				return true, e.data, nil
			}
		default:
		}
	}
	zero, err := c.image.IsZero(ctx, number)
	return zero, nil, err
}

// fetch reads from the image, when there is a slot.
func (c *Cache) fetch(ctx context.Context, p []byte, off int64) error {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-c.slots }()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if n, err := c.image.ReadAt(p, off); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// get returns a chunk, or nil if it is zero. Several that want it at once wait for one read.
func (c *Cache) get(ctx context.Context, number int64) ([]byte, error) {
	e, mine := c.reserve(number)
	if mine {
		c.load(e)
	}
	select {
	case <-e.ready:
		return e.data, e.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// reserve returns the entry of a chunk, and whether the caller has to load it.
func (c *Cache) reserve(number int64) (*entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.chunks[number]; found != nil {
		c.recent.MoveToFront(found)
		e, _ := found.Value.(*entry)
		return e, false
	}
	e := &entry{chunk: number, ready: make(chan struct{})}
	c.chunks[number] = c.recent.PushFront(e)
	for c.recent.Len() > c.most {
		c.forget(c.recent.Back())
	}
	return e, true
}

func (c *Cache) forget(element *list.Element) {
	e, _ := c.recent.Remove(element).(*entry)
	delete(c.chunks, e.chunk)
}

// load fills an entry. One that fails is forgotten: the next read tries again.
func (c *Cache) load(e *entry) {
	data, err := c.loadChunk(e.chunk)
	c.finish(e, data, err)
}

func (c *Cache) finish(e *entry, data []byte, err error) {
	e.data, e.err = data, err
	close(e.ready)
	if e.err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.chunks[e.chunk]; found != nil && found.Value == e {
		c.forget(found)
	}
}

func (c *Cache) loadChunk(number int64) ([]byte, error) {
	zero, err := c.image.IsZero(c.ctx, number)
	if err != nil || zero {
		return nil, err
	}
	data := make([]byte, min(c.chunk, c.size-number*c.chunk))
	return data, c.fetch(c.ctx, data, number*c.chunk)
}

// readAhead fetches the chunks after one, if the reads have come to it from the one before.
func (c *Cache) readAhead(number int64) {
	window := max(aheadBytes/c.chunk, aheadChunks)
	c.mu.Lock()
	goesOn := number == c.next || number == c.next-1 && c.ahead > number
	if !goesOn {
		c.ahead = 0
	}
	first := max(c.ahead, number+1)
	last := min(number+window, (c.size-1)/c.chunk)
	due := number == c.next && first <= number+window/2 && first <= last
	if due {
		c.ahead = last + 1
	}
	c.next = number + 1
	c.mu.Unlock()
	if !due {
		return
	}
	var run []*entry
	for n := first; n <= last; n++ {
		if e, mine := c.reserve(n); mine {
			run = append(run, e)
		}
	}
	go c.loadRun(run)
}

// loadRun fills entries in ascending order: neighbours together, in one read.
func (c *Cache) loadRun(entries []*entry) {
	for len(entries) > 0 {
		n, bytes := 0, int64(0)
		for n < len(entries) && entries[n].chunk == entries[0].chunk+int64(n) {
			// What cannot be looked up, or is the end, is loaded alone.
			if zero, err := c.image.IsZero(c.ctx, entries[n].chunk); zero || err != nil || (entries[n].chunk+1)*c.chunk > c.size {
				break
			}
			n++
			bytes += c.chunk
		}
		if n < 2 {
			c.load(entries[0])
			entries = entries[1:]
			continue
		}
		buf := make([]byte, bytes)
		err := c.fetch(c.ctx, buf, entries[0].chunk*c.chunk)
		for i, e := range entries[:n] {
			// A copy of its own: one chunk that is kept must not keep its neighbours.
			c.finish(e, slices.Clone(buf[int64(i)*c.chunk:][:c.chunk]), err)
		}
		entries = entries[n:]
	}
}
