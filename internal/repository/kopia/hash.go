package kopia

import (
	"fmt"
	"io"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/hashing"

	"github.com/blockmover/blockmover/internal/blake2b"
)

// Hashing is most of the work of a backup, and kopia hashes one content at a time.
// The writer has many of the same length at hand: it hashes eight at once, and the
// hash function that kopia's content manager calls for each finds the sum.

const (
	// hashName is the hash function of Velero's repositories and kopia's default, the
	// only one that is computed ahead. hashSize is its length in bytes.
	hashName = "BLAKE2B-256-128"
	hashSize = 16
	// wholeHashName is the hash function that it is the beginning of.
	wholeHashName = "BLAKE2B-256"
)

func init() {
	if blake2b.Available() {
		hashing.Register(hashName, newHash)
	}
}

// wholeHash are the parameters of a repository but for the name.
type wholeHash struct{ hashing.Parameters }

// GetHashFunction implements hashing.Parameters.
func (wholeHash) GetHashFunction() string { return wholeHashName }

// newHash is a hashing.HashFuncFactory.
func newHash(p hashing.Parameters) (hashing.HashFunc, error) {
	one, err := hashing.CreateHashFunc(wholeHash{p})
	if err != nil {
		return nil, fmt.Errorf("create hash function: %w", err)
	}
	return lookUp(&ahead, string(p.GetHmacSecret()), one), nil
}

// lookUp makes a hash function that takes the sum that is known already, and else
// calls one. Bytes is a type of kopia's that has no name here.
func lookUp[Bytes io.WriterTo](known *sums, secret string, one func([]byte, Bytes) []byte) func([]byte, Bytes) []byte {
	return func(output []byte, data Bytes) []byte {
		var in inMemory
		if _, err := data.WriteTo(&in); err == nil && in.pieces == 1 {
			if sum, ok := known.find(sumKey{secret, &in.last[0], len(in.last)}); ok {
				return append(output, sum[:]...)[:hashSize]
			}
		}
		return one(output, data)[:hashSize]
	}
}

// inMemory learns where the bytes lie that are written to it.
type inMemory struct {
	pieces int
	last   []byte
}

// Write implements io.Writer.
func (m *inMemory) Write(p []byte) (int, error) {
	if len(p) > 0 {
		m.pieces++
		m.last = p
	}
	return len(p), nil
}

// sums are those of contents that are about to be written, by where the bytes lie:
// they are in use, and do not change, until their sum is forgotten.
type sums struct {
	mu    sync.Mutex
	known map[sumKey][blake2b.Size]byte
}

type sumKey struct {
	secret string
	first  *byte
	length int
}

// ahead is where the hash functions of all repositories look: kopia calls them with
// nothing but the bytes.
var ahead = sums{known: map[sumKey][blake2b.Size]byte{}}

func (s *sums) find(k sumKey) ([blake2b.Size]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum, ok := s.known[k]
	return sum, ok
}

func (s *sums) add(keys []sumKey, values [][blake2b.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range keys {
		s.known[k] = values[i]
	}
}

func (s *sums) forget(keys []sumKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		delete(s.known, k)
	}
}

// hasher computes sums ahead. The zero value computes none.
type hasher struct {
	secret string
	many   *blake2b.Hasher
	known  *sums
}

// newHasher returns one for a repository, which computes none where the processor or
// the repository's hash function is another.
func newHasher(rep repo.DirectRepository) (hasher, error) {
	format := rep.ContentReader().ContentFormat()
	secret := format.GetHmacSecret()
	if !blake2b.Available() || format.GetHashFunction() != hashName || len(secret) == 0 {
		return hasher{}, nil
	}
	many, err := blake2b.New(secret)
	return hasher{string(secret), many, &ahead}, err
}

// hash computes the sums of up to blake2b.Lanes contents, where they have the same
// length and it pays. The contents must not change until forget.
func (h hasher) hash(contents [][]byte) (forget func(), err error) {
	if h.many == nil || len(contents) < h.many.Least() || !sameBlocks(contents) {
		return func() {}, nil
	}
	var lanes [blake2b.Lanes][]byte
	keys := make([]sumKey, 0, blake2b.Lanes)
	for i := range lanes {
		lanes[i] = contents[min(i, len(contents)-1)]
	}
	for _, c := range contents {
		keys = append(keys, sumKey{h.secret, &c[0], len(c)})
	}
	values, err := h.many.Sum(&lanes)
	if err != nil {
		return nil, err
	}
	h.known.add(keys, values[:])
	return func() { h.known.forget(keys) }, nil
}

// sameBlocks reports whether all contents have the same length, in whole blocks.
func sameBlocks(contents [][]byte) bool {
	length := len(contents[0])
	for _, c := range contents {
		if len(c) != length {
			return false
		}
	}
	return length > 0 && length%blake2b.BlockSize == 0
}
