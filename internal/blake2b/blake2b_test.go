package blake2b

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	reference "golang.org/x/crypto/blake2b"
)

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

// hashers makes one of each implementation that the processor has.
func hashers(t testing.TB, key []byte) []*Hasher {
	t.Helper()
	if !Available() {
		t.Skip("the processor has neither AVX2 nor AVX-512")
	}
	var all []*Hasher
	for _, i := range implementations() {
		h, err := newHasher(key, i)
		require.NoError(t, err)
		all = append(all, h)
	}
	return all
}

// requireSums compares the sums of messages with the reference.
func requireSums(t *testing.T, h *Hasher, key []byte, messages [][]byte) {
	t.Helper()
	sums, err := h.Sum(messages)
	require.NoError(t, err)
	require.Len(t, sums, len(messages))
	for lane, m := range messages {
		one, err := reference.New256(key)
		require.NoError(t, err)
		one.Write(m)
		require.Equal(t, one.Sum(nil), sums[lane][:], "%s, key of %d bytes, message of %d, lane %d", h.name, len(key), len(m), lane)
	}
}

func TestSum(t *testing.T) {
	for _, keyLength := range []int{1, 16, 32, 63, 64} {
		key := random(7, keyLength)
		for _, h := range hashers(t, key) {
			for _, length := range []int{128, 256, 384, 8 << 10, 64 << 10, 1 << 20} {
				var messages [Lanes][]byte
				for lane := range messages {
					// not aligned
					messages[lane] = random(uint64(lane), length+lane)[lane:]
				}
				requireSums(t, h, key, messages[:])
				requireSums(t, h, key, messages[:1])
				requireSums(t, h, key, messages[2:7])
			}
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte("key"), []byte("data"), uint8(3))
	f.Fuzz(func(t *testing.T, key, data []byte, blocks uint8) {
		if len(key) < 1 || len(key) > 64 || len(data) == 0 || blocks == 0 {
			return
		}
		length := int(blocks) * BlockSize
		var messages [Lanes][]byte
		for lane := range messages {
			messages[lane] = bytes.Repeat(data[lane%len(data):], length)[:length]
		}
		for _, h := range hashers(t, key) {
			requireSums(t, h, key, messages[:])
		}
	})
}

func TestMisuse(t *testing.T) {
	for _, h := range hashers(t, []byte("key")) {
		for _, key := range [][]byte{nil, make([]byte, 65)} {
			_, err := newHasher(key, h.implementation)
			require.Error(t, err, "key of %d bytes", len(key))
		}
		var messages [Lanes][]byte
		for _, length := range []int{0, 1, 127, 129} {
			for lane := range messages {
				messages[lane] = make([]byte, length)
			}
			_, err := h.Sum(messages[:])
			require.Error(t, err, "%d bytes", length)
		}
		for lane := range messages {
			messages[lane] = make([]byte, 256)
		}
		messages[7] = make([]byte, 128)
		_, err := h.Sum(messages[:])
		require.Error(t, err, "different lengths")
		for _, wrong := range [][][]byte{nil, append(messages[:7:7], messages[0], messages[0])} {
			_, err := h.Sum(wrong)
			require.Error(t, err, "%d messages", len(wrong))
		}
	}
}

// TestWrongProcessor: New notices one wrong lane.
func TestWrongProcessor(t *testing.T) {
	for _, h := range hashers(t, []byte("key")) {
		for lane := range Lanes {
			wrong := implementation{h.name, 1, func(s *state, data *[Lanes]*byte, blocks, counter, last uint64) {
				h.compress(s, data, blocks, counter, last)
				s[3][lane] ^= 1 << 40
			}}
			_, err := newHasher([]byte("key"), wrong)
			require.ErrorContains(t, err, "wrong sums with "+h.name)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	key := random(7, 32)
	for _, length := range []int{8 << 10, 64 << 10, 1 << 20} {
		var messages [Lanes][]byte
		for lane := range messages {
			messages[lane] = random(uint64(lane), length)
		}
		for _, h := range hashers(b, key) {
			b.Run(fmt.Sprintf("%s, %d KiB", h.name, length>>10), func(b *testing.B) {
				b.SetBytes(int64(length) * Lanes)
				for b.Loop() {
					_, err := h.Sum(messages[:])
					require.NoError(b, err)
				}
			})
		}
		b.Run(fmt.Sprintf("one by one, %d KiB", length>>10), func(b *testing.B) {
			one, err := reference.New256(key)
			require.NoError(b, err)
			b.SetBytes(int64(length) * Lanes)
			for b.Loop() {
				for _, m := range messages {
					one.Reset()
					one.Write(m)
					one.Sum(nil)
				}
			}
		})
	}
}
