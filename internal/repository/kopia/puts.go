package kopia

import (
	"context"

	"github.com/kopia/kopia/repo/blob"
)

// putsType is the type of a storage whose writes say why they have failed.
const putsType = "blockmover-puts"

func init() { //nolint:gochecknoinits // as in ranges.go
	addStorage(putsType, func(st blob.Storage) blob.Storage { return putStorage{st} })
}

// putting returns the connection to the same storage, for writing.
func putting(inner blob.ConnectionInfo) *blob.ConnectionInfo {
	return &blob.ConnectionInfo{Type: putsType, Config: &inner}
}

// putStorage asks for the time of a blob by itself. kopia's S3 storage asks also after a write that has
// failed, and returns that the blob is not there: the words of the object store are lost, nothing is
// tried again, and it looks as if the repository had lost something.
type putStorage struct{ blob.Storage }

// PutBlob implements blob.Storage.
func (s putStorage) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, opts blob.PutOptions) error {
	modTime := opts.GetModTime
	opts.GetModTime = nil
	if err := s.Storage.PutBlob(ctx, id, data, opts); err != nil || modTime == nil {
		return err
	}
	found, err := s.GetMetadata(ctx, id)
	if err != nil {
		return err
	}
	*modTime = found.Timestamp
	return nil
}
