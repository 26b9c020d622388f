package kopia

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"

	"github.com/blockmover/blockmover/internal/repository"
)

// objectWriter writes objects of one content each, and counts the bytes that the repository
// did not have before. It is safe for concurrent use.
//
// It passes them to kopia's content manager as they are in memory. kopia's own object writer
// is made for streams that it cuts itself, and copies the data first.
type objectWriter struct {
	// committed sees what is in the repository's index, and not what w has written since its
	// last flush.
	committed repo.Repository
	w         repo.DirectRepositoryWriter
	// method compresses data that can be compressed. Indexes are always compressed.
	method  compression.HeaderID
	hasher  hasher
	written written

	// incompressible counts bytes that were new and could not be compressed.
	incompressible atomic.Int64

	mu    sync.Mutex
	fresh map[content.ID]struct{}
}

// maxFresh bounds the memory (about 60 MiB) for finding contents that occur twice in one run.
// Beyond it, such contents are counted twice.
const maxFresh = 1 << 20

var errNoStorage = errors.New("the repository is behind a server of kopia's: images need its storage")

func newObjectWriter(committed repo.Repository, w repo.RepositoryWriter, c repository.Compression) (*objectWriter, error) {
	direct, ok := w.(repo.DirectRepositoryWriter)
	if !ok {
		return nil, errNoStorage
	}
	method, err := compressionMethod(c)
	if err != nil {
		return nil, err
	}
	h, err := newHasher(direct)
	if err != nil {
		return nil, err
	}
	return &objectWriter{committed: committed, w: direct, method: method, hasher: h, fresh: map[content.ID]struct{}{}}, nil
}

// compressionMethod returns kopia's name for a compression.
func compressionMethod(c repository.Compression) (compression.HeaderID, error) {
	switch cmp.Or(c, repository.DefaultCompression) {
	case repository.S2:
		return compression.ByName["s2-default"].HeaderID(), nil
	case repository.Zstd:
		return compression.HeaderZstdFastest, nil
	case repository.NoCompression:
		return content.NoCompression, nil
	}
	return content.NoCompression, fmt.Errorf("unknown compression %q", c)
}

// compressor returns the method for one object. It is none if compression does not pay or is
// not wanted, or if the format of the repository compresses objects in another way.
func (o *objectWriter) compressor(prefix content.IDPrefix, data []byte) compression.HeaderID {
	switch {
	case !o.w.ContentManager().SupportsContentCompression():
		return content.NoCompression
	case prefix == indexPrefix:
		return compression.HeaderZstdFastest
	case o.method == content.NoCompression || !compressible(data):
		return content.NoCompression
	}
	return o.method
}

const (
	// probes is how many samples of an object are examined. Each has 1/64 of its length,
	// between minProbe and maxProbe. That takes 11 µs for 1 MiB; compressing 1 MiB in vain
	// takes 500 µs.
	probes   = 4
	minProbe = 1 << 10
	maxProbe = 4 << 10

	// worthCompressing is between what Estimate says of random bytes (0.03) and of
	// text or programs (0.32 and more).
	worthCompressing = 0.1
)

// compressible examines some samples of data.
func compressible(data []byte) bool {
	length := min(max(len(data)/64, minProbe), maxProbe)
	if len(data) <= probes*length {
		return compress.Estimate(data) > worthCompressing
	}
	sample := make([]byte, 0, probes*maxProbe)
	for i := range probes {
		from := len(data) / probes * i
		sample = append(sample, data[from:from+length]...)
	}
	return compress.Estimate(sample) > worthCompressing
}

// writeAll stores objects, and calls each with the number of an object and with what write
// returns for it. Many objects of one length take less time together.
func (o *objectWriter) writeAll(ctx context.Context, objects [][]byte, each func(i int, id object.ID, fresh int64) error) error {
	first := 0
	for some := range slices.Chunk(objects, o.hasher.lanes()) {
		if err := o.writeSome(ctx, first, some, each); err != nil {
			return err
		}
		first += len(some)
	}
	return nil
}

// writeSome is writeAll for objects that are hashed together.
func (o *objectWriter) writeSome(ctx context.Context, first int, objects [][]byte, each func(i int, id object.ID, fresh int64) error) error {
	forget, err := o.hasher.hash(objects)
	if err != nil {
		return fmt.Errorf("hash objects: %w", err)
	}
	defer forget()
	for i, data := range objects {
		id, fresh, err := o.write(ctx, "", data)
		if err != nil {
			return err
		}
		if err := each(first+i, id, fresh); err != nil {
			return err
		}
	}
	return nil
}

// write stores one object and returns how many of its bytes were new.
func (o *objectWriter) write(ctx context.Context, prefix content.IDPrefix, data []byte) (object.ID, int64, error) {
	store := o.w.ContentManager().WriteContent
	input := inputOfStore(store)
	input.Slices = [][]byte{data}
	compressor := o.compressor(prefix, data)
	id, err := store(ctx, input, prefix, compressor)
	if err != nil {
		return object.EmptyID, 0, fmt.Errorf("write object: %w", err)
	}
	o.written.add(id)
	if !o.isFresh(ctx, id) {
		return object.DirectObjectID(id), 0, nil
	}
	if compressor == content.NoCompression && o.method != content.NoCompression && o.w.ContentManager().SupportsContentCompression() {
		o.incompressible.Add(int64(len(data)))
	}
	return object.DirectObjectID(id), int64(len(data)), nil
}

// inputOfStore returns an empty value of the type that the content manager takes; see
// inputOf.
func inputOfStore[B any](func(context.Context, B, content.IDPrefix, compression.HeaderID) (content.ID, error)) (empty B) {
	return empty
}

// isFresh reports whether this run has added a content to the repository. It is true once for
// each. kopia names a content only after it has stored it, so isFresh asks a session that
// does not see the writes of this one.
func (o *objectWriter) isFresh(ctx context.Context, id content.ID) bool {
	o.mu.Lock()
	_, seen := o.fresh[id]
	o.mu.Unlock()
	if seen {
		return false
	}
	info, err := o.committed.ContentInfo(ctx, id)
	if !errors.Is(err, content.ErrContentNotFound) && !info.Deleted {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, seen := o.fresh[id]; seen {
		return false
	}
	if len(o.fresh) < maxFresh {
		o.fresh[id] = struct{}{}
	}
	return true
}

// writeIndex stores the index of n entries. It returns the object that the index describes,
// and how many bytes of index were new.
func (o *objectWriter) writeIndex(ctx context.Context, n int, at func(int) entry) (object.ID, int64, error) {
	var (
		pieces []entry
		pos    int64
		total  int64
	)
	err := indexPieces(n, at, func(text []byte) error {
		id, fresh, err := o.write(ctx, indexPrefix, text)
		if err != nil {
			return err
		}
		pieces = append(pieces, entry{Start: pos, Length: int64(len(text)), Object: id})
		pos += int64(len(text))
		total += fresh
		return nil
	})
	if err != nil {
		return object.EmptyID, total, err
	}
	index := pieces[0].Object
	if len(pieces) > 1 {
		// The index is itself an indirect object.
		var fresh int64
		index, fresh, err = o.writeIndex(ctx, len(pieces), func(i int) entry { return pieces[i] })
		total += fresh
		if err != nil {
			return object.EmptyID, total, err
		}
	}
	id, err := indirect(index)
	return id, total, err
}

// readIndex reads the index of an indirect object of length bytes.
func readIndex(ctx context.Context, rep repo.Repository, id object.ID, length int64, maxEntries int, add func(entry) error) error {
	index, ok := id.IndexObjectID()
	if !ok {
		return corrupt(fmt.Errorf("object %v has no index", id))
	}
	r, err := rep.OpenObject(ctx, index)
	if err != nil {
		return fmt.Errorf("open index of object %v: %w", id, translate(err))
	}
	defer r.Close() //nolint:errcheck // it holds nothing
	in := &source{r: r}
	if err := in.explain(parseIndex(in, length, maxEntries, add)); err != nil {
		return fmt.Errorf("read object %v: %w", id, err)
	}
	return nil
}

// readObject passes the bytes of an object to a parser.
func readObject(ctx context.Context, rep repo.Repository, id object.ID, parse func(io.Reader) error) error {
	r, err := rep.OpenObject(ctx, id)
	if err != nil {
		return translate(err)
	}
	defer r.Close() //nolint:errcheck // it holds nothing
	in := &source{r: r}
	return in.explain(parse(in))
}

// source remembers why reading failed. Otherwise a parser would report a storage that does
// not answer as a damaged document.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = translate(err)
	}
	return n, err //nolint:wrapcheck // an io.Reader passes io.EOF on as it is
}

// explain returns the error of reading, if there is one, instead of that of the parser.
func (s *source) explain(parsed error) error {
	if parsed != nil && s.err != nil {
		return s.err
	}
	return parsed
}
