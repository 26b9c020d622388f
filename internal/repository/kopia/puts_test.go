package kopia

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/stretchr/testify/require"
)

var errFull = errors.New("api error XMinioStorageFull")

// fullStorage answers like kopia's S3 storage when the object store has no room.
type fullStorage struct {
	blob.Storage
	full bool
	time time.Time
	puts atomic.Int64
}

// waitForPut waits until something was put.
func (s *fullStorage) waitForPut() {
	for s.puts.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
}

func (s *fullStorage) PutBlob(_ context.Context, _ blob.ID, _ blob.Bytes, opts blob.PutOptions) error {
	full := s.full
	s.puts.Add(1)
	switch {
	case full && opts.GetModTime != nil:
		return blob.ErrBlobNotFound
	case full:
		return errFull
	}
	return nil
}

func (s *fullStorage) GetMetadata(context.Context, blob.ID) (blob.Metadata, error) {
	return blob.Metadata{Timestamp: s.time}, nil
}

// text is the content of a blob.
type text string

func (s text) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(s))
	return int64(n), err
}

func (s text) Length() int { return len(s) }

func (s text) Reader() io.ReadSeekCloser { return nil }

func TestPutSaysWhy(t *testing.T) {
	inner := &fullStorage{full: true, time: time.Unix(42, 0)}
	st := newPutStorage(inner)
	// So kopia writes the blobs of its index.
	_, err := blob.PutBlobAndGetMetadata(t.Context(), st, "xn1", text("content"), blob.PutOptions{})
	require.ErrorIs(t, err, errFull)
	require.NotErrorIs(t, err, blob.ErrBlobNotFound)

	inner.full = false
	found, err := blob.PutBlobAndGetMetadata(t.Context(), st, "xn1", text("content"), blob.PutOptions{})
	require.NoError(t, err)
	require.Equal(t, inner.time, found.Timestamp)
	require.NoError(t, st.PutBlob(t.Context(), "p1", text("content"), blob.PutOptions{}))
}

// slowDeletes is a storage in memory whose deletions wait until they may go on. It counts what it is asked.
type slowDeletes struct {
	memoryPacks
	gate chan struct{}
	// hold, if not nil, keeps blobs from being put until it is closed.
	hold    chan struct{}
	err     error
	asked   int
	mu      sync.Mutex
	deleted []blob.ID
}

func (s *slowDeletes) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, _ blob.PutOptions) error {
	if s.hold != nil {
		<-s.hold
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var buf bytes.Buffer
	_, err := data.WriteTo(&buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packs[id] = buf.Bytes()
	return err
}

func (s *slowDeletes) GetMetadata(context.Context, blob.ID) (blob.Metadata, error) {
	s.asked++
	return blob.Metadata{Timestamp: time.Unix(42, 0)}, nil
}

func (s *slowDeletes) DeleteBlob(_ context.Context, id blob.ID) error {
	<-s.gate
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted = append(s.deleted, id)
	return s.err
}

func (*slowDeletes) Close(context.Context) error { return nil }

func newSlowDeletes() *slowDeletes {
	return &slowDeletes{memoryPacks: memoryPacks{packs: map[blob.ID][]byte{}}, gate: make(chan struct{})}
}

func TestSessionsEndInTheBackground(t *testing.T) {
	for name, failure := range map[string]error{"deleted": nil, "gone": blob.ErrBlobNotFound, "full": errFull} {
		t.Run(name, func(t *testing.T) {
			inner := newSlowDeletes()
			inner.err = failure
			st := newPutStorage(inner)
			_, err := blob.PutBlobAndGetMetadata(t.Context(), st, "s1", text("marker"), blob.PutOptions{})
			require.NoError(t, err)
			require.NoError(t, st.PutBlob(t.Context(), "xn1", text("index"), blob.PutOptions{}))
			require.Equal(t, "marker", string(inner.packs["s1"]), "it is there before the index")
			require.Zero(t, inner.asked, "the time of a marker is of no use")
			ctx, cancel := context.WithCancel(t.Context())
			require.NoError(t, st.DeleteBlob(ctx, "s1"), "nobody waits for it")
			cancel()
			closed := make(chan error)
			go func() { closed <- st.Close(t.Context()) }()
			select {
			case <-closed:
				t.Fatal("the marker is not deleted yet")
			case <-time.After(20 * time.Millisecond):
			}
			close(inner.gate)
			err = <-closed
			require.Equal(t, []blob.ID{"s1"}, inner.deleted)
			if errors.Is(failure, errFull) {
				require.ErrorIs(t, err, errFull)
			} else {
				require.NoError(t, err)
			}
		})
	}
	t.Run("kopia ends the context of the pack that needs the marker", func(t *testing.T) {
		inner := newSlowDeletes()
		inner.hold = make(chan struct{})
		st := newPutStorage(inner)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := blob.PutBlobAndGetMetadata(ctx, st, "s1", text("marker"), blob.PutOptions{})
		require.NoError(t, err)
		cancel()
		close(inner.hold)
		require.NoError(t, st.PutBlob(t.Context(), "xn1", text("index"), blob.PutOptions{}))
		require.Equal(t, "marker", string(inner.packs["s1"]))
	})
	t.Run("the index is given up", func(t *testing.T) {
		inner := newSlowDeletes()
		inner.hold = make(chan struct{})
		defer close(inner.hold)
		st := newPutStorage(inner)
		_, err := blob.PutBlobAndGetMetadata(t.Context(), st, "s1", text("marker"), blob.PutOptions{})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, st.PutBlob(ctx, "xn1", text("index"), blob.PutOptions{}), context.Canceled)
	})
	t.Run("a marker cannot be written", func(t *testing.T) {
		inner := &fullStorage{full: true}
		st := newPutStorage(inner)
		_, err := blob.PutBlobAndGetMetadata(t.Context(), st, "s1", text("marker"), blob.PutOptions{})
		require.NoError(t, err)
		inner.waitForPut()
		inner.full = false
		require.ErrorIs(t, st.PutBlob(t.Context(), "xn1", text("index"), blob.PutOptions{}), errFull, "no index without it")
	})
	t.Run("the storage hangs", func(t *testing.T) {
		inner := newSlowDeletes()
		defer close(inner.gate)
		st := newPutStorage(inner)
		require.NoError(t, st.DeleteBlob(t.Context(), "s1"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, st.Close(ctx), context.DeadlineExceeded)
	})
	t.Run("clocks are compared", func(t *testing.T) {
		t.Setenv(checkClock, "true")
		inner := newSlowDeletes()
		found, err := blob.PutBlobAndGetMetadata(t.Context(), newPutStorage(inner), "s1", text("marker"), blob.PutOptions{})
		require.NoError(t, err)
		require.Equal(t, time.Unix(42, 0), found.Timestamp)
	})
}

func TestSmallPacksAreRemembered(t *testing.T) {
	inner := newSlowDeletes()
	close(inner.gate)
	st := newPutStorage(inner)
	put := func(id blob.ID, content string) {
		t.Helper()
		require.NoError(t, st.PutBlob(t.Context(), id, text(content), blob.PutOptions{}))
	}
	read := func(id blob.ID, offset, length int64, want string) (requests int) {
		t.Helper()
		before := inner.reads
		var buf rangeBuffer
		require.NoError(t, st.GetBlob(t.Context(), id, offset, length, &buf))
		require.Equal(t, want, string(buf))
		return inner.reads - before
	}
	put("q1", "manifests")
	put("p1", "directory")
	put("xn0_1", "index")
	put("p2", strings.Repeat("x", maxRemembered+1))
	require.Zero(t, read("q1", 0, -1, "manifests"))
	require.Zero(t, read("p1", 3, 4, "ecto"))
	require.Zero(t, read("p1", 3, -1, "ectory"))
	require.Equal(t, 1, read("xn0_1", 0, -1, "index"))
	require.Equal(t, 1, read("p2", 5, 3, "xxx"))
	inner.packs["p3"] = []byte("another")
	require.Equal(t, 1, read("p3", 0, -1, "another"))
	require.Equal(t, 1, read("p3", 2, 3, "oth"))
	var buf rangeBuffer
	require.ErrorIs(t, st.GetBlob(t.Context(), "p1", 5, 40, &buf), errRange, "the storage has the better error")
	require.NoError(t, st.DeleteBlob(t.Context(), "p1"))
	require.Equal(t, 1, read("p1", 0, 2, "di"), "what is deleted is not remembered")
	for i := range 2 * remembered {
		put(blob.ID(fmt.Sprint("p", 10+i)), "more")
	}
	require.Len(t, st.packs, remembered)
	require.Equal(t, 1, read("q1", 0, -1, "manifests"))
}
