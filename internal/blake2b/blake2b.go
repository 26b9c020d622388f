// Package blake2b computes the keyed BLAKE2b-256 of eight messages at once, each in lanes of
// the processor's vector registers. The hash of one message is a chain of dependent steps.
// Eight chains fill the processor. The sums are those of golang.org/x/crypto/blake2b, which
// callers use on processors without AVX2 and AVX-512. docs/decisions/2026-11-21-blake2b.md
// says why this package exists.
//
// Source: RFC 7693.
package blake2b

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/blake2b"

	"github.com/blockmover/blockmover/internal/lanes"
)

const (
	// Lanes is how many messages are hashed at once.
	Lanes = 8
	// Size is the length of a sum in bytes.
	Size = blake2b.Size256
	// BlockSize divides the length of every message, in bytes.
	BlockSize = blake2b.BlockSize
)

// state has the chain values of all messages: eight words, each for all lanes.
type state [8][Lanes]uint64

// iv is the initialization vector.
var iv = [8]uint64{
	0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
	0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
}

// implementation compresses whole blocks, one or more, of each message into the state.
// counter is how many bytes of each message came before. last is xored into the finalization
// flag of the last block.
type implementation struct {
	name string
	// least is from how many messages on one call is faster than one call for each.
	least    int
	compress func(s *state, data *[Lanes]*byte, blocks, counter, last uint64)
}

// Available reports whether this processor hashes many messages at once.
func Available() bool { return len(implementations()) > 0 }

// Hasher hashes with one key. It is safe for concurrent use.
type Hasher struct {
	implementation
	// keyed is the state after the first block, which is the key.
	keyed state
}

// New returns a Hasher. The key has 1 to 64 bytes. New fails if Available is false, and if
// the processor computes other sums than the reference.
func New(key []byte) (*Hasher, error) {
	usable := implementations()
	if len(usable) == 0 {
		return nil, errors.New("hash many messages at once: the processor has neither AVX2 nor AVX-512")
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
	if len(key) < 1 || len(key) > blake2b.Size {
		return nil, fmt.Errorf("key has %d bytes, want 1 to %d", len(key), blake2b.Size)
	}
	h := &Hasher{implementation: i}
	for word := range h.keyed {
		for lane := range h.keyed[word] {
			h.keyed[word][lane] = iv[word]
		}
	}
	for lane := range Lanes {
		// Parameters: length of the sum and of the key, fan-out and depth of 1.
		h.keyed[0][lane] ^= Size | uint64(len(key))<<8 | 1<<16 | 1<<24
	}
	var block [BlockSize]byte
	copy(block[:], key)
	var data [Lanes]*byte
	for lane := range data {
		data[lane] = &block[0]
	}
	h.compress(&h.keyed, &data, 1, 0, 0)
	if err := h.check(key); err != nil {
		return nil, err
	}
	return h, nil
}

// check compares the sums of two blocks in each lane with the reference. A wrong sum would
// name contents wrongly, and data would be lost.
func (h *Hasher) check(key []byte) error {
	var messages [Lanes][]byte
	for lane := range messages {
		messages[lane] = bytes.Repeat([]byte{byte(lane), 1, 2}, BlockSize)[:2*BlockSize]
	}
	sums, err := h.Sum(messages[:])
	if err != nil {
		return err
	}
	one, err := blake2b.New256(key)
	if err != nil {
		return fmt.Errorf("create reference: %w", err)
	}
	for lane, m := range messages {
		one.Reset()
		one.Write(m)
		if !bytes.Equal(one.Sum(nil), sums[lane][:]) {
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
	s := h.keyed
	h.compress(&s, &data, uint64(length/BlockSize), BlockSize, ^uint64(0)) //nolint:gosec // it is not negative
	sums := make([][Size]byte, len(messages))
	for lane := range sums {
		for word := range Size / 8 {
			binary.LittleEndian.PutUint64(sums[lane][word*8:], s[word][lane])
		}
	}
	return sums, nil
}
