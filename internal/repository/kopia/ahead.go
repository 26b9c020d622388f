package kopia

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"

	"github.com/kopia/kopia/repo/blob"
	kopiaformat "github.com/kopia/kopia/repo/format"
	"golang.org/x/sync/errgroup"
)

// kopia opens a repository step by step: the format, the key, which takes a third of a second of CPU time, the configuration, the lists of
// the index, and its blobs, five at a time. Each step waits for an answer of the object store. What it will ask for is known from the
// start. So connect asks for it while kopia makes the key, and hands its storage over to kopia with the answers.

const (
	// aheadRequests is how many index blobs are fetched at once.
	aheadRequests = 32
	// aheadBytes bounds the memory for them.
	aheadBytes = 64 << 20
)

// handedOverType is the type of a storage that is handed over.
const handedOverType = "blockmover-handed-over"

// handedOver is the connection to such a storage. Who comes after kopia, or without a handle, connects anew.
type handedOver struct {
	Inner  blob.ConnectionInfo `json:"inner"`
	Handle string              `json:"handle"`
}

// handedOverStorages are the storages that wait for kopia, by their handles.
var handedOverStorages sync.Map

func init() { //nolint:gochecknoinits // as in ranges.go
	blob.AddSupportedStorage(handedOverType, handedOver{},
		func(ctx context.Context, h *handedOver, isCreate bool) (blob.Storage, error) {
			found, _ := handedOverStorages.LoadAndDelete(h.Handle)
			if st, ok := found.(blob.Storage); ok {
				return st, nil
			}
			return blob.NewStorage(ctx, h.Inner, isCreate)
		})
}

// handOver returns a connection for kopia to a storage that is open. drop closes the storage if kopia has not taken it.
func handOver(ctx context.Context, st blob.Storage) (connection blob.ConnectionInfo, drop func()) {
	h := handedOver{st.ConnectionInfo(), rand.Text()}
	handedOverStorages.Store(h.Handle, st)
	return blob.ConnectionInfo{Type: handedOverType, Config: &h}, func() {
		if _, left := handedOverStorages.LoadAndDelete(h.Handle); left {
			_ = st.Close(ctx)
		}
	}
}

// aheadStorage has answers for what kopia asks while it opens a repository. Each is given once. Where there is none, or an error, the
// storage below is asked.
type aheadStorage struct {
	blob.Storage

	mu sync.Mutex
	// blobs are whole blobs that are fetched, or soon will be.
	blobs map[blob.ID]*answer
	// index lists the blobs of the index. It is nil once no more answers are wanted.
	index *answer
	// listed are the prefixes of the index for which the list was given.
	listed map[blob.ID]bool
}

// answer is the content of a blob or of a list, or an error, once it is done.
type answer struct {
	done chan struct{}
	data rangeBuffer
	list []blob.Metadata
	err  error
}

func newAnswer() *answer { return &answer{done: make(chan struct{})} }

// askAhead asks for what kopia needs to open the repository whose format is known. It goes on until stop is called.
func askAhead(ctx context.Context, st blob.Storage, format rangeBuffer) (_ *aheadStorage, stop func()) {
	known := newAnswer()
	known.data = format
	close(known.done)
	s := &aheadStorage{
		Storage: st, index: newAnswer(), listed: map[blob.ID]bool{},
		blobs: map[blob.ID]*answer{kopiaformat.KopiaRepositoryBlobID: known, kopiaformat.KopiaBlobCfgBlobID: newAnswer()},
	}
	ctx, cancel := context.WithCancel(ctx)
	configuration, index := s.blobs[kopiaformat.KopiaBlobCfgBlobID], s.index
	go s.get(ctx, kopiaformat.KopiaBlobCfgBlobID, configuration)
	go s.askForIndex(ctx, index)
	return s, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.blobs, s.index = nil, nil
	}
}

func (s *aheadStorage) get(ctx context.Context, id blob.ID, a *answer) {
	defer close(a.done)
	a.err = s.Storage.GetBlob(ctx, id, 0, -1, &a.data)
}

// askForIndex lists the index, and fetches the blobs of which it has many: those that are not compacted.
func (s *aheadStorage) askForIndex(ctx context.Context, index *answer) {
	index.err = s.Storage.ListBlobs(ctx, indexBlobs, func(b blob.Metadata) error {
		index.list = append(index.list, b)
		return nil
	})
	wanted := map[blob.ID]*answer{}
	if index.err == nil {
		for _, id := range uncompacted(index.list) {
			wanted[id] = newAnswer()
		}
		s.mu.Lock()
		if s.blobs != nil {
			for id, a := range wanted {
				s.blobs[id] = a
			}
		}
		s.mu.Unlock()
	}
	close(index.done)
	var group errgroup.Group
	group.SetLimit(aheadRequests)
	for id, a := range wanted {
		group.Go(func() error {
			s.get(ctx, id, a)
			return nil
		})
	}
	_ = group.Wait() // the answers have the errors
}

// uncompacted returns the index blobs of epochs that are not compacted, up to aheadBytes.
func uncompacted(index []blob.Metadata) []blob.ID {
	var compacted []epochs
	for _, b := range index {
		if kind, of, _, _, ok := parseIndexBlob(string(b.BlobID)); ok && (kind == indexEpoch || kind == indexRange) {
			compacted = append(compacted, of)
		}
	}
	var ids []blob.ID
	var bytes int64
	for _, b := range index {
		kind, of, _, _, ok := parseIndexBlob(string(b.BlobID))
		if !ok || kind != indexUncompacted || covers(compacted, of) {
			continue
		}
		if bytes += b.Length; bytes > aheadBytes {
			break
		}
		ids = append(ids, b.BlobID)
	}
	return ids
}

func covers(all []epochs, of epochs) bool {
	return slices.ContainsFunc(all, func(e epochs) bool { return e.first <= of.first && of.last <= e.last })
}

// GetBlob implements blob.Reader.
func (s *aheadStorage) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	s.mu.Lock()
	a := s.blobs[id]
	if offset == 0 && length < 0 {
		delete(s.blobs, id)
	}
	s.mu.Unlock()
	if offset != 0 || length >= 0 || !a.wait(ctx) {
		return s.Storage.GetBlob(ctx, id, offset, length, output)
	}
	output.Reset()
	_, err := output.Write(a.data)
	return err
}

// ListBlobs implements blob.Reader.
func (s *aheadStorage) ListBlobs(ctx context.Context, prefix blob.ID, each func(blob.Metadata) error) error {
	s.mu.Lock()
	index := s.index
	if s.listed[prefix] || !strings.HasPrefix(string(prefix), indexBlobs) {
		index = nil
	}
	if index != nil {
		s.listed[prefix] = true
	}
	s.mu.Unlock()
	if !index.wait(ctx) {
		return s.Storage.ListBlobs(ctx, prefix, each)
	}
	for _, b := range index.list {
		if !strings.HasPrefix(string(b.BlobID), string(prefix)) {
			continue
		}
		if err := each(b); err != nil {
			return err
		}
	}
	return nil
}

// wait reports whether there is an answer without an error.
func (a *answer) wait(ctx context.Context) bool {
	if a == nil {
		return false
	}
	select {
	case <-a.done:
		return a.err == nil
	case <-ctx.Done():
		return false
	}
}
