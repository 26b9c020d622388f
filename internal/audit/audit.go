// Package audit checks whether a storage tells the truth about changed blocks. It reads a
// sample of the chunks that the storage calls unchanged, and compares them with the image of
// the parent.
//
// An incremental image inherits every chunk that the storage does not report. A block that
// the storage forgets is wrong in this image and in all images that build on it, and nobody
// notices before a restore. A sample cannot prove that nothing is forgotten. It finds a
// storage that forgets much at once. It finds one that forgets little over some backups,
// because each takes another sample: if k of N chunks have changed, a sample of n misses all
// of them with a probability of about (1-k/N)^n.
//
//	chunks that no changed block touches ── cut into n runs of equal length ──▶ one at random of each
//	each: read from the device ── the parent's image holds the same? ── no ──▶ Result.Differs, and the end
//
// A chunk that changed in part is not audited: the part that the storage calls unchanged is
// not compared.
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
	// minChunks is the least number of chunks, for small volumes.
	minChunks = 16
	// maxBytes bounds the time to some seconds, whatever the size of the volume.
	maxBytes = 1 << 30
	// workers read at once. So a remote storage costs less than a thousand round trips.
	workers = 4
)

// countChunks returns how many of the unchanged chunks are audited. size is that of a chunk.
func countChunks(p policy.Percent, unchanged, size int64) int64 {
	if p <= 0 {
		return 0
	}
	share := int64(math.Ceil(float64(unchanged) * float64(p) / 100))
	return min(max(share, minChunks), max(maxBytes/size, 1), unchanged)
}

// Image is what the audit needs of the parent.
type Image interface {
	// Matches reports whether a chunk holds exactly these bytes; see
	// repository.VolumeReader.
	Matches(ctx context.Context, chunk int64, data []byte) (bool, error)
}

// Input of Run.
type Input struct {
	// Percent is the share of the unchanged chunks to audit.
	Percent policy.Percent
	// Seed chooses the sample. The same seed gives the same sample.
	Seed   string
	Device io.ReaderAt
	// Geometry is that of the device, with the chunk size of the image. A chunk that Changed
	// does not touch is at the same place in the image.
	Geometry block.Geometry
	Changed  *block.Bitmap
	Image    Image
}

// Result says what was compared, and what was found.
type Result struct {
	Chunks, Bytes int64
	// Differs is set if a chunk that is called unchanged has changed. Offset is where that
	// chunk begins.
	Differs bool
	Offset  int64
}

// ErrDevice is wrapped by errors of the device. All other errors come from the image or the
// context.
var ErrDevice = errors.New("device cannot be read")

// Run audits. It ends at the first difference.
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

// sample returns the chunks to compare, in ascending order.
func (in Input) sample() []int64 {
	g := in.Geometry
	unchanged := g.Chunks() - in.Changed.CountChunks(g)
	n := countChunks(in.Percent, unchanged, g.ChunkSize())
	rnd := rand.New(rand.NewChaCha8(sha256.Sum256([]byte(in.Seed)))) //nolint:gosec // it is a sample, not a secret
	// One place in each of n runs of unchanged chunks.
	places := make([]int64, n)
	for i := range n {
		first, end := i*unchanged/n, (i+1)*unchanged/n
		places[i] = first + rnd.Int64N(end-first)
	}
	sample := make([]int64, 0, n)
	var passed, next int64
	// until takes those of the unchanged chunks from next to end that are in the sample.
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
	sample []int64 // not taken yet
	result Result
}

// take returns the next chunk to compare.
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
