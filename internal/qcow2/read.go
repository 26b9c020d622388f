package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"io"
	"sync"

	kzstd "github.com/klauspost/compress/zstd"

	"github.com/blockmover/blockmover/internal/block"
)

// read fills p with the disk from off on. It calls absent for each part that is not in this
// layer, with the place in p where that part belongs.
func (l *Layer) read(ctx context.Context, p []byte, off int64, absent func(p []byte, off int64) error) error {
	return l.walk(ctx, block.Extent{Offset: off, Length: int64(len(p))}, func(part piece) error {
		into := p[part.Offset-off : part.End()-off]
		var err error
		switch {
		case part.State == Absent:
			return absent(into, part.Offset)
		case part.State == Zero:
			clear(into)
		case part.compressed > 0:
			err = l.readCompressed(into, part)
		default:
			err = readFull(l.file, into, part.host)
		}
		if err != nil {
			return fmt.Errorf("read %s of the disk from the qcow2 file: %w", part.Extent.Extent, err)
		}
		return nil
	})
}

// buffers keeps buffers of one size, and decoders.
type buffers struct {
	clusters, decoders sync.Pool
}

func (l *Layer) readCompressed(into []byte, p piece) error {
	whole := into
	if int64(len(into)) < l.clusterSize() {
		buf, ok := l.scratch.clusters.Get().(*[]byte)
		if !ok {
			b := make([]byte, l.clusterSize())
			buf = &b
		}
		defer l.scratch.clusters.Put(buf)
		whole = *buf
	}
	packed := make([]byte, p.compressed)
	if err := readFull(l.file, packed, p.host); err != nil {
		return err
	}
	if err := l.decompress(whole, packed); err != nil {
		return malformed("compressed cluster at %d of the file: %w", p.host, err)
	}
	if int64(len(into)) < l.clusterSize() {
		copy(into, whole[p.skip:])
	}
	return nil
}

// maxWindow is more than a compressor needs for a cluster of 2 MiB.
const maxWindow = 8 << 20

// decompress fills a cluster. What follows it in packed belongs to others.
func (l *Layer) decompress(into, packed []byte) error {
	if l.compression == zlib {
		r := flate.NewReader(bytes.NewReader(packed))
		_, err := io.ReadFull(r, into)
		return err
	}
	d, ok := l.scratch.decoders.Get().(*kzstd.Decoder)
	if !ok {
		var err error
		d, err = kzstd.NewReader(nil, kzstd.WithDecoderConcurrency(1), kzstd.WithDecoderLowmem(true),
			kzstd.WithDecoderMaxWindow(maxWindow), kzstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return err
		}
	}
	defer l.scratch.decoders.Put(d)
	if err := d.Reset(bytes.NewReader(packed)); err != nil {
		return err
	}
	_, err := io.ReadFull(d, into)
	return err
}
