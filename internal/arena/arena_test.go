package arena_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/arena"
	"github.com/blockmover/blockmover/internal/device"
)

func TestWhatIsFreeIsLentAgain(t *testing.T) {
	a := arena.New(1<<20, 1<<20)
	whole := a.Get(1 << 20)
	address := unsafe.SliceData(whole.Bytes)
	require.NotSame(t, address, unsafe.SliceData(a.Get(1).Bytes), "there is no room")
	whole.Free()

	// Three neighbours, freed in each order, are one piece again.
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		parts := []arena.Part{a.Get(100), a.Get(1<<19 - device.Alignment), a.Get(1 << 19)}
		for _, i := range order {
			parts[i].Free()
		}
		whole := a.Get(1 << 20)
		require.Same(t, address, unsafe.SliceData(whole.Bytes), order)
		whole.Free()
	}
}

func TestLimit(t *testing.T) {
	a := arena.New(1<<20, 3<<20)
	large := a.Get(2 << 20) // more than a slab
	first := a.Get(1 << 20)
	beyond := a.Get(1 << 20)
	require.Len(t, beyond.Bytes, 1<<20)
	address := unsafe.SliceData(first.Bytes)
	first.Free()
	beyond.Free()
	again := a.Get(1)
	require.Same(t, address, unsafe.SliceData(again.Bytes))
	again.Free()
	large.Free()
	large = a.Get(2 << 20)
	require.Len(t, large.Bytes, 2<<20)
}

func TestFreedTwice(t *testing.T) {
	a := arena.New(1<<20, 1<<20)
	p, other := a.Get(1), a.Get(1)
	p.Free()
	require.Panics(t, p.Free)
	other.Free()
	require.Panics(t, p.Free)
	require.NotPanics(t, arena.Part{}.Free)
}

// TestNobodySharesBytes has many take parts of all sizes, write into all of them, and look whether anybody else has.
func TestNobodySharesBytes(t *testing.T) {
	a := arena.New(1<<20, 4<<20)
	var users sync.WaitGroup
	for user := range 8 {
		users.Go(func() {
			random := rand.New(rand.NewPCG(uint64(user), 0)) //nolint:gosec // not a secret
			var parts []arena.Part
			for range 2000 {
				if len(parts) < 8 {
					p := a.Get(1 + random.IntN(256<<10))
					if uintptr(unsafe.Pointer(unsafe.SliceData(p.Bytes)))%device.Alignment != 0 {
						t.Error("not aligned")
					}
					fill(p.Bytes, byte(user))
					parts = append(parts, p)
					continue
				}
				i := random.IntN(len(parts))
				if !isFull(parts[i].Bytes, byte(user)) {
					t.Error("somebody else has written")
				}
				parts[i].Free()
				parts[i] = parts[len(parts)-1]
				parts = parts[:len(parts)-1]
			}
		})
	}
	users.Wait()
}

func fill(p []byte, b byte) {
	p = p[:cap(p)]
	for i := range p {
		p[i] = b
	}
}

func isFull(p []byte, b byte) bool {
	for _, have := range p[:cap(p)] {
		if have != b {
			return false
		}
	}
	return true
}
