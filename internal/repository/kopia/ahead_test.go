package kopia

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/blob"
	kopiaformat "github.com/kopia/kopia/repo/format"
	"github.com/stretchr/testify/require"
)

// slowStore is a storage in memory that answers after a while. It records what it is asked.
type slowStore struct {
	blob.Storage
	blobs map[blob.ID]string
	fails map[string]error

	mu    sync.Mutex
	asked []string
}

func (s *slowStore) ask(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what)
	return s.fails[what]
}

func (s *slowStore) GetBlob(_ context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	time.Sleep(time.Millisecond)
	if err := s.ask(string(id)); err != nil {
		return err
	}
	content, ok := s.blobs[id]
	if !ok {
		return blob.ErrBlobNotFound
	}
	if length < 0 {
		length = int64(len(content)) - offset
	}
	output.Reset()
	_, err := output.Write([]byte(content[offset:][:length]))
	return err
}

func (s *slowStore) ListBlobs(_ context.Context, prefix blob.ID, each func(blob.Metadata) error) error {
	if err := s.ask("list " + string(prefix)); err != nil {
		return err
	}
	for id, content := range s.blobs {
		if !strings.HasPrefix(string(id), string(prefix)) {
			continue
		}
		if err := each(blob.Metadata{BlobID: id, Length: int64(len(content))}); err != nil {
			return err
		}
	}
	return nil
}

func (*slowStore) Close(context.Context) error { return nil }

func newSlowStore() *slowStore {
	s := &slowStore{blobs: map[blob.ID]string{
		kopiaformat.KopiaBlobCfgBlobID: "configuration",
		"xe1":                          "epoch 1 has begun",
		"xs0_1-s1-c1":                  "epoch 0",
		"xn0_1-s1-c1":                  "compacted",
		"p1":                           "data",
	}, fails: map[string]error{}}
	for i := range 100 {
		s.blobs[blob.ID(fmt.Sprintf("xn1_%d-s1-c1", i))] = fmt.Sprint("index ", i)
	}
	return s
}

// openAll asks for what kopia asks for when it opens a repository, and then once more.
func openAll(t *testing.T, inner *slowStore, s *aheadStorage) {
	t.Helper()
	get := func(id blob.ID, want string) {
		var buf rangeBuffer
		require.NoError(t, s.GetBlob(t.Context(), id, 0, -1, &buf))
		require.Equal(t, want, string(buf))
	}
	for range 2 {
		get(kopiaformat.KopiaBlobCfgBlobID, "configuration")
		for _, prefix := range []blob.ID{"xe", "xs", "xr", "xn0_", "xn1_"} {
			var got, want []blob.ID
			require.NoError(t, s.ListBlobs(t.Context(), prefix, func(b blob.Metadata) error {
				got = append(got, b.BlobID)
				return nil
			}))
			for id := range inner.blobs {
				if strings.HasPrefix(string(id), string(prefix)) {
					want = append(want, id)
				}
			}
			require.ElementsMatch(t, want, got, prefix)
			for _, id := range got {
				get(id, inner.blobs[id])
			}
		}
		var buf rangeBuffer
		require.NoError(t, s.GetBlob(t.Context(), "p1", 1, 2, &buf))
		require.Equal(t, "at", string(buf))
		require.ErrorIs(t, s.GetBlob(t.Context(), "p2", 0, -1, &buf), blob.ErrBlobNotFound)
	}
}

func TestAskAhead(t *testing.T) {
	inner := newSlowStore()
	s, stop := askAhead(t.Context(), inner, rangeBuffer("format"))
	defer stop()
	var buf rangeBuffer
	require.NoError(t, s.GetBlob(t.Context(), kopiaformat.KopiaRepositoryBlobID, 0, -1, &buf))
	require.Equal(t, "format", string(buf))
	require.ErrorIs(t, s.GetBlob(t.Context(), kopiaformat.KopiaRepositoryBlobID, 0, -1, &buf), blob.ErrBlobNotFound, "what is known is given once")
	openAll(t, inner, s)
	asked := map[string]int{}
	for _, what := range inner.asked {
		asked[what]++
	}
	require.Equal(t, 1, asked["list x"])
	require.Equal(t, 1, asked["list xn1_"], "the second time")
	require.Equal(t, 2, asked["xn1_7-s1-c1"], "ahead, and the second time")
	require.Equal(t, 2, asked[string(kopiaformat.KopiaBlobCfgBlobID)])
	require.Equal(t, 2, asked["xn0_1-s1-c1"], "it is compacted: it is read when it is asked for")
}

// TestAskAheadInVain: errors are those that kopia gets when it asks.
func TestAskAheadInVain(t *testing.T) {
	for _, what := range []string{"list x", "xn1_7-s1-c1", string(kopiaformat.KopiaBlobCfgBlobID)} {
		t.Run(what, func(t *testing.T) {
			inner := newSlowStore()
			inner.fails[what] = errFull
			s, stop := askAhead(t.Context(), inner, rangeBuffer("format"))
			defer stop()
			require.Eventually(t, func() bool {
				inner.mu.Lock()
				defer inner.mu.Unlock()
				return slices.Contains(inner.asked, what)
			}, 10*time.Second, time.Millisecond)
			inner.mu.Lock()
			delete(inner.fails, what)
			inner.mu.Unlock()
			openAll(t, inner, s)
		})
	}
}

// TestAskAheadIsOver: after that, everything is as below, also if nothing was asked for.
func TestAskAheadIsOver(t *testing.T) {
	inner := newSlowStore()
	s, stop := askAhead(t.Context(), inner, rangeBuffer("format"))
	stop()
	openAll(t, inner, s)
	var buf rangeBuffer
	require.ErrorIs(t, s.GetBlob(t.Context(), kopiaformat.KopiaRepositoryBlobID, 0, -1, &buf), blob.ErrBlobNotFound)
}

func TestUncompacted(t *testing.T) {
	index := func(names ...string) (list []blob.Metadata) {
		for _, name := range names {
			list = append(list, blob.Metadata{BlobID: blob.ID(name), Length: 40 << 20})
		}
		return list
	}
	require.Equal(t, []blob.ID{"xn3_a-s1-c1"}, uncompacted(index("xn0_a-s1-c1", "xr0_1_b-s1-c1", "xn2_a-s1-c1", "xs2_a-s1-c1", "xe3", "xn3_a-s1-c1", "xw1", "x", "xn")))
	require.Len(t, uncompacted(index("xn0_a-s1-c1", "xn0_b-s1-c1")), 1, "the memory is bounded")
}

// TestHandOver: a storage is given once. Who comes later, or in another process, connects anew.
func TestHandOver(t *testing.T) {
	inner := blob.ConnectionInfo{Type: "none"}
	st := &handedStorage{info: inner}
	connection, drop := handOver(t.Context(), st)
	got, err := blob.NewStorage(t.Context(), connection, false)
	require.NoError(t, err)
	require.Same(t, st, got)
	drop()
	require.Zero(t, st.closed, "it belongs to who took it")

	connection, drop = handOver(t.Context(), st)
	drop()
	require.Equal(t, 1, st.closed)
	_, err = blob.NewStorage(t.Context(), connection, false)
	require.ErrorContains(t, err, "unknown storage type: none", "the connection below is tried")
}

type handedStorage struct {
	blob.Storage
	info   blob.ConnectionInfo
	closed int
}

func (s *handedStorage) ConnectionInfo() blob.ConnectionInfo { return s.info }

func (s *handedStorage) Close(context.Context) error {
	s.closed++
	return nil
}
