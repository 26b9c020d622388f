package kopia

import (
	"context"
	"errors"
	"fmt"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/blockmover/blockmover/internal/repository"
)

// Store is an open kopia repository. It is safe for concurrent use.
type Store struct {
	rep repo.Repository
}

var _ repository.Store = (*Store)(nil)

// New returns a Store over an open repository, and takes ownership of it.
func New(rep repo.Repository) *Store { return &Store{rep} }

// Open opens the repository that a kopia configuration file connects to.
func Open(ctx context.Context, configFile, password string) (*Store, error) {
	rep, err := repo.Open(ctx, configFile, password, &repo.Options{})
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	return New(rep), nil
}

// Close closes the repository.
func (s *Store) Close(ctx context.Context) error {
	if err := s.rep.Close(ctx); err != nil {
		return fmt.Errorf("close repository: %w", err)
	}
	return nil
}

// translate replaces kopia's errors for "not there" by repository.ErrNotFound.
func translate(err error) error {
	for _, missing := range []error{
		object.ErrObjectNotFound, content.ErrContentNotFound, blob.ErrBlobNotFound, manifest.ErrNotFound, snapshot.ErrSnapshotNotFound,
	} {
		if errors.Is(err, missing) {
			return fmt.Errorf("%w: %w", repository.ErrNotFound, err)
		}
	}
	return err
}

// corrupt marks an error with repository.ErrCorrupt.
func corrupt(err error) error {
	if errors.Is(err, repository.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", repository.ErrCorrupt, err)
}

// checkPresent fails if the content that an object starts with is not in the repository. The
// error wraps repository.ErrNotFound. A content that garbage collection has marked counts as
// gone.
func checkPresent(ctx context.Context, rep repo.Repository, id object.ID) error {
	cid := firstContent(id)
	info, err := rep.ContentInfo(ctx, cid)
	switch {
	case err != nil:
		return fmt.Errorf("look up content %v: %w", cid, translate(err))
	case info.Deleted:
		return fmt.Errorf("content %v is marked for deletion: %w", cid, repository.ErrNotFound)
	}
	return nil
}

// firstContent returns the content of an object ID: the bytes of a direct object, or the
// index of an indirect one.
func firstContent(id object.ID) content.ID {
	for {
		index, ok := id.IndexObjectID()
		if !ok {
			cid, _, _ := id.ContentID()
			return cid
		}
		id = index
	}
}
