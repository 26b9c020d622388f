package kopia

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
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
// It deletes the markers of sessions in the background, and waits for that when it is closed. A marker that stays is of no importance:
// the session has ended, and maintenance deletes it.
//
// It remembers the small packs that it wrote last. kopia reads the manifests again that it has just written, and so do we.
type putStorage struct {
	blob.Storage

	deleting sync.WaitGroup

	mu    sync.Mutex
	packs map[blob.ID][]byte
	order []blob.ID
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
	return &putStorage{Storage: st, packs: map[blob.ID][]byte{}}
}

// PutBlob implements blob.Storage.
func (s *putStorage) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, opts blob.PutOptions) error {
	modTime := opts.GetModTime
	opts.GetModTime = nil
	if err := s.Storage.PutBlob(ctx, id, data, opts); err != nil {
		return err
	}
	if err := s.remember(id, data); err != nil {
		return err
	}
	if _, check := os.LookupEnv(checkClock); modTime == nil || isSession(id) && !check {
		return nil
	}
	found, err := s.GetMetadata(ctx, id)
	if err != nil {
		return err
	}
	*modTime = found.Timestamp
	return nil
}

func isSession(id blob.ID) bool {
	return strings.HasPrefix(string(id), string(content.BlobIDPrefixSession))
}

func isPack(id blob.ID) bool {
	for _, prefix := range content.PackBlobIDPrefixes {
		if strings.HasPrefix(string(id), string(prefix)) {
			return true
		}
	}
	return false
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
	s.deleting.Go(func() {
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

// Close implements blob.Storage.
func (s *putStorage) Close(ctx context.Context) error {
	deleted := make(chan struct{})
	go func() {
		s.deleting.Wait()
		close(deleted)
	}()
	select {
	case <-deleted:
	case <-ctx.Done(): // the storage hangs
		return errors.Join(fmt.Errorf("delete session markers: %w", ctx.Err()), s.Storage.Close(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(append(s.errs, s.Storage.Close(ctx))...)
}
