package extent_test

import (
	"bytes"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/extent"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/pooltest"
)

func at(start, end, physical int64) extent.Extent {
	return extent.Extent{Range: extent.Range{Start: start, End: end}, Physical: physical}
}

func unwritten(e extent.Extent) extent.Extent { e.Unwritten = true; return e }
func unstable(e extent.Extent) extent.Extent  { e.Unstable = true; return e }

func TestDiffering(t *testing.T) {
	const end = 100
	tests := map[string]struct {
		a, b []extent.Extent
		want []extent.Range
	}{
		"both empty":             {nil, nil, nil},
		"same place":             {[]extent.Extent{at(0, 100, 7)}, []extent.Extent{at(0, 100, 7)}, nil},
		"same place, split":      {[]extent.Extent{at(0, 100, 7)}, []extent.Extent{at(0, 40, 7), at(40, 100, 47)}, nil},
		"middle moved":           {[]extent.Extent{at(0, 100, 0)}, []extent.Extent{at(0, 40, 0), at(40, 50, 500), at(50, 100, 50)}, []extent.Range{{Start: 40, End: 50}}},
		"neighbours merge":       {[]extent.Extent{at(0, 100, 0)}, []extent.Extent{at(0, 40, 900), at(40, 50, 500), at(50, 100, 50)}, []extent.Range{{Start: 0, End: 50}}},
		"discarded":              {[]extent.Extent{at(0, 100, 0)}, []extent.Extent{at(0, 60, 0)}, []extent.Range{{Start: 60, End: 100}}},
		"written into a hole":    {nil, []extent.Extent{at(10, 20, 0)}, []extent.Range{{Start: 10, End: 20}}},
		"unwritten is a hole":    {nil, []extent.Extent{unwritten(at(10, 20, 0))}, nil},
		"unwritten, then data":   {[]extent.Extent{unwritten(at(10, 20, 0))}, []extent.Extent{at(10, 20, 0)}, []extent.Range{{Start: 10, End: 20}}},
		"unstable is never same": {[]extent.Extent{unstable(at(0, 10, 0))}, []extent.Extent{unstable(at(0, 10, 0))}, []extent.Range{{Start: 0, End: 10}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := extent.Differing(test.a, test.b, 0, end); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if got := extent.Differing(test.b, test.a, 0, end); !reflect.DeepEqual(got, test.want) {
				t.Errorf("the other way round: got %v, want %v", got, test.want)
			}
		})
	}
}

// TestExact changes files at random and compares what is reported with what
// their content says.
func TestExact(t *testing.T) {
	opened, _ := pooltest.Open(t)
	for seed := range uint64(8) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			// Around the 64 MiB of a window, and rarely a multiple of anything but 512.
			size := 512 * (random.Int64N(70<<20/512) + 1)
			base := create(t, filepath.Join(opened.Dir, fmt.Sprintf("base-%d", seed)), size)
			for range 40 {
				change(t, random, base, size)
			}
			target := clone(t, base, filepath.Join(opened.Dir, fmt.Sprintf("target-%d", seed)))
			targetSize := max(512, size+512*(random.Int64N(2048)-1024))
			if err := target.Truncate(targetSize); err != nil {
				t.Fatal(err)
			}
			for range 40 {
				change(t, random, target, targetSize)
			}
			c := pair{base: extent.File{File: base, Size: size}, target: extent.File{File: target, Size: targetSize}}
			c.baseContent, c.targetContent = content(t, base), content(t, target)
			for _, blockSize := range []int64{512, 4096, 65536, 1 << 20} {
				c.check(t, 0, blockSize)
				c.check(t, random.Int64N(targetSize), blockSize)
			}
		})
	}
}

// change writes, rewrites with the same content, zeroes or discards a piece.
func change(t *testing.T, random *rand.Rand, file *os.File, size int64) {
	t.Helper()
	offset := random.Int64N(size)
	length := min(random.Int64N(1<<uint(random.Int64N(20)))+1, size-offset)
	data := make([]byte, length)
	var err error
	switch random.IntN(5) {
	case 0, 1:
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		_, err = file.WriteAt(data, offset)
	case 2:
		if _, err = file.ReadAt(data, offset); err == nil {
			_, err = file.WriteAt(data, offset)
		}
	case 3:
		err = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	case 4:
		err = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// pair is two files and what they hold.
type pair struct {
	base, target               extent.File
	baseContent, targetContent []byte
}

// check compares Changed and Allocated with the content from an offset on.
func (p pair) check(t *testing.T, from, blockSize int64) {
	t.Helper()
	changed := collect(t, extent.Changed(p.base, p.target, from, blockSize))
	allocated := collect(t, extent.Allocated(p.target, from, blockSize))
	reported := 0
	for start := from / blockSize * blockSize; start < p.target.Size; start += blockSize {
		block := extent.Range{Start: start, End: min(start+blockSize, p.target.Size)}
		now := p.targetContent[block.Start:block.End]
		beyond := block.End > p.base.Size
		differs := beyond || !bytes.Equal(now, p.baseContent[block.Start:block.End])
		if changed[block] != differs {
			t.Fatalf("block %v of size %d: reported as changed %v, want %v", block, blockSize, changed[block], differs)
		}
		hasData := len(bytes.Trim(now, "\x00")) > 0
		if hasData && !allocated[block] {
			t.Fatalf("block %v of size %d has data and is not allocated", block, blockSize)
		}
		if allocated[block] && isHole(t, p.target, block) {
			t.Fatalf("block %v of size %d is a hole and allocated", block, blockSize)
		}
		if differs {
			reported++
		}
	}
	if len(changed) != reported {
		t.Fatalf("%d blocks reported as changed, %d of them are blocks of the file", len(changed), reported)
	}
}

// collect checks that blocks ascend.
func collect(t *testing.T, blocks iter.Seq2[extent.Range, error]) map[extent.Range]bool {
	t.Helper()
	collected, end := map[extent.Range]bool{}, int64(0)
	for block, err := range blocks {
		if err != nil {
			t.Fatal(err)
		}
		if block.Start < end || block.End <= block.Start {
			t.Fatalf("block %v follows one that ends at %d", block, end)
		}
		end = block.End
		collected[block] = true
	}
	return collected
}

func isHole(t *testing.T, file extent.File, block extent.Range) bool {
	t.Helper()
	data, err := unix.Seek(int(file.Fd()), block.Start, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	return data >= block.End
}

// TestPatches brings an outdated copy up to its source.
func TestPatches(t *testing.T) {
	opened, _ := pooltest.Open(t)
	random := rand.New(rand.NewPCG(1, 0))
	const size = 5<<20 + 512
	source := create(t, filepath.Join(opened.Dir, "source"), size)
	for round := range 10 {
		target := clone(t, source, filepath.Join(opened.Dir, fmt.Sprintf("copy-%d", round)))
		for range 20 {
			change(t, random, source, size)
		}
		patches, err := extent.Missing(extent.File{File: source, Size: size}, extent.File{File: target, Size: size})
		if err != nil {
			t.Fatal(err)
		}
		for _, patch := range patches {
			if err := patch.Apply(target); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(content(t, source), content(t, target)) {
			t.Fatalf("round %d: copy differs from its source", round)
		}
	}
}

func create(t *testing.T, path string, size int64) *os.File {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return file
}

func clone(t *testing.T, source *os.File, path string) *os.File {
	t.Helper()
	target := create(t, path, 0)
	if err := unix.IoctlFileClone(int(target.Fd()), int(source.Fd())); err != nil {
		t.Fatal(err)
	}
	return target
}

func content(t *testing.T, file *os.File) []byte {
	t.Helper()
	all, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return all
}
