package block_test

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
)

func geometry(t testing.TB, size, chunk int64) block.Geometry {
	t.Helper()
	g, err := block.NewGeometry(size, chunk)
	require.NoError(t, err)
	return g
}

// TestBitmapAgainstBooleans compares every answer of the bitmap with one bool
// per page. Sizes are chosen so that containers take all of their forms.
func TestBitmapAgainstBooleans(t *testing.T) {
	const page = 512
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		size := 1 + rnd.Int64N(3*65536*page)
		if seed%4 == 0 {
			size = 1 + rnd.Int64N(100*page)
		}
		b, err := block.NewBitmap(size, page)
		require.NoError(t, err)
		model := make([]bool, (size+page-1)/page)

		longest := []int64{page, 100 * page, size}[seed%3]
		for range 1 + rnd.IntN(3000) {
			off := rnd.Int64N(size)
			e := block.Extent{Offset: off, Length: 1 + rnd.Int64N(min(longest, size-off))}
			require.NoError(t, b.Set(e))
			for p := e.Offset / page; p*page < e.End(); p++ {
				model[p] = true
			}
		}
		compare(t, b, model)

		b.SetAll()
		require.Equal(t, size, b.Bytes())
	}
}

func compare(t *testing.T, b *block.Bitmap, model []bool) {
	t.Helper()
	page, size := b.PageSize(), b.Size()
	var bytes int64
	for p, set := range model {
		e := block.Extent{Offset: int64(p) * page, Length: 1}
		if b.AnyIn(e) != set {
			require.Failf(t, "wrong page", "page %d: got %v, want %v", p, !set, set)
		}
		if set {
			bytes += min(page, size-e.Offset)
		}
	}
	require.Equal(t, bytes, b.Bytes())

	var got int64
	last := int64(-1)
	for e := range b.Extents(block.Extent{Length: size}) {
		require.Greater(t, e.Offset, last, "extents are ascending and maximal")
		require.NoError(t, e.CheckWithin(size))
		for p := e.Offset / page; p*page < e.End(); p++ {
			require.True(t, model[p])
		}
		got += e.Length
		last = e.End()
	}
	require.Equal(t, bytes, got)

	// Chunks larger and smaller than pages.
	for _, chunk := range []int64{4096, 64 << 10, 1 << 20} {
		g := geometry(t, size, chunk)
		var want []int64
		for p, set := range model {
			if c := int64(p) * page / chunk; set && (len(want) == 0 || want[len(want)-1] != c) {
				want = append(want, c)
			}
		}
		require.Equal(t, want, slices.Collect(b.Chunks(g)))
	}
}

func TestBitmapChunksSmallerThanPages(t *testing.T) {
	b, err := block.NewBitmap(100<<10, 64<<10)
	require.NoError(t, err)
	require.NoError(t, b.Set(block.Extent{Offset: 70 << 10, Length: 1}))
	// Page 1 is [64 KiB, 100 KiB): chunks 16 to 24 of 4 KiB.
	require.Equal(t, []int64{16, 17, 18, 19, 20, 21, 22, 23, 24}, slices.Collect(b.Chunks(geometry(t, 100<<10, 4<<10))))
	require.Equal(t, int64(36<<10), b.Bytes())
}

func TestBitmapRefusesExtentsOutside(t *testing.T) {
	b, err := block.NewBitmap(1000, 512)
	require.NoError(t, err)
	for _, e := range []block.Extent{
		{Offset: 0, Length: 0},
		{Offset: 0, Length: -1},
		{Offset: -1, Length: 1},
		{Offset: 1000, Length: 1},
		{Offset: 999, Length: 2},
		{Offset: 1 << 62, Length: 1 << 62},
	} {
		require.Error(t, b.Set(e), "%v", e)
	}
	require.Zero(t, b.Bytes())
}

func TestNewBitmapRefusesBadSizes(t *testing.T) {
	for _, c := range []struct{ size, page int64 }{{0, 512}, {-1, 512}, {1 << 51, 512}, {1, 0}, {1, 511}, {1, 768}} {
		_, err := block.NewBitmap(c.size, c.page)
		require.Error(t, err, "%+v", c)
	}
}

// TestBitmapMemory keeps the promise about a volume of 64 TiB.
func TestBitmapMemory(t *testing.T) {
	const size = 64 << 40
	page := block.PageSize(size)
	for _, c := range []struct {
		name string
		// run and gap are means, in pages.
		run, gap int64
		limit    int64
	}{
		{"one page in a hundred, the scattered day of a busy volume", 1, 99, 64 << 20},
		{"a tenth, in runs of 16 MiB", 256, 9 * 256, 8 << 20},
		{"half of it, in runs of 16 MiB", 256, 256, 16 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := heap()
			b, err := block.NewBitmap(size, page)
			require.NoError(t, err)
			rnd := rand.New(rand.NewPCG(1, 2))
			for p := int64(0); p < size/page; p += 1 + rnd.Int64N(2*c.gap-1) {
				n := min(1+rnd.Int64N(2*c.run-1), size/page-p)
				require.NoError(t, b.Set(block.Extent{Offset: p * page, Length: n * page}))
				p += n
			}
			used := heap() - before
			t.Logf("64 TiB, %d GiB set: %.1f MiB of memory", b.Bytes()>>30, float64(used)/(1<<20))
			require.Less(t, used, c.limit)
			runtime.KeepAlive(b)
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkBitmapIsolatedRanges sets 262,144 isolated ranges of 64 KiB on
// 1 TiB; the design allows 100 ms.
func BenchmarkBitmapIsolatedRanges(b *testing.B) {
	const size, ranges = 1 << 40, 262144
	for b.Loop() {
		m, err := block.NewBitmap(size, block.PageSize(size))
		if err != nil {
			b.Fatal(err)
		}
		for i := range int64(ranges) {
			if err := m.Set(block.Extent{Offset: i * (size / ranges), Length: 64 << 10}); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkBitmapRandomRanges(b *testing.B) {
	const size = 1 << 40
	m, err := block.NewBitmap(size, block.PageSize(size))
	if err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if err := m.Set(block.Extent{Offset: rnd.Int64N(size-4096) &^ 4095, Length: 4096}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIsZero(b *testing.B) {
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if !block.IsZero(data) {
			b.Fatal("not zero")
		}
	}
}
