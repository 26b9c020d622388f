package xfs

import (
	"errors"
	"fmt"
	"io"

	"github.com/blockmover/blockmover/internal/filesystem/pages"
)

// metadataPages bounds the cache of metadata: 16 MiB.
const metadataPages = (16 << 20) / pages.Size

// device reads metadata in pages, and keeps the last ones. It is safe for concurrent use.
type device struct {
	r     io.ReaderAt
	size  int64
	pages *pages.Cache[[]byte]
}

func newDevice(r io.ReaderAt, size int64) *device {
	d := &device{r: r, size: size}
	d.pages = pages.New(metadataPages, d.load)
	return d
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
		data, err := d.pages.Get(off / pages.Size)
		if err != nil {
			return err
		}
		n := copy(b, data[off%pages.Size:])
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (d *device) load(number int64) ([]byte, error) {
	data := make([]byte, min(pages.Size, d.size-number*pages.Size))
	return data, d.direct(data, number*pages.Size)
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
