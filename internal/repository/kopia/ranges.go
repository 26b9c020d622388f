package kopia

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// kopia reads each content with a request of its own. For an image in small chunks or pages,
// that is one request for each page, although 4 MiB of neighbours lie side by side in one or
// two packs. So a reader looks up the contents that it needs next and fetches whole ranges of
// packs. kopia finds them in the context of its reads, by a storage that looks there first.

const (
	// maxGap is the largest gap between two contents that are fetched together. Fetching it
	// takes less time than another request.
	maxGap = 64 << 10
	// maxRange bounds the memory for one request.
	maxRange = 8 << 20
	// maxRequests is how many the reads of one image make at once. A read needs several packs if
	// an image has many parents, and what increments have scattered lies alone in them: on a link
	// of 20 ms, so many requests of 64 KiB move 100 MB/s.
	maxRequests = 32
)

// packRange is a part of a pack. buf has its bytes once it is fetched.
type packRange struct {
	pack        blob.ID
	offset, end int64
	buf         *rangeBuffer
}

// fetched are the contents of some ranges.
type fetched struct {
	// ranges are in order of pack and offset. They do not overlap.
	ranges []*packRange
	infos  map[content.ID]content.Info
}

// several are those that a context carries.
type several []*fetched

type fetchedKey struct{}

// find returns the bytes of a part of a pack.
func (s several) find(pack blob.ID, offset, length int64) ([]byte, bool) {
	for _, f := range s {
		if data, ok := f.find(pack, offset, length); ok {
			return data, true
		}
	}
	return nil, false
}

// content returns what its pack has of a content.
func (s several) content(id content.ID) (info content.Info, packed []byte, ok bool) {
	for _, f := range s {
		if info, ok := f.infos[id]; ok {
			packed, ok := f.find(info.PackBlobID, int64(info.PackOffset), int64(info.PackedLength))
			return info, packed, ok
		}
	}
	return content.Info{}, nil, false
}

// find returns the bytes of a part of a pack.
func (f *fetched) find(pack blob.ID, offset, length int64) ([]byte, bool) {
	i, found := slices.BinarySearchFunc(f.ranges, offset, func(r *packRange, offset int64) int {
		return cmp.Or(cmp.Compare(r.pack, pack), cmp.Compare(r.offset, offset))
	})
	if !found {
		i-- // the last one that begins before
	}
	if i < 0 || f.ranges[i].pack != pack || offset+length > f.ranges[i].end {
		return nil, false
	}
	return (*f.ranges[i].buf)[offset-f.ranges[i].offset:][:length], true
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

// planRanges joins contents into ranges, in order of pack and offset.
func planRanges(infos []content.Info) []*packRange {
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
				continue
			}
		}
		ranges = append(ranges, &packRange{pack: info.PackBlobID, offset: offset, end: end})
	}
	return ranges
}

// rangeReader fetches ranges. It is safe for concurrent use.
type rangeReader struct {
	rep   repo.Repository
	blobs blob.Reader
	unpack
	// requests has room for those that are under way.
	requests *semaphore.Weighted
	// buffers are free for reuse.
	buffers sync.Pool
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
		unpack:   newUnpack(direct.ContentReader().ContentFormat().Encryptor().Decrypt),
		requests: semaphore.NewWeighted(maxRequests),
	}
}

// fetch gets contents in large requests. It returns a context in which kopia finds them,
// until release is called. A content that cannot be looked up is left to the read of it,
// which has the better error.
func (f *rangeReader) fetch(ctx context.Context, ids []content.ID) (_ context.Context, release func(), _ error) {
	if len(ids) < 2 {
		return ctx, func() {}, nil
	}
	found, release, err := f.get(ctx, ids, math.MaxInt64)
	if err != nil || found == nil {
		return ctx, func() {}, err
	}
	return context.WithValue(ctx, fetchedKey{}, several{found}), release, nil
}

// get gets contents in large requests. It returns nothing if they take more bytes than the limit.
func (f *rangeReader) get(ctx context.Context, ids []content.ID, limit int64) (_ *fetched, release func(), _ error) {
	if f == nil {
		return nil, nil, nil
	}
	infos := make(map[content.ID]content.Info, len(ids))
	for _, id := range ids {
		if info, err := f.rep.ContentInfo(ctx, id); err == nil {
			infos[id] = info
		}
	}
	ranges := planRanges(slices.Collect(maps.Values(infos)))
	var total int64
	for _, r := range ranges {
		total += r.end - r.offset
	}
	if total == 0 || total > limit {
		return nil, nil, nil
	}
	release = func() {
		for _, r := range ranges {
			if r.buf != nil {
				f.buffers.Put(r.buf)
			}
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxRequests)
	for _, r := range ranges {
		group.Go(func() error {
			if err := f.requests.Acquire(groupCtx, 1); err != nil {
				return err
			}
			defer f.requests.Release(1)
			r.buf = f.buffer(int(r.end - r.offset))
			if err := f.blobs.GetBlob(groupCtx, r.pack, r.offset, r.end-r.offset, r.buf); err != nil {
				return fmt.Errorf("read pack %s from %d to %d: %w", r.pack, r.offset, r.end, translate(err))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		release()
		return nil, nil, err
	}
	return &fetched{ranges, infos}, release, nil
}

// read fills p with a whole content, if it was fetched. It leaves what cannot be read to kopia, which has the better error.
func (f *rangeReader) read(ctx context.Context, id content.ID, p []byte) bool {
	s, ok := ctx.Value(fetchedKey{}).(several)
	if !ok {
		return false
	}
	info, packed, ok := s.content(id)
	return ok && f.unpack(info, packed, p) == nil
}

// buffer returns an empty buffer with room for so many bytes.
func (f *rangeReader) buffer(length int) *rangeBuffer {
	b, ok := f.buffers.Get().(*rangeBuffer)
	if !ok {
		b = new(rangeBuffer)
	}
	*b = slices.Grow((*b)[:0], length)
	return b
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
		if data, ok := f.find(id, offset, length); ok {
			output.Reset()
			_, err := output.Write(data)
			return err
		}
	}
	return s.Storage.GetBlob(ctx, id, offset, length, output)
}
