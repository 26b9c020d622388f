package kopia

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
)

// putsType is the type of a storage for writing.
const putsType = "blockmover-puts"

func init() { //nolint:gochecknoinits // as in ranges.go
	addStorage(putsType, func(st blob.Storage) blob.Storage { return newPutStorage(st) })
}

// putting returns the connection to the same storage, for writing.
func putting(inner blob.ConnectionInfo) *blob.ConnectionInfo {
	return &blob.ConnectionInfo{Type: putsType, Config: &inner}
}

// putStorage does three things in another way than kopia's storages. On a link, a session takes half as long with it.
//
// It asks for the time of a blob by itself. kopia's S3 storage asks also after a write that has failed, and returns that the blob is not
// there: the words of the object store are lost, nothing is tried again, and it looks as if the repository had lost something. For the
// marker of a session it does not ask. kopia only compares that time with its own if checkClock is set.
//
// It writes and deletes the markers of sessions in the background. A marker says that the packs of its session are not garbage although no
// index has them, so it is there before the index is written. When it is deleted, the index is there. One that stays is of no
// importance: maintenance deletes it.
//
// It remembers the small packs that it wrote last. kopia reads the manifests again that it has just written, and so do we.
type putStorage struct {
	blob.Storage

	background sync.WaitGroup

	mu    sync.Mutex
	packs map[blob.ID][]byte
	order []blob.ID
	// markers are those that are or were written, since the last index.
	markers map[blob.ID]*answer
	// errs are of deletions.
	errs []error
}

// checkClock is the environment variable by which kopia compares clocks.
const checkClock = "KOPIA_ENABLE_CLOCK_SKEW_CHECK"

const (
	// maxRemembered is the largest pack that is remembered. A pack of data is larger, one of manifests is not.
	maxRemembered = 256 << 10
	// remembered is how many are.
	remembered = 16
)

func newPutStorage(st blob.Storage) *putStorage {
	return &putStorage{Storage: st, packs: map[blob.ID][]byte{}, markers: map[blob.ID]*answer{}}
}

// PutBlob implements blob.Storage.
func (s *putStorage) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, opts blob.PutOptions) error {
	modTime := opts.GetModTime
	opts.GetModTime = nil
	_, check := os.LookupEnv(checkClock)
	switch {
	case isSession(id) && !check:
		return s.putMarker(ctx, id, data, opts)
	case strings.HasPrefix(string(id), indexBlobs):
		if err := s.waitForMarkers(ctx); err != nil {
			return err
		}
	}
	if err := s.Storage.PutBlob(ctx, id, data, opts); err != nil {
		return err
	}
	if err := s.remember(id, data); err != nil {
		return err
	}
	if modTime == nil {
		return nil
	}
	found, err := s.GetMetadata(ctx, id)
	if err != nil {
		return err
	}
	*modTime = found.Timestamp
	return nil
}

// putMarker writes the marker of a session in the background. kopia ends the context with the pack that needed the marker, which may be
// earlier.
func (s *putStorage) putMarker(ctx context.Context, id blob.ID, data blob.Bytes, opts blob.PutOptions) error {
	var marker bytes.Buffer // kopia uses the memory again
	if _, err := data.WriteTo(&marker); err != nil {
		return fmt.Errorf("copy session marker %s: %w", id, err)
	}
	written := newAnswer()
	s.mu.Lock()
	s.markers[id] = written
	s.mu.Unlock()
	s.background.Go(func() {
		defer close(written.done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if written.err = s.Storage.PutBlob(ctx, id, blobBytes(marker.Bytes()), opts); written.err != nil {
			written.err = fmt.Errorf("write session marker %s: %w", id, written.err)
		}
	})
	return nil
}

func (s *putStorage) waitForMarkers(ctx context.Context) error {
	s.mu.Lock()
	markers := s.markers
	s.markers = map[blob.ID]*answer{}
	s.mu.Unlock()
	for _, written := range markers {
		select {
		case <-written.done:
			if written.err != nil {
				return written.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func isSession(id blob.ID) bool {
	return strings.HasPrefix(string(id), string(content.BlobIDPrefixSession))
}

func isPack(id blob.ID) bool {
	return slices.ContainsFunc(content.PackBlobIDPrefixes, func(prefix blob.ID) bool { return strings.HasPrefix(string(id), string(prefix)) })
}

func (s *putStorage) remember(id blob.ID, data blob.Bytes) error {
	if !isPack(id) || data.Length() > maxRemembered {
		return nil
	}
	var pack bytes.Buffer
	if _, err := data.WriteTo(&pack); err != nil {
		return fmt.Errorf("copy pack %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == remembered {
		delete(s.packs, s.order[0])
		s.order = s.order[1:]
	}
	s.packs[id] = pack.Bytes()
	s.order = append(s.order, id)
	return nil
}

// GetBlob implements blob.Reader.
func (s *putStorage) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	s.mu.Lock()
	pack, ok := s.packs[id]
	s.mu.Unlock()
	end := offset + length
	if length < 0 {
		end = int64(len(pack))
	}
	if !ok || offset < 0 || end < offset || end > int64(len(pack)) {
		return s.Storage.GetBlob(ctx, id, offset, length, output)
	}
	output.Reset()
	_, err := output.Write(pack[offset:end])
	return err
}

// DeleteBlob implements blob.Storage.
func (s *putStorage) DeleteBlob(ctx context.Context, id blob.ID) error {
	if !isSession(id) {
		s.mu.Lock()
		delete(s.packs, id)
		s.mu.Unlock()
		return s.Storage.DeleteBlob(ctx, id)
	}
	s.mu.Lock()
	written := s.markers[id]
	delete(s.markers, id)
	s.mu.Unlock()
	s.background.Go(func() {
		if written != nil {
			<-written.done
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := s.Storage.DeleteBlob(ctx, id); err != nil && !errors.Is(err, blob.ErrBlobNotFound) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.errs = append(s.errs, fmt.Errorf("delete session marker %s: %w", id, err))
		}
	})
	return nil
}

// blobBytes are the bytes of a small blob. They implement blob.Bytes.
type blobBytes []byte

// WriteTo implements io.WriterTo.
func (b blobBytes) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b)
	return int64(n), err
}

// Length implements blob.Bytes.
func (b blobBytes) Length() int { return len(b) }

// Reader implements blob.Bytes.
func (b blobBytes) Reader() io.ReadSeekCloser { return readSeekNopCloser{bytes.NewReader(b)} }

type readSeekNopCloser struct{ *bytes.Reader }

// Close implements io.Closer.
func (readSeekNopCloser) Close() error { return nil }

// Close implements blob.Storage.
func (s *putStorage) Close(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		s.background.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done(): // the storage hangs
		return errors.Join(fmt.Errorf("write and delete session markers: %w", ctx.Err()), s.Storage.Close(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(append(s.errs, s.Storage.Close(ctx))...)
}
