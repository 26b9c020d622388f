package readcache_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository/readcache"
)

const chunk = 1 << 10

// image counts its reads. A read of a zero chunk is an error.
type image struct {
	t     *testing.T
	data  []byte
	reads atomic.Int64
	bytes atomic.Int64
	delay time.Duration
	fail  atomic.Bool
}

var errBroken = errors.New("broken")

func (i *image) IsZero(_ context.Context, n int64) (bool, error) {
	return block.IsZero(i.data[n*chunk : min((n+1)*chunk, int64(len(i.data)))]), nil
}

func (i *image) ReadAt(p []byte, off int64) (int, error) {
	i.reads.Add(1)
	i.bytes.Add(int64(len(p)))
	time.Sleep(i.delay)
	if i.fail.Load() {
		return 0, errBroken
	}
	for at := off / chunk * chunk; at < off+int64(len(p)); at += chunk {
		zero, _ := i.IsZero(context.Background(), at/chunk)
		require.False(i.t, zero, "chunk %d is zero and is read", at/chunk)
	}
	return bytes.NewReader(i.data).ReadAt(p, off)
}

func newImage(t *testing.T, size int) *image {
	i := &image{t: t, data: make([]byte, size)}
	random := rand.New(rand.NewPCG(1, 1))
	for n := range size {
		if n/chunk%5 != 3 {
			i.data[n] = byte(random.Uint32()) | 1
		}
	}
	return i
}

func TestReads(t *testing.T) {
	i := newImage(t, 200*chunk+17)
	c := readcache.New(t.Context(), i, int64(len(i.data)), chunk, 20*chunk)
	var group sync.WaitGroup
	for seed := range uint64(4) {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, 1))
			for range 2000 {
				off := random.Int64N(int64(len(i.data)) + 10)
				got := make([]byte, random.IntN(8*chunk))
				want := make([]byte, len(got))
				n, err := c.ReadAt(got, off)
				m, wantErr := bytes.NewReader(i.data).ReadAt(want, off)
				if len(got) == 0 {
					continue
				}
				if n != m || !errors.Is(err, wantErr) || !bytes.Equal(got[:n], want[:m]) {
					t.Errorf("%d bytes at %d: %d, %v, want %d, %v", len(got), off, n, err, m, wantErr)
				}
			}
		})
	}
	group.Wait()
	_, err := c.ReadAt(make([]byte, 1), -1)
	require.Error(t, err)
}

// TestKeeps: small reads of one chunk are one read of the image, also at once; whole chunks are not kept.
func TestKeeps(t *testing.T) {
	i := newImage(t, 100*chunk)
	i.delay = 10 * time.Millisecond
	c := readcache.New(t.Context(), i, int64(len(i.data)), chunk, 20*chunk)
	var group sync.WaitGroup
	for n := range int64(8) {
		group.Go(func() {
			_, err := c.ReadAt(make([]byte, 10), 20*chunk+10*n)
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.Equal(t, int64(1), i.reads.Load())
	_, err := c.ReadAt(make([]byte, 3*chunk), 40*chunk)
	require.NoError(t, err)
	require.Equal(t, int64(2), i.reads.Load(), "neighbours are one read")
	_, err = c.ReadAt(make([]byte, 10), 40*chunk)
	require.NoError(t, err)
	require.Equal(t, int64(3), i.reads.Load())
}

// TestReadsAhead: small reads in order take far less time than one after the other.
func TestReadsAhead(t *testing.T) {
	i := newImage(t, 400*chunk)
	i.delay = 5 * time.Millisecond
	c := readcache.New(t.Context(), i, int64(len(i.data)), chunk, 400*chunk)
	start := time.Now()
	for off := range 4 * int64(400) {
		_, err := c.ReadAt(make([]byte, chunk/4), off*chunk/4)
		require.NoError(t, err)
	}
	require.Less(t, time.Since(start), 320*i.delay/2)
	require.Less(t, i.reads.Load(), int64(200), "neighbours are one read")
	require.Equal(t, int64(320*chunk), i.bytes.Load(), "nothing is read twice, and no zeros")
}

func TestErrors(t *testing.T) {
	i := newImage(t, 10*chunk)
	i.fail.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	c := readcache.New(ctx, i, int64(len(i.data)), chunk, 20*chunk)
	_, err := c.ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, errBroken)
	_, err = c.ReadAt(make([]byte, 2*chunk), 0)
	require.ErrorIs(t, err, errBroken)
	i.fail.Store(false)
	_, err = c.ReadAt(make([]byte, 10), 0)
	require.NoError(t, err, "an error is not kept")
	cancel()
	_, err = c.ReadAt(make([]byte, 10), chunk)
	require.ErrorIs(t, err, context.Canceled)
}
