package kopia

import (
	"context"
	"strings"
	"sync"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
)

// Whoever looks at a few files opens a repository, an image and some segments: dozens of pieces of some hundred bytes, which lie side
// by side in a few packs of metadata. kopia asks for each alone, and the link is what takes the time. So a repository that is only
// read fetches such packs in windows: what was written together is read together.

const (
	// windowSize takes no longer than a request of some bytes, on a link that is worth it.
	windowSize = 256 << 10
	// windows bounds the memory.
	windows = 64
)

// windowType is the type of a storage with windows.
const windowType = "blockmover-windows"

func init() { //nolint:gochecknoinits // as in ranges.go
	addStorage(windowType, func(st blob.Storage) blob.Storage { return &windowStorage{Storage: st, known: map[blob.ID]window{}} })
}

// windowed returns the connection to the same storage, with windows.
func windowed(inner blob.ConnectionInfo) *blob.ConnectionInfo {
	return &blob.ConnectionInfo{Type: windowType, Config: &inner}
}

// windowStorage is for reading. A pack never changes, so a window is never stale.
type windowStorage struct {
	blob.Storage

	mu    sync.Mutex
	known map[blob.ID]window
	order []blob.ID
}

// window is a part of a pack.
type window struct {
	offset int64
	data   []byte
	// last is where the last read ended.
	last int64
}

// GetBlob implements blob.Reader.
func (s *windowStorage) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	if !strings.HasPrefix(string(id), string(content.PackBlobIDPrefixSpecial)) || offset < 0 || length <= 0 || length >= windowSize {
		return s.Storage.GetBlob(ctx, id, offset, length, output)
	}
	s.mu.Lock()
	w, known := s.known[id]
	s.mu.Unlock()
	if at := offset - w.offset; known && at >= 0 && at+length <= int64(len(w.data)) {
		s.keep(id, window{w.offset, w.data, offset + length})
		output.Reset()
		_, err := output.Write(w.data[at:][:length])
		return err
	}
	// What was written last is read first. Reads that go on in order look ahead, which fails at the end of the pack.
	start, end := max(0, offset+length-windowSize), offset+length
	if known && offset >= w.last && offset-w.last < windowSize {
		start, end = offset, offset+windowSize
	}
	var buf rangeBuffer
	if err := s.Storage.GetBlob(ctx, id, start, end-start, &buf); err != nil || int64(len(buf)) != end-start {
		s.keep(id, window{offset, nil, offset + length})
		return s.Storage.GetBlob(ctx, id, offset, length, output)
	}
	s.keep(id, window{start, buf, offset + length})
	output.Reset()
	_, err := output.Write(buf[offset-start:][:length])
	return err
}

func (s *windowStorage) keep(id blob.ID, w window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.known[id]; !known {
		if len(s.order) == windows {
			delete(s.known, s.order[0])
			s.order = s.order[1:]
		}
		s.order = append(s.order, id)
	}
	s.known[id] = w
}
