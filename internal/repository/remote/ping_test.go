package remote

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPings: a ping does not wait for the answer of the one before. On a slow link, that is behind megabytes.
func TestPings(t *testing.T) {
	requests, out := io.Pipe()
	i := &Image{out: out, waiting: map[uint64]question{}, stop: make(chan struct{})}
	go i.ping(time.Millisecond)
	for range 3 {
		r, err := readRequest(requests)
		require.NoError(t, err)
		require.EqualValues(t, kindPing, r.kind)
	}
	i.end(ErrLost)
	require.NoError(t, requests.Close())
}
