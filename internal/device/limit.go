package device

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
)

// Accesses are cut into slices, each of which waits for its turn. 16 slices a second make the
// traffic smooth at any limit. A slice has at most 1 MiB, above which no time is saved, and
// at least one page, which is the least that can bypass the page cache.
const (
	slicesPerSecond = 16
	minSlice        = Alignment
	maxSlice        = 1 << 20
)

// catchUp is the part of a second for which a device may be faster, after all its users have waited for something
// else. Without it, what they missed is missed for good: a data path that waits 0.2 s each second for its object
// store would move a fifth less than it may. With it, no 5 s have more than 5 % too much.
const catchUp = 4

// LimitReader returns a device that reads at most bytesPerSecond, all its users together. 0
// is no limit; otherwise the limit is 64 KiB or more. An access that waits for its turn ends
// with the error of ctx when ctx ends.
func LimitReader(ctx context.Context, d Reader, bytesPerSecond int64) Reader {
	if bytesPerSecond == 0 {
		return d
	}
	return &limitedReader{d, newLimit(ctx, bytesPerSecond)}
}

// LimitWriter is LimitReader for a device that is written. Reads and writes share the limit.
// Zero does not count: it sends nothing to the device.
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
	slice := min(max(bytesPerSecond/slicesPerSecond/Alignment*Alignment, minSlice), maxSlice)
	limiter := rate.NewLimiter(rate.Limit(bytesPerSecond), int(slice))
	limiter.SetBurst(int(max(bytesPerSecond/catchUp, slice))) // it starts without: nothing was missed yet
	return limit{ctx: ctx, limiter: limiter, slice: int(slice)}
}

// slices does an access to a device of size bytes slice by slice.
func (l *limit) slices(size int64, p []byte, off int64, access func(p []byte, off int64) (int, error)) (int, error) {
	if CheckRange(size, p, off) != nil || len(p) == 0 {
		return access(p, off) // it says what is wrong, before anything is done
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
