package ext

import (
	"errors"
	"fmt"
	"io"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/pages"
)

const (
	// metadataPages bounds the cache of metadata: 16 MiB.
	metadataPages = 256
	// rawPages bounds the cache of the log: 4 MiB.
	rawPages = 64
)

// page is a piece of the device. It never changes once it is loaded.
type page struct {
	// data is shorter than pages.Size at the end of the device.
	data []byte
	// bad has the errors of blocks, by their offset in the page, that the journal has and that cannot be read from it.
	bad map[int64]error
}

// device reads blocks of the file system. Once a log is there, it has precedence over the places of the blocks.
type device struct {
	r         io.ReaderAt
	size      int64
	blockSize int64
	blocks    uint64
	log       *log

	raw, metadata *pages.Cache[*page]
}

func newDevice(r io.ReaderAt, size int64, s *superblock) *device {
	d := &device{r: r, size: size, blockSize: s.blockSize, blocks: s.blocks}
	d.raw = pages.New(rawPages, d.loadRaw)
	d.metadata = pages.New(metadataPages, d.loadMetadata)
	return d
}

// withLog returns a device that shows what the log has in its place.
func (d *device) withLog(l *log) *device {
	replayed := &device{r: d.r, size: d.size, blockSize: d.blockSize, blocks: d.blocks, log: l, raw: d.raw}
	replayed.metadata = pages.New(metadataPages, replayed.loadMetadata)
	return replayed
}

// readFull fills p from an offset of the device, past the log.
func (d *device) readFull(p []byte, off int64) error {
	if off < 0 || off > d.size-int64(len(p)) {
		return damaged("the %d bytes at %d are beyond the device of %d bytes", len(p), off, d.size)
	}
	n, err := d.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

func (d *device) loadRaw(index int64) (*page, error) {
	off := index * pages.Size
	if off >= d.size {
		return nil, damaged("offset %d is beyond the device of %d bytes", off, d.size)
	}
	data := make([]byte, min(pages.Size, d.size-off))
	if err := d.readFull(data, off); err != nil {
		return nil, err
	}
	return &page{data: data}, nil
}

func (d *device) loadMetadata(index int64) (*page, error) {
	p, err := d.loadRaw(index)
	if err != nil || d.log == nil {
		return p, err
	}
	for off := int64(0); off+d.blockSize <= int64(len(p.data)); off += d.blockSize {
		block, found, err := d.log.read(uint64((index*pages.Size + off) / d.blockSize))
		switch {
		case errors.Is(err, filesystem.ErrDamaged):
			if p.bad == nil {
				p.bad = map[int64]error{}
			}
			p.bad[off] = err
		case err != nil:
			return nil, err
		case found:
			copy(p.data[off:], block)
		}
	}
	return p, nil
}

// block returns a block of metadata, which must not be changed.
func (d *device) block(number uint64) ([]byte, error) { return d.blockFrom(d.metadata, number) }

// rawBlock returns a block as it is in its place on the device.
func (d *device) rawBlock(number uint64) ([]byte, error) { return d.blockFrom(d.raw, number) }

func (d *device) blockFrom(cache *pages.Cache[*page], number uint64) ([]byte, error) {
	if number >= d.blocks {
		return nil, damaged("block %d is beyond the file system of %d blocks", number, d.blocks)
	}
	off := int64(number) * d.blockSize
	p, err := cache.Get(off / pages.Size)
	if err != nil {
		return nil, err
	}
	within := off % pages.Size
	if err := p.bad[within]; err != nil {
		return nil, err
	}
	if within+d.blockSize > int64(len(p.data)) {
		return nil, damaged("block %d is beyond the device of %d bytes", number, d.size)
	}
	return p.data[within : within+d.blockSize], nil
}

// readData fills p from an offset of the file system, without a cache.
func (d *device) readData(p []byte, off int64) error {
	if err := d.readFull(p, off); err != nil {
		return err
	}
	if d.log == nil || len(p) == 0 {
		return nil
	}
	end := off + int64(len(p))
	for number := uint64(off / d.blockSize); int64(number)*d.blockSize < end; number++ {
		block, found, err := d.log.read(number)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		at := int64(number) * d.blockSize
		if at < off {
			copy(p, block[off-at:])
		} else {
			copy(p[at-off:], block)
		}
	}
	return nil
}

// damaged makes an error that wraps filesystem.ErrDamaged.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), filesystem.ErrDamaged)
}

// unsupported makes an error that wraps filesystem.ErrUnsupported.
func unsupported(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), filesystem.ErrUnsupported)
}
