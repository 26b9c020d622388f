package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/repository/readcache"
)

// Serve answers requests until the client closes its end, or is not heard of for patience. It closes in then.
func Serve(ctx context.Context, image readcache.Image, size, chunk int64, in io.ReadCloser, out io.Writer, patience time.Duration) error {
	hello := binary.BigEndian.AppendUint64([]byte(greeting), uint64(size))
	if _, err := out.Write(binary.BigEndian.AppendUint64(hello, uint64(chunk))); err != nil {
		return fmt.Errorf("greet client: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer silence.Stop()
	stop := context.AfterFunc(ctx, func() { _ = in.Close() }) // ends the read below
	defer stop()

	var mu sync.Mutex
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel + mostWaiting)
	slots := make(chan struct{}, parallel)
	for {
		r, err := readRequest(in)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, group.Wait())
		}
		silence.Reset(patience)
		if r.kind == kindPing {
			continue // to be heard of is all that it is for
		}
		group.Go(func() error {
			slots <- struct{}{}
			defer func() { <-slots }()
			answer := answerTo(groupCtx, image, size, chunk, r)
			mu.Lock()
			defer mu.Unlock()
			if _, err := out.Write(answer); err != nil {
				err = fmt.Errorf("answer client: %w", err)
				cancel(err)
				return err
			}
			return nil
		})
	}
}

var errSilent = errors.New("nothing was heard of the client")

func answerTo(ctx context.Context, image readcache.Image, size, chunk int64, r request) []byte {
	var data []byte
	var err error
	switch r.kind {
	case kindRead:
		if r.offset > size || r.length > size-r.offset {
			err = fmt.Errorf("%d bytes at %d are outside of the image of %d bytes", r.length, r.offset, size)
			break
		}
		data = make([]byte, r.length)
		var n int
		if n, err = image.ReadAt(data, r.offset); n == len(data) {
			err = nil
		}
	case kindZero:
		data = make([]byte, max(0, min(r.length, (size-1)/chunk+1-r.offset)))
		for i := range data {
			n := r.offset + int64(i)
			var zero bool
			if zero, err = image.IsZero(ctx, n); err != nil {
				break
			}
			if zero {
				data[i] = 1
			}
		}
	}
	if err != nil {
		text := []byte(err.Error())
		return encodeAnswer(r.id, statusError, text[:min(len(text), mostText)])
	}
	return encodeAnswer(r.id, statusOK, data)
}
