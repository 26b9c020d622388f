package kopia

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/format"
)

// kopia opens a repository with all blobs of its index or not at all, and not without its blob configuration if that is damaged. Who reads
// needs no configuration, and a part of the index has many images. So a repository is opened for reading as if blobs that cannot be read
// were not there. Losses tells of those of the index.

// hidingType is the type of a storage that hides blobs.
const hidingType = "blockmover-hiding"

// hiding is the connection to a storage that hides blobs.
type hiding struct {
	Inner  blob.ConnectionInfo `json:"inner"`
	Hidden []blob.ID           `json:"hidden"`
}

func init() { //nolint:gochecknoinits // as in ranges.go
	blob.AddSupportedStorage(hidingType, hiding{},
		func(ctx context.Context, h *hiding, isCreate bool) (blob.Storage, error) {
			st, err := blob.NewStorage(ctx, h.Inner, isCreate)
			if err != nil {
				return nil, err
			}
			return hidingStorage{st, h.Hidden}, nil
		})
}

type hidingStorage struct {
	blob.Storage

	hidden []blob.ID
}

// ListBlobs implements blob.Reader.
func (s hidingStorage) ListBlobs(ctx context.Context, prefix blob.ID, each func(blob.Metadata) error) error {
	return s.Storage.ListBlobs(ctx, prefix, func(b blob.Metadata) error {
		if slices.Contains(s.hidden, b.BlobID) {
			return nil
		}
		return each(b)
	})
}

// GetBlob implements blob.Reader.
func (s hidingStorage) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	if slices.Contains(s.hidden, id) {
		return blob.ErrBlobNotFound
	}
	return s.Storage.GetBlob(ctx, id, offset, length, output)
}

// unreadableIndex finds the index blob in what kopia says when it cannot open a repository.
var unreadableIndex = regexp.MustCompile(`error loading index blob (x[a-z][\w-]*)`)

// open opens the repository of a connection file. For reading, it does without blobs that are damaged.
func open(ctx context.Context, file string, connection repo.LocalConfig, password string, options *repo.Options) (*Store, error) {
	store := &Store{}
	h := hiding{}
	if connection.ReadOnly {
		h.Inner = *connection.Storage
	}
	for {
		rep, err := repo.Open(ctx, file, password, options)
		if err == nil {
			store.rep = rep
			return store, nil
		}
		id, isIndex := unreadable(err)
		if !connection.ReadOnly || id == "" || slices.Contains(h.Hidden, id) || !isDamage(ctx, err) {
			return nil, err
		}
		if isIndex {
			store.damagedIndex = append(store.damagedIndex, corrupt(fmt.Errorf("index blob %s is damaged: %s", id, adviseDamagedIndex)))
		}
		h.Hidden = append(h.Hidden, id)
		connection.Storage = &blob.ConnectionInfo{Type: hidingType, Config: &h}
		if err := writeConnection(file, connection); err != nil {
			return nil, err
		}
	}
}

// unreadable returns the blob by which kopia fails to open a repository, if a reader can do without it.
func unreadable(err error) (id blob.ID, isIndex bool) {
	if found := unreadableIndex.FindStringSubmatch(err.Error()); found != nil {
		return blob.ID(found[1]), true
	}
	if strings.Contains(err.Error(), "blobcfg") {
		return format.KopiaBlobCfgBlobID, false
	}
	return "", false
}
