package datapath_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
)

// slowStart is an image. If it has a gate, its first chunk is not put before that opens.
type slowStart struct {
	repository.VolumeWriter
	meta repository.Meta
	gate chan struct{}
	put  atomic.Int64
}

func (s *slowStart) Meta() repository.Meta { return s.meta }

func (*slowStart) Resumed() int64 { return 0 }

func (s *slowStart) Put(_ context.Context, first int64, data []byte) error {
	if first == 0 && s.gate != nil {
		<-s.gate
	}
	s.put.Add(int64(len(data)))
	return nil
}

func (*slowStart) Advance(context.Context, int64) error { return nil }

// nothing is a device of zeros, whatever its size. If it has a gate, its start is not read before that opens.
type nothing struct {
	device.Reader
	size int64
	gate chan struct{}
}

func (n nothing) Size() int64 { return n.size }

func (n nothing) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 && n.gate != nil {
		<-n.gate
	}
	return len(p), nil
}

// TestWindow: what is in flight is what a checkpoint leaves room for, in items of any size. So
// while one Put waits for its upload, the others go on.
func TestWindow(t *testing.T) {
	const (
		chunk = 64 << 10
		size  = 3*repository.MaxInFlight + chunk
	)
	everything, scattered := bitmap(t, size, block.Extent{Length: size}), bitmap(t, size)
	for off := int64(0); off < size; off += 2 * chunk {
		require.NoError(t, scattered.Set(block.Extent{Offset: off, Length: 1}))
	}
	whole, err := block.NewGeometry(size, chunk)
	require.NoError(t, err)
	tests := map[string]struct {
		read     *block.Bitmap
		readSize int64
		item     int64
		inFlight int64
		want     int64
	}{
		"large items":     {everything, 4 << 20, 4 << 20, 0, repository.MaxInFlight},
		"small items":     {everything, chunk, chunk, 0, repository.MaxInFlight},
		"scattered items": {scattered, 4 << 20, chunk, 0, repository.MaxInFlight},
		"very large ones": {everything, 2 * repository.MaxInFlight, 2 * repository.MaxInFlight, 0, repository.MaxInFlight},
		"small window":    {everything, chunk, chunk, 8 * chunk, 8 * chunk},
		"too large a one": {everything, chunk, chunk, 2 * repository.MaxInFlight, repository.MaxInFlight},
	}
	for name, tc := range tests {
		for _, slowRead := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the first one waits for its read: %t", name, slowRead), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					gate := make(chan struct{})
					w, dev := &slowStart{meta: repository.Meta{Size: size, ChunkSize: chunk}}, nothing{size: size}
					if slowRead {
						dev.gate = gate
					} else {
						w.gate = gate
					}
					done := make(chan error)
					go func() {
						_, err := datapath.Backup(t.Context(), dev, tc.read, w, datapath.Options{
							Workers: 3, ReadSize: tc.readSize, InFlight: tc.inFlight,
						})
						done <- err
					}()
					synctest.Wait()
					require.Equal(t, max(0, tc.want-tc.item), w.put.Load())
					close(gate)
					require.NoError(t, <-done)
					require.Equal(t, tc.read.CountChunks(whole)*chunk, w.put.Load())
				})
			})
		}
	}
}
