package block

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"sort"
)

// A small page makes a small change cost little. Large volumes have larger pages, so that
// their number stays small. 64 KiB is no more than the blocks that most storage systems
// track.
const (
	smallPageSize = 8 << 10
	pageSize      = 16 << 10
	largePageSize = 64 << 10

	smallVolume = 16 << 30
	largeVolume = 16 << 40
)

// PageSize returns the page size for the Bitmap of a volume of size bytes.
func PageSize(size int64) int64 {
	switch {
	case size <= smallVolume:
		return smallPageSize
	case size <= largeVolume:
		return pageSize
	}
	return largePageSize
}

// Bitmap is a set of pages of a volume.
//
// It keeps pages in containers of 65,536 (1 GiB of 16 KiB pages). A container is a sorted
// list of runs, or a plain bitmap of 8 KiB if the list would be longer than that. The
// package documentation has the figures.
//
// A Bitmap is not safe for concurrent use while it is being changed.
type Bitmap struct {
	size       int64
	page       int64
	pages      int64
	containers []container
}

const (
	containerPages = 1 << 16
	words          = containerPages / 64
	// maxRuns is where runs become as large as a bitmap: 2048 * 4 bytes = 65536 / 8 bytes.
	maxRuns = containerPages / 32
)

// NewBitmap returns the empty set of pages of a volume. The page size must be a
// power of two of at least 512 bytes.
func NewBitmap(size, page int64) (*Bitmap, error) {
	if size <= 0 || size > MaxVolumeSize {
		return nil, fmt.Errorf("volume size is %d bytes, want 1 to %d", size, int64(MaxVolumeSize))
	}
	if page < 512 || bits.OnesCount64(uint64(page)) != 1 {
		return nil, fmt.Errorf("page size is %d bytes, want a power of two of at least 512", page)
	}
	pages := (size + page - 1) / page
	return &Bitmap{
		size:       size,
		page:       page,
		pages:      pages,
		containers: make([]container, (pages+containerPages-1)/containerPages),
	}, nil
}

// Size is the size of the volume in bytes.
func (b *Bitmap) Size() int64 { return b.size }

// PageSize is the granularity in bytes.
func (b *Bitmap) PageSize() int64 { return b.page }

// Set adds every page that the extent touches.
func (b *Bitmap) Set(e Extent) error {
	if err := e.CheckWithin(b.size); err != nil {
		return err
	}
	first, end := e.Offset/b.page, (e.End()+b.page-1)/b.page
	for first < end {
		c := first / containerPages
		base := c * containerPages
		stop := min(end, base+containerPages)
		b.containers[c].setRange(int(first-base), int(stop-base))
		first = stop
	}
	return nil
}

// SetAll adds every page of the volume.
func (b *Bitmap) SetAll() {
	for i := range b.containers {
		stop := min(b.pages-int64(i)*containerPages, containerPages)
		b.containers[i].setRange(0, int(stop))
	}
}

// AnyIn reports whether the extent touches a page of the set. Parts of the extent outside the
// volume count as not set.
func (b *Bitmap) AnyIn(e Extent) bool {
	if e.Length <= 0 || e.End() <= 0 || e.Offset >= b.size {
		return false
	}
	p, ok := b.nextSet(max(e.Offset, 0) / b.page)
	return ok && p*b.page < e.End()
}

// Bytes is how many bytes of the volume the pages cover.
func (b *Bitmap) Bytes() int64 {
	var n int64
	for i := range b.containers {
		n += int64(b.containers[i].count)
	}
	n *= b.page
	// The last page may reach beyond the volume.
	if p, ok := b.nextSet(b.pages - 1); ok && p == b.pages-1 {
		n -= b.pages*b.page - b.size
	}
	return n
}

// Chunks yields every chunk that touches a page of the set, in ascending order. g must
// describe the same volume.
func (b *Bitmap) Chunks(g Geometry) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for chunk := int64(0); chunk < g.Chunks(); chunk++ {
			p, ok := b.nextSet(chunk * g.ChunkSize() / b.page)
			if !ok {
				return
			}
			chunk = max(chunk, p*b.page/g.ChunkSize())
			if chunk >= g.Chunks() || !yield(chunk) {
				return
			}
		}
	}
}

// CountChunks is how many chunks Chunks yields.
func (b *Bitmap) CountChunks(g Geometry) int64 {
	var n int64
	for range b.Chunks(g) {
		n++
	}
	return n
}

// Extents yields the set as maximal extents in ascending order, cut to the
// given range and to the volume.
func (b *Bitmap) Extents(within Extent) iter.Seq[Extent] {
	end := min(within.End(), b.size)
	return func(yield func(Extent) bool) {
		for off := max(within.Offset, 0); off < end; {
			first, ok := b.nextSet(off / b.page)
			if !ok || first*b.page >= end {
				return
			}
			start := max(off, first*b.page)
			off = min(end, b.nextClear(first)*b.page)
			if !yield(Extent{Offset: start, Length: off - start}) {
				return
			}
		}
	}
}

// nextSet is the first page of the set at or after p.
func (b *Bitmap) nextSet(p int64) (int64, bool) {
	for p < b.pages {
		c := p / containerPages
		base := c * containerPages
		if i, ok := b.containers[c].nextSet(int(p - base)); ok {
			return base + int64(i), true
		}
		p = base + containerPages
	}
	return 0, false
}

// nextClear is the first page at or after p that is not in the set; it may be
// the number of pages.
func (b *Bitmap) nextClear(p int64) int64 {
	for p < b.pages {
		c := p / containerPages
		base := c * containerPages
		i := b.containers[c].nextClear(int(p - base))
		p = base + int64(i)
		if i < containerPages {
			break
		}
	}
	return min(p, b.pages)
}

// container is a set of up to 65,536 pages: runs, or the bitmap if it is not nil.
type container struct {
	count int32
	// runs are in ascending order, and at least one page is between two of them.
	runs   []run
	bitmap *[words]uint64
}

// run is the pages from first to last, both included.
type run struct{ first, last uint16 }

func (r run) pages() int32 { return int32(r.last) - int32(r.first) + 1 }

func (c *container) setRange(lo, hi int) {
	switch {
	case c.count == containerPages:
		return
	case c.bitmap == nil:
		c.insert(lo, hi)
		if len(c.runs) > maxRuns {
			c.toBitmap()
		}
		return
	}
	c.setBits(lo, hi)
	if c.count == containerPages {
		*c = container{}
		c.insert(0, containerPages)
	}
}

// insert merges a range with the runs that it overlaps or touches. The range usually
// follows all of them.
func (c *container) insert(lo, hi int) {
	from := len(c.runs)
	if from > 0 && int(c.runs[from-1].last)+1 >= lo {
		from = sort.Search(from, func(i int) bool { return int(c.runs[i].last)+1 >= lo })
	}
	to := from
	for to < len(c.runs) && int(c.runs[to].first) <= hi {
		c.count -= c.runs[to].pages()
		to++
	}
	if from < to {
		lo = min(lo, int(c.runs[from].first))
		hi = max(hi, int(c.runs[to-1].last)+1)
	}
	merged := run{uint16(lo), uint16(hi - 1)}
	c.runs = slices.Replace(c.runs, from, to, merged)
	c.count += merged.pages()
}

func (c *container) toBitmap() {
	runs := c.runs
	*c = container{bitmap: new([words]uint64)}
	for _, r := range runs {
		c.setBits(int(r.first), int(r.last)+1)
	}
}

func (c *container) setBits(lo, hi int) {
	for lo < hi {
		w := lo / 64
		stop := min(hi, (w+1)*64)
		mask := ^uint64(0) << (lo % 64)
		if tail := stop - w*64; tail < 64 {
			mask &= 1<<tail - 1
		}
		c.count += int32(bits.OnesCount64(mask &^ c.bitmap[w]))
		c.bitmap[w] |= mask
		lo = stop
	}
}

// runAfter is the index of the first run that ends at p or after it.
func (c *container) runAfter(p int) int {
	return sort.Search(len(c.runs), func(i int) bool { return int(c.runs[i].last) >= p })
}

func (c *container) nextSet(p int) (int, bool) {
	if c.bitmap == nil {
		i := c.runAfter(p)
		if i == len(c.runs) {
			return 0, false
		}
		return max(p, int(c.runs[i].first)), true
	}
	w := p / 64
	word := c.bitmap[w] & (^uint64(0) << (p % 64))
	for word == 0 {
		if w++; w == words {
			return 0, false
		}
		word = c.bitmap[w]
	}
	return w*64 + bits.TrailingZeros64(word), true
}

// nextClear returns containerPages if all pages from p on are set.
func (c *container) nextClear(p int) int {
	if c.bitmap == nil {
		i := c.runAfter(p)
		if i == len(c.runs) || int(c.runs[i].first) > p {
			return p
		}
		return int(c.runs[i].last) + 1
	}
	w := p / 64
	word := ^c.bitmap[w] & (^uint64(0) << (p % 64))
	for word == 0 {
		if w++; w == words {
			return containerPages
		}
		word = ^c.bitmap[w]
	}
	return w*64 + bits.TrailingZeros64(word)
}
