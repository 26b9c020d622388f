package hmacsha256

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
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
		t.Skip("the processor does not have AVX-512")
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
		one := hmac.New(sha256.New, key)
		one.Write(m)
		require.Equal(t, one.Sum(nil), sums[lane][:], "%s, key of %d bytes, message of %d, lane %d", h.name, len(key), len(m), lane)
	}
}

func TestSum(t *testing.T) {
	for _, keyLength := range []int{0, 1, 16, 32, 63, 64, 65, 200} {
		key := random(7, keyLength)
		for _, h := range hashers(t, key) {
			for _, length := range []int{64, 128, 192, 8 << 10, 64 << 10, 1 << 20} {
				var messages [][]byte
				for lane := range Lanes {
					// not aligned
					messages = append(messages, random(uint64(lane), length+lane)[lane:])
				}
				requireSums(t, h, key, messages)
				requireSums(t, h, key, messages[:1])
				requireSums(t, h, key, messages[3:12])
			}
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte("key"), []byte("data"), uint8(3), uint8(16))
	f.Fuzz(func(t *testing.T, key, data []byte, blocks, count uint8) {
		if len(data) == 0 || blocks == 0 || count == 0 || count > Lanes {
			return
		}
		length := int(blocks) * BlockSize
		var messages [][]byte
		for lane := range count {
			messages = append(messages, bytes.Repeat(data[int(lane)%len(data):], length)[:length])
		}
		for _, h := range hashers(t, key) {
			requireSums(t, h, key, messages)
		}
	})
}

func TestMisuse(t *testing.T) {
	for _, h := range hashers(t, []byte("key")) {
		for name, messages := range map[string][][]byte{
			"none":              nil,
			"too many":          slicesOf(Lanes+1, 64),
			"empty":             slicesOf(Lanes, 0),
			"no whole blocks":   slicesOf(Lanes, 65),
			"less than a block": slicesOf(1, 63),
			"different lengths": append(slicesOf(3, 128), make([]byte, 64)),
		} {
			_, err := h.Sum(messages)
			require.Error(t, err, name)
		}
	}
}

func slicesOf(n, length int) [][]byte {
	var all [][]byte
	for range n {
		all = append(all, make([]byte, length))
	}
	return all
}

// TestWrongProcessor: New notices one wrong lane.
func TestWrongProcessor(t *testing.T) {
	for _, h := range hashers(t, []byte("key")) {
		for lane := range Lanes {
			wrong := implementation{h.name, 1, func(s *state, data *[Lanes]*byte, blocks uint64) {
				h.compress(s, data, blocks)
				s[3][lane] ^= 1 << 20
			}}
			_, err := newHasher([]byte("key"), wrong)
			require.ErrorContains(t, err, "wrong sums with "+h.name)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	key := random(7, 32)
	for _, length := range []int{4 << 10, 64 << 10} {
		var messages [][]byte
		for lane := range Lanes {
			messages = append(messages, random(uint64(lane), length))
		}
		for _, h := range hashers(b, key) {
			b.Run(fmt.Sprintf("%s, %d KiB", h.name, length>>10), func(b *testing.B) {
				b.SetBytes(int64(length) * Lanes)
				for b.Loop() {
					_, err := h.Sum(messages)
					require.NoError(b, err)
				}
			})
		}
		b.Run(fmt.Sprintf("one by one, %d KiB", length>>10), func(b *testing.B) {
			one := hmac.New(sha256.New, key)
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
