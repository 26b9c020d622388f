// Package pages keeps the pages of a device that were used last. It is pure.
package pages

import (
	"container/list"
	"sync"
)

// Size is the unit in which metadata is read. Every block size divides it.
const Size = 64 << 10

// Cache keeps pages, which never change once they are loaded. Two who want the same page at once load it once. It is
// safe for concurrent use.
type Cache[T any] struct {
	load func(index int64) (T, error)
	most int

	mu    sync.Mutex
	pages map[int64]*list.Element
	order *list.List // of *entry[T]; the last used is in front
}

type entry[T any] struct {
	index int64
	once  sync.Once
	page  T
	err   error
}

// New makes a cache of at most so many pages.
func New[T any](most int, load func(index int64) (T, error)) *Cache[T] {
	return &Cache[T]{load: load, most: most, pages: map[int64]*list.Element{}, order: list.New()}
}

// Get returns a page. An error is not kept.
func (c *Cache[T]) Get(index int64) (T, error) {
	e := c.entry(index)
	e.once.Do(func() { e.page, e.err = c.load(index) })
	if e.err != nil {
		c.forget(e)
	}
	return e.page, e.err
}

func (c *Cache[T]) entry(index int64) *entry[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, found := c.pages[index]; found {
		c.order.MoveToFront(element)
		return element.Value.(*entry[T]) //nolint:errcheck,forcetypeassert // the list has nothing else
	}
	e := &entry[T]{index: index}
	c.pages[index] = c.order.PushFront(e)
	if c.order.Len() > c.most {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.pages, last.Value.(*entry[T]).index) //nolint:errcheck,forcetypeassert // the list has nothing else
	}
	return e
}

func (c *Cache[T]) forget(e *entry[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, found := c.pages[e.index]; found && element.Value == e {
		c.order.Remove(element)
		delete(c.pages, e.index)
	}
}
