package kopia

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/format"

	"github.com/blockmover/blockmover/internal/repository"
)

// adviseFormat ends the sentence "the password is wrong, or …". The two cannot be told apart: the password decrypts the blob.
const adviseFormat = "the blob " + format.KopiaRepositoryBlobID + " is damaged, so put it back from a copy"

// unusableError adds repository.ErrUnusable to an error, and keeps its text.
type unusableError struct{ error }

func unusable(err error) error { return unusableError{err} }

func (e unusableError) Unwrap() []error { return []error{e.error, repository.ErrUnusable} }

// opening are kopia's words for what it reads when it opens a repository, and what to do if it cannot.
var opening = []struct{ words, do string }{
	{"index blob", adviseDamagedIndex},
	{"blobcfg", "put back the blob " + format.KopiaBlobCfgBlobID + ", or delete it if the storage has no object locks"},
	{"invalid format blob", "put back the blob " + format.KopiaRepositoryBlobID + " from a copy"},
	{"format manager", "put back the blob " + format.KopiaRepositoryBlobID + " from a copy"},
	{"content manager", "put back what is missing"},
}

// explainOpen says what to do about an error of opening a repository, and marks it: with repository.ErrUnusable if what is in the storage
// is the cause, or the password, and with repository.ErrUnavailable if the storage is.
func explainOpen(ctx context.Context, err error) error {
	switch {
	case !isDamage(ctx, err):
		return mark(err)
	case errors.Is(err, repo.ErrInvalidPassword), errors.Is(err, repo.ErrRepositoryNotInitialized):
		return unusable(err)
	}
	for _, o := range opening {
		if strings.Contains(err.Error(), o.words) {
			return unusable(fmt.Errorf("%w: %s", err, o.do))
		}
	}
	return err
}

// explainLocal is explainOpen for a repository whose password the caller has given.
func explainLocal(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, repo.ErrInvalidPassword):
		err = fmt.Errorf("the password is wrong, or %s: %w", adviseFormat, err)
	case errors.Is(err, repo.ErrRepositoryNotInitialized):
		err = fmt.Errorf("there is no blob %s, so if there was a repository, put it back from a copy: %w", format.KopiaRepositoryBlobID, err)
	}
	return explainOpen(ctx, err)
}
