package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt/rangefile"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// The mix: MiB of each class in 4096.
const (
	mixRandom = 2035
	mixText   = 829
	mixTotal  = 4096
)

// runLimit is the longest run of one class, in MiB.
const runLimit = 16

// fillMix writes the mix into an empty file: runs of random bytes, of text and of nothing, in
// an order that the seed decides. It returns what it wrote.
func fillMix(ctx context.Context, path string, size int64, corpus []byte, seed uint64) ([]block.Extent, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // memory does not fail late
	if err := empty(f, size); err != nil {
		return nil, err
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	left := [3]int64{size / mib * mixRandom / mixTotal, size / mib * mixText / mixTotal, 0}
	left[2] = size/mib - left[0] - left[1]
	random, text := newRandom(seed), newText(corpus, seed)
	var allocated []block.Extent
	buf := make([]byte, mib)
	for off := int64(0); off < size/mib; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		class := pick(rnd, left)
		run := min(1+rnd.Int64N(runLimit), left[class])
		left[class] -= run
		for i := range run {
			switch class {
			case 0:
				random.fill(buf)
			case 1:
				text.fill(buf)
			default:
				continue
			}
			if _, err := f.WriteAt(buf, (off+i)*mib); err != nil {
				return nil, err
			}
		}
		if class != 2 {
			allocated = appendExtent(allocated, block.Extent{Offset: off * mib, Length: run * mib})
		}
		off += run
	}
	return allocated, nil
}

// pick chooses a class. The probability is the share of the class in what is left.
func pick(rnd *rand.Rand, left [3]int64) int {
	n := rnd.Int64N(left[0] + left[1] + left[2])
	for class, have := range left {
		if n < have {
			return class
		}
		n -= have
	}
	panic("unreachable")
}

// empty makes a file a hole of size bytes. The device on it does not notice: the size stays
// the same.
func empty(f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	return punch(f, 0, size)
}

func appendExtent(list []block.Extent, e block.Extent) []block.Extent {
	if last := len(list) - 1; last >= 0 && list[last].End() == e.Offset {
		list[last].Length += e.Length
		return list
	}
	return append(list, e)
}

// randomBytes cannot be compressed, and do not repeat.
type randomBytes struct{ source *rand.ChaCha8 }

func newRandom(seed uint64) randomBytes {
	return randomBytes{rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 'r'})}
}

func (r randomBytes) fill(p []byte) { _, _ = r.source.Read(p) }

// textBytes are those of source files, which repeat.
type textBytes struct {
	corpus []byte
	next   int
}

// maxCorpus is how much text is read. It is so much that a compressor does not find the
// repetitions, and so little that this process stays smaller than those that it measures,
// because their peak begins with it.
const maxCorpus = 32 * mib

// readCorpus reads the Go files below a directory. Its length is odd, so that the same text
// is never at the same place of a chunk, and no two chunks are equal.
func readCorpus(dir string) ([]byte, error) {
	corpus := make([]byte, 0, maxCorpus+mib)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case len(corpus) >= maxCorpus:
			return fs.SkipAll
		case !d.Type().IsRegular() || filepath.Ext(path) != ".go":
			return nil
		}
		text, err := os.ReadFile(path)
		corpus = append(corpus, text...)
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read text: %w", err)
	case len(corpus) < mib:
		return nil, fmt.Errorf("%d bytes of Go files in %q, want a MiB or more: run make bench", len(corpus), dir)
	}
	return corpus[:(min(len(corpus), maxCorpus)-1)|1], nil
}

func newText(corpus []byte, seed uint64) *textBytes {
	rnd := rand.New(rand.NewPCG(seed, 't'))
	return &textBytes{corpus, rnd.IntN(len(corpus))}
}

func (t *textBytes) fill(p []byte) {
	for len(p) > 0 {
		n := copy(p, t.corpus[t.next:])
		p = p[n:]
		t.next = (t.next + n) % len(t.corpus)
	}
}

// change writes random bytes to places of length bytes each, and returns the places in order.
// Places are numbers of slots of that length. A slot that occurs twice counts once.
func change(device string, places []int64, length int64, seed uint64) ([]block.Extent, error) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it is synced before
	slices.Sort(places)
	places = slices.Compact(places)
	random := newRandom(seed)
	buf := make([]byte, length)
	var changed []block.Extent
	for _, p := range places {
		random.fill(buf)
		if _, err := f.WriteAt(buf, p*length); err != nil {
			return nil, err
		}
		changed = appendExtent(changed, block.Extent{Offset: p * length, Length: length})
	}
	// A device has a cache of its own for what is written to it.
	return changed, f.Sync()
}

// scattered draws n different slots of a volume.
func scattered(rnd *rand.Rand, slots, n int64) []int64 {
	seen := map[int64]bool{}
	for int64(len(seen)) < min(n, slots) {
		seen[rnd.Int64N(slots)] = true
	}
	places := make([]int64, 0, len(seen))
	for p := range seen {
		places = append(places, p)
	}
	return places
}

// hot draws n slots by Zipf's law, some of them often. Neighbours in frequency are not
// neighbours on the volume.
func hot(rnd *rand.Rand, slots, n int64) []int64 {
	const (
		exponent = 1.1
		// spread is a prime: a multiple of it visits all slots before one twice.
		spread = 2654435761
	)
	zipf := rand.NewZipf(rnd, exponent, 1, uint64(slots-1))
	places := make([]int64, 0, n)
	for range n {
		places = append(places, int64(zipf.Uint64()*spread%uint64(slots)))
	}
	return places
}

// everyMiB returns all places of 1 MiB of a volume.
func everyMiB(size int64) []int64 {
	places := make([]int64, size/mib)
	for i := range places {
		places[i] = int64(i)
	}
	return places
}

func total(list []block.Extent) int64 {
	var n int64
	for _, e := range list {
		n += e.Length
	}
	return n
}

// writeList makes a file of ranges.
func writeList(path string, list []block.Extent) error {
	var text []byte
	for _, e := range list {
		text = rangefile.Append(text, e)
	}
	return os.WriteFile(path, text, 0o600)
}

// sameBytes compares two files or devices.
func sameBytes(ctx context.Context, a, b string, size int64) error {
	var files [2]*os.File
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck,gocritic // two files that are only read
		files[i] = f
	}
	var bufs [2][]byte
	for i := range bufs {
		bufs[i] = make([]byte, mib)
	}
	for off := int64(0); off < size; off += mib {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(mib, size-off)
		for i, f := range files {
			if _, err := f.ReadAt(bufs[i][:n], off); err != nil {
				return err
			}
		}
		if !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
			return fmt.Errorf("%s and %s differ in the MiB at %d", a, b, off)
		}
	}
	return nil
}
