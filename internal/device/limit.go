package device

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
)

// Accesses are cut into slices, each of which waits for its turn: 16 a second, so
// that the traffic is smooth at any limit. Larger ones than 1 MiB would not save
// time, and smaller ones than a page could not go past the page cache.
const (
	slicesPerSecond = 16
	minSlice        = bufferAlign
	maxSlice        = 1 << 20
)

// LimitReader returns a device that reads at most bytesPerSecond, all its users together.
// 0 is no limit; otherwise the limit is 64 KiB or more. An access that waits for its turn
// ends with the error of ctx when ctx ends.
func LimitReader(ctx context.Context, d Reader, bytesPerSecond int64) Reader {
	if bytesPerSecond == 0 {
		return d
	}
	return &limitedReader{d, newLimit(ctx, bytesPerSecond)}
}

// LimitWriter is LimitReader for a device that is written: what is read and what
// is written counts together. Zero counts nothing, as it sends nothing to a device
// that knows how to zero.
func LimitWriter(ctx context.Context, d Writer, bytesPerSecond int64) Writer {
	if bytesPerSecond == 0 {
		return d
	}
	return &limitedWriter{d, newLimit(ctx, bytesPerSecond)}
}

type limitedReader struct {
	Reader
	limit
}

type limitedWriter struct {
	Writer
	limit
}

// ReadAt implements Reader.
func (l *limitedReader) ReadAt(p []byte, off int64) (int, error) {
	return l.slices(l.Size(), p, off, l.Reader.ReadAt)
}

// ReadAt implements Reader.
func (l *limitedWriter) ReadAt(p []byte, off int64) (int, error) {
	return l.slices(l.Size(), p, off, l.Writer.ReadAt)
}

// WriteAt implements Writer.
func (l *limitedWriter) WriteAt(p []byte, off int64) (int, error) {
	return l.slices(l.Size(), p, off, l.Writer.WriteAt)
}

// limit is shared by all accesses of a device.
type limit struct {
	ctx     context.Context //nolint:containedctx // io.ReaderAt and io.WriterAt take none
	limiter *rate.Limiter
	slice   int
}

func newLimit(ctx context.Context, bytesPerSecond int64) limit {
	slice := min(max(bytesPerSecond/slicesPerSecond/bufferAlign*bufferAlign, minSlice), maxSlice)
	return limit{ctx: ctx, limiter: rate.NewLimiter(rate.Limit(bytesPerSecond), int(slice)), slice: int(slice)}
}

// slices does an access of a device of size bytes piece by piece.
func (l *limit) slices(size int64, p []byte, off int64, access func(p []byte, off int64) (int, error)) (int, error) {
	if checkRange(size, p, off) != nil || len(p) == 0 {
		return access(p, off) // which says what is wrong, before any of it is done
	}
	done := 0
	for done < len(p) {
		part := p[done:min(done+l.slice, len(p))]
		if err := l.limiter.WaitN(l.ctx, len(part)); err != nil {
			return done, fmt.Errorf("wait for the rate limit: %w", err)
		}
		n, err := access(part, off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
