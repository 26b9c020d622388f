package remote_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository/remote"
)

const chunk = 4 << 10

var errBroken = errors.New("pack is gone")

type image struct{ data []byte }

func (i image) IsZero(_ context.Context, n int64) (bool, error) {
	return block.IsZero(i.data[n*chunk : min((n+1)*chunk, int64(len(i.data)))]), nil
}

func (i image) ReadAt(p []byte, off int64) (int, error) {
	if off == 7 {
		return 0, errBroken
	}
	return bytes.NewReader(i.data).ReadAt(p, off)
}

// connect serves an image over pipes. ended has what Serve returns.
func connect(t *testing.T, i image, patience time.Duration) (client *remote.Image, ended chan error) {
	requests, toServer := io.Pipe()
	answers, toClient := io.Pipe()
	ended = make(chan error, 1)
	go func() {
		err := remote.Serve(t.Context(), i, int64(len(i.data)), chunk, requests, toClient, patience)
		_ = toClient.Close()
		ended <- err
	}()
	client, err := remote.Connect(answers, toServer)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client, ended
}

func TestReads(t *testing.T) {
	i := image{make([]byte, 3000*chunk+5)}
	random := rand.New(rand.NewPCG(1, 1))
	for n := range i.data {
		if n/chunk%3 > 0 {
			i.data[n] = byte(random.Uint32()) | 1
		}
	}
	client, ended := connect(t, i, time.Minute)
	require.Equal(t, []int64{int64(len(i.data)), chunk}, []int64{client.Size(), client.ChunkSize()})
	var group sync.WaitGroup
	for seed := range uint64(4) {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, 1))
			for range 200 {
				off := 8 + random.Int64N(int64(len(i.data)))
				got, want := make([]byte, 1+random.IntN(10*chunk)), make([]byte, 10*chunk)
				n, err := client.ReadAt(got, off)
				m, wantErr := bytes.NewReader(i.data).ReadAt(want[:len(got)], off)
				if n != m || !errors.Is(err, wantErr) || !bytes.Equal(got[:n], want[:m]) {
					t.Errorf("%d bytes at %d: %d, %v", len(got), off, n, err)
				}
				c := random.Int64N(3001)
				zero, err := client.IsZero(t.Context(), c)
				if want, _ := i.IsZero(t.Context(), c); zero != want || err != nil {
					t.Errorf("chunk %d: %t, %v", c, zero, err)
				}
			}
		})
	}
	group.Wait()
	large := make([]byte, len(i.data))
	_, err := client.ReadAt(large, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(i.data, large))
	_, err = client.ReadAt(make([]byte, 1), 7)
	require.ErrorContains(t, err, "pack is gone")
	_, err = client.IsZero(t.Context(), 3001)
	require.Error(t, err)
	_, err = client.ReadAt(make([]byte, 1), -1)
	require.Error(t, err)
	require.NoError(t, client.Close())
	require.NoError(t, <-ended, "the server ends with its client")
	_, err = client.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, remote.ErrLost)
}

// TestSilence: a server does not wait for a client that was killed.
func TestSilence(t *testing.T) {
	client, ended := connect(t, image{make([]byte, chunk)}, 50*time.Millisecond)
	require.ErrorContains(t, <-ended, "nothing was heard")
	_, err := client.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, remote.ErrLost)
}

// slow is an image whose object store takes long.
type slow struct {
	image
	answer chan struct{}
}

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	<-s.answer
	return s.image.ReadAt(p, off)
}

// TestSlowReads: a server hears its client also while it is busy with more reads than it answers at once.
func TestSlowReads(t *testing.T) {
	const reads, patience = 40, 300 * time.Millisecond
	i := slow{image{make([]byte, chunk)}, make(chan struct{})}
	requests, client := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- remote.Serve(t.Context(), i, chunk, chunk, requests, io.Discard, patience) }()
	send := func(id int, kind byte) {
		_, err := client.Write(append(binary.BigEndian.AppendUint64(nil, uint64(id)), kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
		require.NoError(t, err)
	}
	for id := range reads {
		send(id, 1)
	}
	for id := range 10 {
		send(reads+id, 3)
		time.Sleep(patience / 5)
	}
	close(i.answer)
	require.NoError(t, client.Close())
	require.NoError(t, <-ended)
}

func TestGreeting(t *testing.T) {
	_, out := io.Pipe()
	for _, text := range []string{
		"", "Error: something else is here, no server at all",
		"blockmover-files 1\n\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		_, err := remote.Connect(bytes.NewReader([]byte(text)), out)
		require.Error(t, err)
	}
}
