package kopia

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
)

// kopia looks a content up in each of its index blobs, and dozens of them wait for the next compaction. A restore that looks up
// hundreds of thousands of contents spends a quarter of its time so. Going through all of the index once takes less, and a table of
// what it says is small.

// maxPlaces bounds the memory of a table: 40 bytes for each content. The index of a larger repository is left to kopia.
const maxPlaces = 1 << 19

// shortHash is the length of the hash in the IDs that a table has. All hash functions of Velero have it.
const shortHash = 16

// places says where contents are. The zero value knows nothing.
type places struct {
	once sync.Once

	mu sync.RWMutex
	// first is the first half of the hash of each content, in ascending order, and at the rest of what is known.
	first []uint64
	at    []place
	// packs and formats are those that a place refers to.
	packs   []blob.ID
	formats []content.Info
}

type place struct {
	second                         uint64
	pack, offset, packed, original uint32
	format                         uint32
}

var errManyContents = errors.New("the repository has too many contents for a table")

// learn goes through the index, once. The table stays empty if that fails, or if there is too much.
func (p *places) learn(ctx context.Context, rep repo.Repository) {
	if direct, ok := rep.(repo.DirectRepository); ok {
		p.once.Do(func() { p.learnFrom(ctx, direct.ContentReader()) })
	}
}

func (p *places) learnFrom(ctx context.Context, index content.Reader) {
	var (
		first []uint64
		at    []place
	)
	packs, formats := map[blob.ID]uint32{}, map[content.Info]uint32{}
	err := index.IterateContents(ctx, content.IterateOptions{}, func(i content.Info) error {
		high, low, ok := halves(i.ContentID)
		switch {
		case !ok:
			return nil
		case len(first) == maxPlaces:
			return errManyContents
		}
		format := content.Info{CompressionHeaderID: i.CompressionHeaderID, FormatVersion: i.FormatVersion, EncryptionKeyID: i.EncryptionKeyID}
		first = append(first, high)
		at = append(at, place{
			second: low, pack: number(packs, i.PackBlobID), format: number(formats, format),
			offset: i.PackOffset, packed: i.PackedLength, original: i.OriginalLength,
		})
		return nil
	})
	if err != nil || !slices.IsSorted(first) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first, p.at, p.packs, p.formats = first, at, byNumber(packs), byNumber(formats)
}

// number returns the number of a value, and gives the next one to a new value.
func number[T comparable](known map[T]uint32, v T) uint32 {
	n, ok := known[v]
	if !ok {
		n = uint32(len(known)) //nolint:gosec // at most maxPlaces
		known[v] = n
	}
	return n
}

func byNumber[T comparable](known map[T]uint32) []T {
	all := make([]T, len(known))
	for v, n := range known {
		all[n] = v
	}
	return all
}

// halves returns the hash of the ID of a content that is data.
func halves(id content.ID) (first, second uint64, ok bool) {
	hash := id.Hash()
	if id.HasPrefix() || len(hash) != shortHash {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(hash), binary.BigEndian.Uint64(hash[shortHash/2:]), true
}

// find returns what the index has of a content, but for its time.
func (p *places) find(id content.ID) (content.Info, bool) {
	first, second, ok := halves(id)
	if !ok {
		return content.Info{}, false
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	n, _ := slices.BinarySearch(p.first, first)
	for ; n < len(p.first) && p.first[n] == first; n++ {
		if at := p.at[n]; at.second == second {
			info := p.formats[at.format]
			info.ContentID, info.PackBlobID = id, p.packs[at.pack]
			info.PackOffset, info.PackedLength, info.OriginalLength = at.offset, at.packed, at.original
			return info, true
		}
	}
	return content.Info{}, false
}

// forget empties the table: maintenance may have moved contents to other packs since.
func (p *places) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first, p.at = nil, nil
}
