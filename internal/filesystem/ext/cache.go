package ext

import (
	"container/list"
	"sync"
)

// pageSize is the unit in which metadata is read and cached. Every block size divides it.
const pageSize = 64 << 10

// page is a piece of the device. It never changes once it is loaded.
type page struct {
	// data is shorter than pageSize at the end of the device.
	data []byte
	// bad has the errors of blocks, by their offset in the page, that the journal has and that cannot be read from it.
	bad map[int64]error
}

// pageCache keeps the pages that were used last. Two who want the same page at once load it once.
type pageCache struct {
	load func(index int64) (*page, error)
	most int

	mu    sync.Mutex
	pages map[int64]*list.Element
	order *list.List // of *pageEntry; the last used is in front
}

type pageEntry struct {
	index int64
	once  sync.Once
	page  *page
	err   error
}

func newPageCache(most int, load func(index int64) (*page, error)) *pageCache {
	return &pageCache{load: load, most: most, pages: map[int64]*list.Element{}, order: list.New()}
}

// get returns a page. An error is not kept.
func (c *pageCache) get(index int64) (*page, error) {
	entry := c.entry(index)
	entry.once.Do(func() { entry.page, entry.err = c.load(index) })
	if entry.err != nil {
		c.forget(entry)
	}
	return entry.page, entry.err
}

func (c *pageCache) entry(index int64) *pageEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, found := c.pages[index]; found {
		c.order.MoveToFront(element)
		return element.Value.(*pageEntry) //nolint:errcheck,forcetypeassert // the list has nothing else
	}
	entry := &pageEntry{index: index}
	c.pages[index] = c.order.PushFront(entry)
	if c.order.Len() > c.most {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.pages, last.Value.(*pageEntry).index) //nolint:errcheck,forcetypeassert // the list has nothing else
	}
	return entry
}

func (c *pageCache) forget(entry *pageEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, found := c.pages[entry.index]; found && element.Value == entry {
		c.order.Remove(element)
		delete(c.pages, entry.index)
	}
}
