package kopia

import (
	"fmt"
	"io"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/hashing"

	"github.com/blockmover/blockmover/internal/blake2b"
	"github.com/blockmover/blockmover/internal/hmacsha256"
)

// Hashing is most of the work of a backup, and kopia hashes one content at a time. The writer has many of the same length at hand: it
// hashes as many at once as the processor can, and the hash function that kopia's content manager calls for each finds the sum.

// hashSize is the length of the sums that are computed ahead, in bytes. They are the beginning of longer ones, of sumSize.
const (
	hashSize = 16
	sumSize  = 32
)

// sideBySide computes the sums of several contents at once.
type sideBySide interface {
	// Lanes is for how many at most, and Least from how many on that is faster than one by one.
	Lanes() int
	Least() int
	// BlockSize divides the length of the contents, which all have the same.
	BlockSize() int
	Sum(contents [][]byte) ([][sumSize]byte, error)
}

// hashFunction is one of kopia's that is computed ahead. Others are left to kopia.
type hashFunction struct {
	// whole is the name of the one that it is the beginning of.
	whole     string
	available func() bool
	create    func(secret []byte) (sideBySide, error)
}

// hashFunctions are that of Velero's repositories, which is kopia's default, and that of Velero's next release, by their names.
var hashFunctions = map[string]hashFunction{
	DefaultBlockHash:  {"BLAKE2B-256", blake2b.Available, func(secret []byte) (sideBySide, error) { return blake2b.New(secret) }},
	"HMAC-SHA256-128": {"HMAC-SHA256", hmacsha256.Available, func(secret []byte) (sideBySide, error) { return hmacsha256.New(secret) }},
}

func init() {
	for name, f := range hashFunctions {
		if f.available() {
			hashing.Register(name, f.lookingUp)
		}
	}
}

// wholeHash are the parameters of a repository but for the name.
type wholeHash struct {
	hashing.Parameters
	name string
}

// GetHashFunction implements hashing.Parameters.
func (w wholeHash) GetHashFunction() string { return w.name }

// lookingUp is a hashing.HashFuncFactory.
func (f hashFunction) lookingUp(p hashing.Parameters) (hashing.HashFunc, error) {
	one, err := hashing.CreateHashFunc(wholeHash{p, f.whole})
	if err != nil {
		return nil, fmt.Errorf("create hash function: %w", err)
	}
	return lookUp(&ahead, f.whole+string(p.GetHmacSecret()), one), nil
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
	known map[sumKey][sumSize]byte
}

type sumKey struct {
	// secret is that of a repository, and its hash function.
	secret string
	first  *byte
	length int
}

// ahead is where the hash functions of all repositories look: kopia calls them with
// nothing but the bytes.
var ahead = sums{known: map[sumKey][sumSize]byte{}}

func (s *sums) find(k sumKey) ([sumSize]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum, ok := s.known[k]
	return sum, ok
}

func (s *sums) add(keys []sumKey, values [][sumSize]byte) {
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
	many   sideBySide
	known  *sums
}

// newHasher returns one for a repository, which computes none where the processor or
// the repository's hash function is another.
func newHasher(rep repo.DirectRepository) (hasher, error) {
	format := rep.ContentReader().ContentFormat()
	secret := format.GetHmacSecret()
	f, ok := hashFunctions[format.GetHashFunction()]
	if !ok || !f.available() || len(secret) == 0 {
		return hasher{}, nil
	}
	many, err := f.create(secret)
	if err != nil {
		return hasher{}, err
	}
	return hasher{f.whole + string(secret), many, &ahead}, nil
}

// lanes is how many contents hash takes at most.
func (h hasher) lanes() int {
	if h.many == nil {
		return 1
	}
	return h.many.Lanes()
}

// hash computes the sums of up to as many contents as there are lanes, where they have the same
// length and it pays. The contents must not change until forget.
func (h hasher) hash(contents [][]byte) (forget func(), err error) {
	if h.many == nil || len(contents) < h.many.Least() || !sameBlocks(contents, h.many.BlockSize()) {
		return func() {}, nil
	}
	values, err := h.many.Sum(contents)
	if err != nil {
		return nil, err
	}
	keys := make([]sumKey, 0, len(contents))
	for _, c := range contents {
		keys = append(keys, sumKey{h.secret, &c[0], len(c)})
	}
	h.known.add(keys, values)
	return func() { h.known.forget(keys) }, nil
}

// sameBlocks reports whether all contents have the same length, in whole blocks.
func sameBlocks(contents [][]byte, block int) bool {
	length := len(contents[0])
	for _, c := range contents {
		if len(c) != length {
			return false
		}
	}
	return length > 0 && length%block == 0
}
