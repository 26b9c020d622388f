package xfs

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	pageSize  = 64 << 10
	pageCount = (16 << 20) / pageSize
)

// device reads metadata in pages, and keeps the last ones. It is safe for concurrent use.
type device struct {
	r    io.ReaderAt
	size int64

	mu    sync.Mutex
	pages map[int64]*list.Element
	order list.List // of *page, the last used first
}

type page struct {
	number int64
	data   []byte // never changed
}

func newDevice(r io.ReaderAt, size int64) *device {
	return &device{r: r, size: size, pages: map[int64]*list.Element{}}
}

// read returns a copy of n bytes at off.
func (d *device) read(off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	return b, d.readInto(b, off)
}

func (d *device) readInto(b []byte, off int64) error {
	if off < 0 || off > d.size-int64(len(b)) {
		return damaged("%d bytes at byte %d are outside of the device of %d bytes", len(b), off, d.size)
	}
	for len(b) > 0 {
		data, err := d.page(off / pageSize)
		if err != nil {
			return err
		}
		n := copy(b, data[off%pageSize:])
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (d *device) page(number int64) ([]byte, error) {
	d.mu.Lock()
	if e, found := d.pages[number]; found {
		d.order.MoveToFront(e)
		data := e.Value.(*page).data //nolint:errcheck // the list has only pages
		d.mu.Unlock()
		return data, nil
	}
	d.mu.Unlock()

	data := make([]byte, min(pageSize, d.size-number*pageSize))
	if err := d.direct(data, number*pageSize); err != nil {
		return nil, err
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if _, found := d.pages[number]; found {
		return data, nil // another reader was faster
	}
	d.pages[number] = d.order.PushFront(&page{number, data})
	if d.order.Len() > pageCount {
		last := d.order.Back()
		delete(d.pages, d.order.Remove(last).(*page).number) //nolint:errcheck // the list has only pages
	}
	return data, nil
}

// direct fills b from the device, past the pages. The range is inside of the device.
func (d *device) direct(b []byte, off int64) error {
	n, err := d.r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at byte %d of the device: %w", len(b), off, err)
}
