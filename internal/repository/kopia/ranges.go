package kopia

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/blockmover/blockmover/internal/arena"
)

// kopia reads each content with a request of its own. For an image in small chunks or pages,
// that is one request for each page, although 4 MiB of neighbours lie side by side in one or
// two packs. So a reader looks up the contents that it needs next and fetches whole ranges of
// packs. kopia finds them in the context of its reads, by a storage that looks there first.

const (
	// maxGap is the largest gap between two contents that are fetched together. Fetching it
	// takes less time than another request.
	maxGap = 32 << 10
	// maxRange bounds the memory for one request.
	maxRange = 8 << 20
	// maxRequests is how many the reads of one image make at once. A read needs several packs if
	// an image has many parents, and what increments have scattered lies alone in them: on a link
	// of 20 ms, so many requests of 64 KiB move 150 MB/s.
	maxRequests = 48
	// rangeMemory is kept for what one image has fetched. It bounds what is fetched ahead: a stretch of data that does not compress,
	// and the next one on its way while that is used.
	rangeMemory = 64 << 20
)

// packRange is a part of a pack.
type packRange struct {
	pack        blob.ID
	offset, end int64
	// unread is how many reads of its contents are still to come.
	unread atomic.Int64

	mu sync.RWMutex
	// buf has its bytes once it is fetched, until it is freed.
	buf   *rangeBuffer
	lent  arena.Part
	freed bool
}

// use passes a part of the pack on, if it is here. The bytes are valid until do returns.
func (r *packRange) use(offset, length int64, do func([]byte)) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.buf == nil {
		return false
	}
	do((*r.buf)[offset-r.offset:][:length])
	return true
}

// borrow makes room for the range.
func (r *packRange) borrow(from *arena.Arena) {
	r.lent = from.Get(int(r.end - r.offset))
	buf := rangeBuffer(r.lent.Bytes[:0])
	r.buf = &buf
}

// fetched are the contents of some ranges that are fetched, or will be.
type fetched struct {
	// ranges are in order of pack and offset. They do not overlap.
	ranges []*packRange
	infos  map[content.ID]content.Info
	// held is how many bytes of them are not freed.
	held atomic.Int64
}

// free gives the memory of one of the ranges back.
func (f *fetched) free(r *packRange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.freed {
		return
	}
	f.held.Add(r.offset - r.end)
	r.lent.Free()
	r.buf, r.lent, r.freed = nil, arena.Part{}, true
}

// release frees all ranges.
func (f *fetched) release() {
	for _, r := range f.ranges {
		f.free(r)
	}
}

// several are those that a context carries.
type several []*fetched

type fetchedKey struct{}

// find passes a part of a pack on, if it is here.
func (s several) find(pack blob.ID, offset, length int64, do func([]byte)) bool {
	for _, f := range s {
		if r := f.find(pack, offset, length); r != nil && r.use(offset, length, do) {
			return true
		}
	}
	return false
}

// content returns where a content is.
func (s several) content(id content.ID) (content.Info, *fetched, *packRange) {
	for _, f := range s {
		if info, ok := f.infos[id]; ok {
			r := f.find(info.PackBlobID, int64(info.PackOffset), int64(info.PackedLength))
			return info, f, r
		}
	}
	return content.Info{}, nil, nil
}

// find returns the range that has all of a part of a pack.
func (f *fetched) find(pack blob.ID, offset, length int64) *packRange {
	i, found := slices.BinarySearchFunc(f.ranges, offset, func(r *packRange, offset int64) int {
		return cmp.Or(cmp.Compare(r.pack, pack), cmp.Compare(r.offset, offset))
	})
	if !found {
		i-- // the last one that begins before
	}
	if i < 0 || f.ranges[i].pack != pack || offset+length > f.ranges[i].end {
		return nil
	}
	return f.ranges[i]
}

// rangeBuffer is a blob.OutputBuffer.
type rangeBuffer []byte

// Write implements io.Writer.
func (b *rangeBuffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// Reset implements blob.OutputBuffer.
func (b *rangeBuffer) Reset() { *b = (*b)[:0] }

// Length implements blob.OutputBuffer.
func (b *rangeBuffer) Length() int { return len(*b) }

// planRanges joins contents into ranges, in order of pack and offset. No gap in them is larger than maxGap.
func planRanges(infos []content.Info, maxGap int64) []*packRange {
	slices.SortFunc(infos, func(a, b content.Info) int {
		return cmp.Or(cmp.Compare(a.PackBlobID, b.PackBlobID), cmp.Compare(a.PackOffset, b.PackOffset))
	})
	var ranges []*packRange
	for _, info := range infos {
		offset := int64(info.PackOffset)
		end := offset + int64(info.PackedLength)
		if n := len(ranges); n > 0 {
			r := ranges[n-1]
			if r.pack == info.PackBlobID && offset-r.end <= maxGap && end-r.offset <= maxRange {
				r.end = max(r.end, end)
				r.unread.Add(1)
				continue
			}
		}
		r := &packRange{pack: info.PackBlobID, offset: offset, end: end}
		r.unread.Store(1)
		ranges = append(ranges, r)
	}
	return ranges
}

// rangeReader fetches ranges. It is safe for concurrent use.
type rangeReader struct {
	rep   repo.Repository
	blobs blob.Reader
	unpack
	places places
	// gap is the largest one in a range.
	gap int64
	// requests has room for those that are under way.
	requests *semaphore.Weighted
	buffers  *arena.Arena
}

// newRangeReader returns nil if the repository gives no access to its packs.
func newRangeReader(rep repo.Repository) *rangeReader {
	direct, ok := rep.(repo.DirectRepository)
	if !ok {
		return nil
	}
	return &rangeReader{
		rep:      rep,
		blobs:    direct.BlobReader(),
		unpack:   newUnpack(direct.ContentReader().ContentFormat().Encryptor()),
		gap:      maxGap,
		requests: semaphore.NewWeighted(maxRequests),
		buffers:  arena.New(maxRange, rangeMemory),
	}
}

// fetch gets contents in large requests. It returns a context in which kopia finds them, beside those that were fetched before,
// until release is called. A content that cannot be looked up is left to the read of it,
// which has the better error.
func (f *rangeReader) fetch(ctx context.Context, ids []content.ID) (_ context.Context, release func(), _ error) {
	if len(ids) < 2 {
		return ctx, func() {}, nil
	}
	found := f.plan(ctx, ids, math.MaxInt64)
	if found == nil {
		return ctx, func() {}, nil
	}
	if err := f.get(ctx, found); err != nil {
		return ctx, func() {}, err
	}
	all, _ := ctx.Value(fetchedKey{}).(several)
	return context.WithValue(ctx, fetchedKey{}, append(all[:len(all):len(all)], found)), found.release, nil
}

// learn prepares for looking up many contents.
func (f *rangeReader) learn(ctx context.Context) {
	if f != nil {
		f.places.learn(ctx, f.rep)
	}
}

// look looks a content up.
func (f *rangeReader) look(ctx context.Context, id content.ID) (content.Info, bool) {
	if info, ok := f.places.find(id); ok {
		return info, true
	}
	info, err := f.rep.ContentInfo(ctx, id)
	return info, err == nil
}

// plan says what get shall fetch for some contents. It returns nil if there is nothing, or more bytes than the limit.
func (f *rangeReader) plan(ctx context.Context, ids []content.ID, limit int64) *fetched {
	if f == nil {
		return nil
	}
	infos := make(map[content.ID]content.Info, len(ids))
	all := make([]content.Info, 0, len(ids)) // as often as they are read
	for _, id := range ids {
		info, ok := infos[id]
		if !ok {
			if info, ok = f.look(ctx, id); !ok {
				continue
			}
			infos[id] = info
		}
		all = append(all, info)
	}
	p := &fetched{ranges: planRanges(all, f.gap), infos: infos}
	var total int64
	for _, r := range p.ranges {
		total += r.end - r.offset
	}
	if total == 0 || total > limit {
		return nil
	}
	p.held.Store(total)
	return p
}

// get fetches what was planned, in large requests. After an error, nothing is held.
func (f *rangeReader) get(ctx context.Context, p *fetched) error { return f.start(ctx, p)() }

// start returns when all requests for what was planned are made, so that what is planned later does not delay it. The function that it returns
// waits for the answers.
func (f *rangeReader) start(ctx context.Context, p *fetched) (wait func() error) {
	group, groupCtx := errgroup.WithContext(ctx)
	for _, r := range p.ranges {
		if err := f.requests.Acquire(groupCtx, 1); err != nil {
			group.Go(func() error { return err })
			break
		}
		group.Go(func() error {
			defer f.requests.Release(1)
			r.borrow(f.buffers)
			if err := f.blobs.GetBlob(groupCtx, r.pack, r.offset, r.end-r.offset, r.buf); err != nil {
				return fmt.Errorf("read pack %s from %d to %d: %w", r.pack, r.offset, r.end, translate(err))
			}
			return nil
		})
	}
	return func() error {
		if err := group.Wait(); err != nil {
			f.places.forget()
			p.release()
			return err
		}
		return nil
	}
}

// read fills p with a whole content, if it was fetched. It leaves what cannot be read to kopia, which has the better error.
//
// A range is freed once all of it was read. Who reads something again fetches it again.
func (f *rangeReader) read(ctx context.Context, id content.ID, p []byte) bool {
	s, ok := ctx.Value(fetchedKey{}).(several)
	if !ok {
		return false
	}
	info, of, r := s.content(id)
	if r == nil {
		return false
	}
	var err error
	if !r.use(int64(info.PackOffset), int64(info.PackedLength), func(packed []byte) { err = f.unpack(info, packed, p) }) || err != nil {
		return false
	}
	if r.unread.Add(-1) == 0 {
		of.free(r)
	}
	return true
}

// rangedType is the type of a storage that looks into the context first. kopia opens a
// storage only by the type in its connection file.
const rangedType = "blockmover-ranged"

func init() { //nolint:gochecknoinits // kopia's table of types is not to be changed while anybody reads it
	addStorage(rangedType, func(st blob.Storage) blob.Storage { return rangedStorage{st} })
}

// addStorage adds the type of a storage that is another one with something around it. The configuration of the type is the
// connection to the other one.
func addStorage(kind string, around func(blob.Storage) blob.Storage) {
	blob.AddSupportedStorage(kind, blob.ConnectionInfo{},
		func(ctx context.Context, inner *blob.ConnectionInfo, isCreate bool) (blob.Storage, error) {
			st, err := blob.NewStorage(ctx, *inner, isCreate)
			if err != nil {
				return nil, err
			}
			return around(st), nil
		})
}

// ranged returns the connection to the same storage, with ranges.
func ranged(inner blob.ConnectionInfo) *blob.ConnectionInfo {
	if inner.Type == rangedType {
		return &inner
	}
	return &blob.ConnectionInfo{Type: rangedType, Config: &inner}
}

type rangedStorage struct{ blob.Storage }

// GetBlob implements blob.Reader.
func (s rangedStorage) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	if f, ok := ctx.Value(fetchedKey{}).(several); ok {
		var err error
		if f.find(id, offset, length, func(data []byte) {
			output.Reset()
			_, err = output.Write(data)
		}) {
			return err
		}
	}
	return s.Storage.GetBlob(ctx, id, offset, length, output)
}
