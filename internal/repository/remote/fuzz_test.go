package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

const (
	chunk     = 4 << 10
	imageSize = 3*chunk + 100
)

type image struct{ *bytes.Reader }

func (i image) IsZero(_ context.Context, n int64) (bool, error) { return n == 1, nil }

func newImage() image {
	data := bytes.Repeat([]byte("data"), imageSize/4+1)[:imageSize]
	clear(data[chunk : 2*chunk])
	return image{bytes.NewReader(data)}
}

// script is a server that says the greeting, and then one answer of a text for each request.
type script struct {
	text     []byte
	now      []byte
	requests chan struct{}
}

func newScript(text []byte) *script {
	n := min(len(text), len(greeting)+16)
	return &script{text: text[n:], now: text[:n], requests: make(chan struct{}, 16)}
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.now) == 0 {
		if len(s.text) == 0 {
			return 0, io.EOF
		}
		if _, open := <-s.requests; !open {
			return 0, io.EOF
		}
		n := len(s.text)
		if n >= answerSize {
			n = min(n, answerSize+int(binary.BigEndian.Uint32(s.text[9:])))
		}
		s.now, s.text = s.text[:n], s.text[n:]
	}
	n := copy(p, s.now)
	s.now = s.now[n:]
	return n, nil
}

// Write takes a request.
func (s *script) Write(p []byte) (int, error) {
	s.requests <- struct{}{}
	return len(p), nil
}

func (s *script) Close() error {
	close(s.requests)
	return nil
}

// FuzzServe: each request is answered once, with what was asked for, until one makes no sense. None takes memory without bounds.
func FuzzServe(f *testing.F) {
	requests := func(all ...request) (text []byte) {
		for _, r := range all {
			text = append(text, r.encode()...)
		}
		return text
	}
	f.Add(requests(request{1, kindRead, 0, 5}, request{2, kindZero, 0, 4}, request{3, kindPing, 0, 0}, request{4, kindRead, chunk, mostRead}))
	f.Add(requests(request{1, kindRead, 1<<63 - 1, mostRead}, request{1, kindZero, 1<<63 - 1, mostChunks}))
	f.Add(requests(request{1, kindRead, imageSize, 0}, request{2, kindZero, 3, 2}, request{3, 9, 0, 0}))
	f.Fuzz(func(t *testing.T, text []byte) {
		i := newImage()
		var out bytes.Buffer
		// An answer is at most the image, and an answer and its copy for each request.
		most := len(text) + 4*imageSize*(len(text)/requestSize)/256
		fuzztest.Document(t, most, func() {
			_ = Serve(t.Context(), i, imageSize, chunk, io.NopCloser(bytes.NewReader(text)), &out, time.Minute)
		})
		asked := map[uint64][]request{}
		count := 0
		for in := bytes.NewReader(text); ; {
			r, err := readRequest(in)
			if err != nil {
				break
			}
			if r.kind != kindPing {
				asked[r.id] = append(asked[r.id], r)
				count++
			}
		}
		out.Next(len(greeting) + 16)
		for ; out.Len() > 0; count-- {
			id, status, data, err := readAnswer(&out, func(id uint64) (int64, bool) { return mostRead, len(asked[id]) > 0 })
			require.NoError(t, err)
			if status == statusOK && len(asked[id]) == 1 {
				requireAnswer(t, i, asked[id][0], data)
			}
		}
		require.Zero(t, count, "requests without an answer")
	})
}

func requireAnswer(t *testing.T, i image, r request, data []byte) {
	t.Helper()
	if r.kind == kindZero {
		require.LessOrEqual(t, int64(len(data)), r.length)
		for n, is := range data {
			require.Equal(t, r.offset+int64(n) == 1, is == 1)
		}
		return
	}
	want := make([]byte, r.length)
	n, _ := i.ReadAt(want, r.offset)
	require.Equal(t, want, data)
	require.Equal(t, len(want), n)
}

// FuzzConnect: a server that says anything gets no more memory than what was asked for takes.
func FuzzConnect(f *testing.F) {
	hello := func(size, chunk uint64, answers ...[]byte) []byte {
		text := binary.BigEndian.AppendUint64([]byte(greeting), size)
		return append(binary.BigEndian.AppendUint64(text, chunk), bytes.Join(answers, nil)...)
	}
	lie := encodeAnswer(1, statusOK, nil)
	binary.BigEndian.PutUint32(lie[9:], mostRead)
	f.Add(hello(imageSize, chunk, encodeAnswer(1, statusOK, []byte("data!")), encodeAnswer(2, statusOK, []byte{0, 1})))
	f.Add(hello(imageSize, chunk, lie))
	f.Add(hello(imageSize, chunk, encodeAnswer(1, statusError, []byte("pack is gone")), encodeAnswer(9, statusOK, nil)))
	f.Add(hello(1<<63-1, 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		fuzztest.Document(t, len(text), func() {
			s := newScript(text)
			i, err := Connect(s, s)
			if err != nil {
				return
			}
			require.True(t, 0 < i.Size() && i.Size() <= block.MaxVolumeSize && 0 < i.ChunkSize() && i.ChunkSize() <= block.MaxChunkSize)
			p := make([]byte, 5)
			n, err := i.ReadAt(p, 0)
			require.True(t, n == len(p) || err != nil)
			_, _ = i.IsZero(t.Context(), 0)
			for _, known := range i.zero {
				require.LessOrEqual(t, len(known), zeroBlock)
			}
			require.NoError(t, i.Close())
		})
	})
}

// TestAnswerLongerThanAsked: a server does not choose how much memory its client takes.
func TestAnswerLongerThanAsked(t *testing.T) {
	for _, text := range [][]byte{
		encodeAnswer(1, statusOK, make([]byte, zeroBlock+1)), encodeAnswer(1, statusError, make([]byte, mostText+1)), encodeAnswer(2, statusOK, nil),
	} {
		in, answers := io.Pipe()
		requests, out := io.Pipe()
		go func() {
			_, _ = answers.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte(greeting), imageSize), chunk))
			_, _ = readRequest(requests)
			_, _ = answers.Write(text)
		}()
		i, err := Connect(in, out)
		require.NoError(t, err)
		_, err = i.IsZero(t.Context(), 0)
		require.ErrorIs(t, err, ErrLost)
		require.ErrorContains(t, err, "was not asked for")
		require.NoError(t, in.Close())
		require.NoError(t, i.Close())
	}
}
