// Package audit looks whether a storage tells the truth about changed blocks: it
// reads a sample of the chunks that are called unchanged and compares them with
// the parent's image.
//
// An incremental image inherits what it is not told has changed. One block that
// the storage forgets is wrong in this image and in all that build on it, and
// nobody notices before a restore. A sample cannot prove that nothing is
// forgotten. It finds a storage that forgets much at once, and one that forgets
// little in the course of some backups, as each takes another sample: of N
// chunks that are called unchanged, of which k have changed, a sample of n misses
// all with a probability of about (1-k/N)^n.
//
//	chunks that no changed block touches ── cut into n runs of equal length ──▶ one at random of each
//	each: read from the device ── the parent's image holds the same? ── no ──▶ Result.Differs, and the end
//
// Not promised: what of a chunk has not changed while another part of it has is
// not looked at.
//
// The package is pure: device and image are behind interfaces.
package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/policy"
)

const (
	// minChunks are read also where the share of a small volume is less.
	minChunks = 16
	// maxBytes are read at most: seconds, whatever the size of the volume.
	maxBytes = 1 << 30
	// workers read at once, so that the time of one access to a storage at the other
	// end of a network is not waited for a thousand times.
	workers = 4
)

// countChunks returns how many of the unchanged chunks of a size are looked at.
func countChunks(p policy.Percent, unchanged, size int64) int64 {
	if p <= 0 {
		return 0
	}
	share := int64(math.Ceil(float64(unchanged) * float64(p) / 100))
	return min(max(share, minChunks), max(maxBytes/size, 1), unchanged)
}

// Image is what the audit needs of the parent's.
type Image interface {
	// Matches reports whether a chunk holds exactly these bytes; see
	// repository.VolumeReader.
	Matches(ctx context.Context, chunk int64, data []byte) (bool, error)
}

// Input of Run.
type Input struct {
	// Percent is the share of the unchanged chunks to look at.
	Percent policy.Percent
	// Seed chooses the sample: the same again for the same seed, and another one for
	// another.
	Seed   string
	Device io.ReaderAt
	// Geometry is the device's, in chunks as the image has them. What Changed does
	// not touch the image has in the same place.
	Geometry block.Geometry
	Changed  *block.Bitmap
	Image    Image
}

// Result says what was looked at, and what was found.
type Result struct {
	Chunks, Bytes int64
	// Differs is set when a chunk has changed that is called unchanged; Offset is
	// where that chunk begins.
	Differs bool
	Offset  int64
}

// ErrDevice is wrapped by the errors of reading the device. All others are the
// image's or the context's.
var ErrDevice = errors.New("device cannot be read")

// Run audits, up to the first difference.
func Run(ctx context.Context, in Input) (Result, error) {
	r := run{Input: in, sample: in.sample()}
	group, ctx := errgroup.WithContext(ctx)
	for range min(workers, len(r.sample)) {
		group.Go(func() error { return r.work(ctx) })
	}
	if err := group.Wait(); err != nil {
		return r.result, fmt.Errorf("audit unchanged chunks: %w", err)
	}
	return r.result, nil
}

// sample is the chunks to look at, in ascending order.
func (in Input) sample() []int64 {
	g := in.Geometry
	unchanged := g.Chunks() - in.Changed.CountChunks(g)
	n := countChunks(in.Percent, unchanged, g.ChunkSize())
	rnd := rand.New(rand.NewChaCha8(sha256.Sum256([]byte(in.Seed)))) //nolint:gosec // it is a sample, not a secret
	// Places among the unchanged chunks, one in each of n runs.
	places := make([]int64, n)
	for i := range n {
		first, end := i*unchanged/n, (i+1)*unchanged/n
		places[i] = first + rnd.Int64N(end-first)
	}
	sample := make([]int64, 0, n)
	var passed, next int64
	// until takes the chosen ones of the unchanged chunks from next to end.
	until := func(end int64) {
		for ; len(places) > 0 && places[0] < passed+end-next; places = places[1:] {
			sample = append(sample, next+places[0]-passed)
		}
		passed += end - next
	}
	for changed := range in.Changed.Chunks(g) {
		until(changed)
		next = changed + 1
	}
	until(g.Chunks())
	return sample
}

// run is one call of Run.
type run struct {
	Input

	mu     sync.Mutex
	sample []int64 // that is not taken yet
	result Result
}

// take returns the next chunk to look at.
func (r *run) take() (int64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sample) == 0 {
		return 0, false
	}
	chunk := r.sample[0]
	r.sample = r.sample[1:]
	return chunk, true
}

func (r *run) work(ctx context.Context) error {
	buf := device.NewBuffer(int(r.Geometry.ChunkSize()))
	for {
		chunk, ok := r.take()
		if !ok {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e := r.Geometry.Extent(chunk)
		clear(buf[e.Length:])
		if _, err := r.Device.ReadAt(buf[:e.Length], e.Offset); err != nil {
			return fmt.Errorf("%w: %w", ErrDevice, err)
		}
		same, err := r.Image.Matches(ctx, chunk, buf)
		if err != nil {
			return err
		}
		r.note(e, same)
	}
}

func (r *run) note(e block.Extent, same bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Chunks++
	r.result.Bytes += e.Length
	if same {
		return
	}
	r.sample = nil
	if !r.result.Differs || e.Offset < r.result.Offset {
		r.result.Differs, r.result.Offset = true, e.Offset
	}
}
