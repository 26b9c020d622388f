package extract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	// pieceSize is how much of a file is read at once, and buffers how many pieces are read at the same time: enough to
	// fill a link on which a request takes 20 ms, in 24 MiB of memory.
	pieceSize = 1 << 20
	buffers   = 24
	// workers is how many files are copied at the same time.
	workers = 16
	// mostExtents bounds the list of extents that is kept of one file.
	mostExtents = 1 << 20
)

// pool has the buffers.
type pool chan []byte

func newPool() pool {
	p := make(pool, buffers)
	for range buffers {
		p <- nil
	}
	return p
}

// with calls work with a buffer of size bytes, at most pieceSize.
func (p pool) with(ctx context.Context, size int64, work func([]byte) error) error {
	select {
	case buf := <-p:
		defer func() { p <- buf }()
		if int64(cap(buf)) < size {
			buf = make([]byte, size)
		}
		return work(buf[:size])
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Progress counts what was copied, and what was found so far. It may be read at any time.
type Progress struct {
	Files, Bytes, Found atomic.Int64
}

// pieces yields the pieces of the extents of a file: neighbours together, at most pieceSize each.
func pieces(files filesystem.FileSystem, id filesystem.ID, size int64, yield func(block.Extent) error) error {
	var last block.Extent
	flush := func() error {
		for last.Length > 0 {
			piece := block.Extent{Offset: last.Offset, Length: min(last.Length, pieceSize)}
			if err := yield(piece); err != nil {
				return err
			}
			last.Offset += piece.Length
			last.Length -= piece.Length
		}
		return nil
	}
	for e, err := range files.Extents(id) {
		if err != nil {
			return err
		}
		if err := e.CheckWithin(size); err != nil {
			return fmt.Errorf("%w: %w", filesystem.ErrDamaged, err)
		}
		if e.Offset < last.End() {
			return fmt.Errorf("%w: extent %s begins before the end of %s", filesystem.ErrDamaged, e, last)
		}
		if last.Length > 0 && last.End() == e.Offset {
			last.Length += e.Length
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		last = e
	}
	return flush()
}

// copyContent writes the extents of a file, several pieces at once. What is between them stays a hole.
func copyContent(ctx context.Context, files filesystem.FileSystem, id filesystem.ID, size int64, to io.WriterAt, p pool, progress *Progress) error {
	content, err := files.Open(id)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(buffers)
	err = pieces(files, id, size, func(e block.Extent) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		group.Go(func() error {
			return p.with(ctx, e.Length, func(buf []byte) error {
				if err := readFull(content, buf, e.Offset); err != nil {
					return err
				}
				progress.Bytes.Add(e.Length)
				_, err := to.WriteAt(buf, e.Offset)
				return err
			})
		})
		return nil
	})
	if waited := group.Wait(); waited != nil {
		return waited
	}
	return err
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// WriteTo writes the content of a file in order, reading ahead.
func WriteTo(ctx context.Context, files filesystem.FileSystem, id filesystem.ID, w io.Writer) error {
	info, err := files.Stat(id)
	if err != nil {
		return err
	}
	content, err := files.Open(id)
	if err != nil {
		return err
	}
	return stream(ctx, content, []block.Extent{{Length: info.Size}}, w, newPool(), &Progress{})
}

// stream writes extents of a file in order. The next pieces are read while one is written.
func stream(ctx context.Context, content io.ReaderAt, extents []block.Extent, w io.Writer, p pool, progress *Progress) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type piece struct {
		data []byte
		err  error
	}
	queue := make(chan chan piece, buffers/2)
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(queue)
		for _, e := range extents {
			for off := e.Offset; off < e.End(); off += pieceSize {
				n := min(e.End()-off, pieceSize)
				result := make(chan piece, 1)
				select {
				case queue <- result:
				case <-groupCtx.Done():
					return groupCtx.Err()
				}
				go func() {
					err := p.with(groupCtx, 0, func([]byte) error {
						data := make([]byte, n)
						err := readFull(content, data, off)
						result <- piece{data, err}
						return nil
					})
					if err != nil {
						result <- piece{nil, err}
					}
				}()
			}
		}
		return nil
	})
	group.Go(func() error {
		for result := range queue {
			got := <-result
			if got.err != nil {
				return got.err
			}
			if _, err := w.Write(got.data); err != nil {
				return err
			}
			progress.Bytes.Add(int64(len(got.data)))
		}
		return nil
	})
	return group.Wait()
}
