package kopia

import (
	"context"
	"errors"
	"io"
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
}

func (s *fullStorage) PutBlob(_ context.Context, _ blob.ID, _ blob.Bytes, opts blob.PutOptions) error {
	switch {
	case s.full && opts.GetModTime != nil:
		return blob.ErrBlobNotFound
	case s.full:
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
	st := putStorage{inner}
	// So kopia writes the marker of a session and the blobs of its index.
	_, err := blob.PutBlobAndGetMetadata(t.Context(), st, "s1", text("content"), blob.PutOptions{})
	require.ErrorIs(t, err, errFull)
	require.NotErrorIs(t, err, blob.ErrBlobNotFound)

	inner.full = false
	found, err := blob.PutBlobAndGetMetadata(t.Context(), st, "s1", text("content"), blob.PutOptions{})
	require.NoError(t, err)
	require.Equal(t, inner.time, found.Timestamp)
	require.NoError(t, st.PutBlob(t.Context(), "p1", text("content"), blob.PutOptions{}))
}
