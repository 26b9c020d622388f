// Package hmacsha256 computes the HMAC-SHA256 of sixteen messages at once, each in lanes of the processor's vector
// registers. The hash of one message is a chain of dependent steps, also with the instructions that processors have for it
// (SHA-NI). The sums are those of crypto/hmac with crypto/sha256, which callers use on processors without AVX-512.
// docs/decisions/2026-11-30-sha256.md says why this package exists.
//
// Source: FIPS 180-4 and RFC 2104.
package hmacsha256

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/lanes"
)

const (
	// Lanes is how many messages are hashed at once.
	Lanes = 16
	// Size is the length of a sum in bytes.
	Size = sha256.Size
	// BlockSize divides the length of every message, in bytes.
	BlockSize = sha256.BlockSize
)

// state has the hash values of all messages: eight words, each for all lanes.
type state [8][Lanes]uint32

// initial is the initial hash value.
var initial = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

// implementation compresses whole blocks, one or more, of each message into the state.
type implementation struct {
	name string
	// least is from how many messages on one call is faster than one call for each.
	least    int
	compress func(s *state, data *[Lanes]*byte, blocks uint64)
}

// Available reports whether this processor hashes many messages at once.
func Available() bool { return len(implementations()) > 0 }

// Hasher hashes with one key. It is safe for concurrent use.
type Hasher struct {
	implementation
	// inner and outer are the states after the block that RFC 2104 makes of the key.
	inner, outer state
}

// New returns a Hasher. The key may have any length. New fails if Available is false, and if the processor
// computes other sums than the reference.
func New(key []byte) (*Hasher, error) {
	usable := implementations()
	if len(usable) == 0 {
		return nil, errors.New("hash many messages at once: the processor does not have AVX-512")
	}
	return newHasher(key, usable[0])
}

// Lanes is how many messages at most Sum takes.
func (*Hasher) Lanes() int { return Lanes }

// Least is from how many messages on, 1 to Lanes, Sum is faster than hashing one by one.
func (h *Hasher) Least() int { return h.least }

// BlockSize divides the length of every message, in bytes.
func (*Hasher) BlockSize() int { return BlockSize }

func newHasher(key []byte, i implementation) (*Hasher, error) {
	h := &Hasher{implementation: i}
	short := key
	if len(key) > BlockSize {
		sum := sha256.Sum256(key)
		short = sum[:]
	}
	for pad, s := range map[byte]*state{0x36: &h.inner, 0x5c: &h.outer} {
		var block [BlockSize]byte
		copy(block[:], short)
		for n := range block {
			block[n] ^= pad
		}
		for word := range s {
			for lane := range s[word] {
				s[word][lane] = initial[word]
			}
		}
		h.compress(s, everywhere(&block), 1)
	}
	if err := h.check(key); err != nil {
		return nil, err
	}
	return h, nil
}

// everywhere gives all lanes the same block.
func everywhere(block *[BlockSize]byte) *[Lanes]*byte {
	var data [Lanes]*byte
	for lane := range data {
		data[lane] = &block[0]
	}
	return &data
}

// check compares the sums of two blocks in each lane with the reference. A wrong sum would name contents wrongly, and data
// would be lost.
func (h *Hasher) check(key []byte) error {
	var messages [Lanes][]byte
	for lane := range messages {
		messages[lane] = make([]byte, 2*BlockSize)
		for n := range messages[lane] {
			messages[lane][n] = byte(lane*31 + n*7)
		}
	}
	sums, err := h.Sum(messages[:])
	if err != nil {
		return err
	}
	one := hmac.New(sha256.New, key)
	for lane, m := range messages {
		one.Reset()
		one.Write(m)
		if !hmac.Equal(one.Sum(nil), sums[lane][:]) {
			return fmt.Errorf("hash many messages at once: the processor computes wrong sums with %s", h.name)
		}
	}
	return nil
}

// Sum hashes 1 to Lanes messages of the same length, a positive multiple of BlockSize.
func (h *Hasher) Sum(messages [][]byte) ([][Size]byte, error) {
	var data [Lanes]*byte
	length, err := lanes.Fill(data[:], messages, BlockSize)
	if err != nil {
		return nil, err
	}
	s := h.inner
	h.compress(&s, &data, uint64(length/BlockSize)) //nolint:gosec // it is not negative
	end := padding(0, BlockSize+length)
	h.compress(&s, everywhere(&end), 1)

	var blocks [Lanes][BlockSize]byte
	for lane := range blocks {
		blocks[lane] = padding(Size, BlockSize+Size)
		s.put(lane, blocks[lane][:Size])
		data[lane] = &blocks[lane][0]
	}
	s = h.outer
	h.compress(&s, &data, 1)
	sums := make([][Size]byte, len(messages))
	for lane := range sums {
		s.put(lane, sums[lane][:])
	}
	return sums, nil
}

// padding returns a last block whose first bytes are still to come. total is how many bytes were hashed, these and the
// key included.
func padding(first, total int) (block [BlockSize]byte) {
	block[first] = 0x80
	binary.BigEndian.PutUint64(block[BlockSize-8:], uint64(total)*8) //nolint:gosec // it is not negative
	return block
}

// put writes the hash value of a lane.
func (s *state) put(lane int, sum []byte) {
	for word := range s {
		binary.BigEndian.PutUint32(sum[word*4:], s[word][lane])
	}
}
