package kopia

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

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
	// holdDelay is after what time a writer takes its first hold, if it is not the default.
	holdDelay time.Duration
	// damagedIndex are the index blobs that the store does without, because they cannot be read.
	damagedIndex []error
}

var _ repository.Store = (*Store)(nil)

// New returns a Store over an open repository, and takes ownership of it.
func New(rep repo.Repository) *Store { return &Store{rep: rep} }

// Open opens the repository that a kopia configuration file connects to.
func Open(ctx context.Context, configFile, password string) (*Store, error) {
	rep, err := repo.Open(ctx, configFile, password, &repo.Options{})
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", explainLocal(ctx, err))
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

const (
	// adviseIndex is what to do about an index blob that is lost.
	adviseIndex = "put the index blob back, or have stock kopia make it again from the packs: kopia --dangerous-commands=enabled index recover --commit"
	// adviseDamagedIndex is what to do about one that is damaged.
	adviseDamagedIndex = "put the index blob back, or move it away and have stock kopia make it again from the packs: kopia --dangerous-commands=enabled index recover --commit"
	// adviseContent is what to do about a content that the index does not know.
	adviseContent = "if a part of the index is lost, " + adviseIndex
)

// translate replaces kopia's errors for "not there" by repository.ErrNotFound, and those for "not what was
// written" by repository.ErrCorrupt.
func translate(err error) error {
	switch {
	case errors.Is(err, object.ErrObjectNotFound), errors.Is(err, content.ErrContentNotFound):
		return fmt.Errorf("%w: %w: %s", repository.ErrNotFound, err, adviseContent)
	case errors.Is(err, blob.ErrBlobNotFound), errors.Is(err, manifest.ErrNotFound), errors.Is(err, snapshot.ErrSnapshotNotFound):
		return fmt.Errorf("%w: %w", repository.ErrNotFound, err)
	case isDamaged(err):
		return corrupt(err)
	}
	return err
}

// isDamaged reports whether bytes are not what was written.
func isDamaged(err error) bool {
	return errors.Is(err, blob.ErrInvalidRange) || err != nil && containsAny(err, damaged)
}

// damaged are kopia's words for bytes that are not what was written, and for a blob that is too short. It has no errors of its own for
// them.
var damaged = []string{"invalid checksum", "invalid length", "unable to decrypt"}

func containsAny(err error, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(err.Error(), w) })
}

// retried is what kopia writes when it has repeated a request to the storage in vain. It has
// no error of its own for that.
const retried = "unable to complete"

// refused are the words of storages that answer and refuse the credentials. Waiting does not
// help against them.
var refused = []string{
	blob.InvalidCredentialsErrStr, "AccessDenied", "Access Denied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
	"AuthorizationFailure", "AuthenticationFailed", "no EC2 IMDS role found",
}

// mark marks errors of the storage, which are not about its content, with
// repository.ErrUnavailable.
func mark(err error) error {
	var network net.Error
	switch {
	case err == nil, errors.Is(err, repository.ErrUnavailable), errors.Is(err, repository.ErrCorrupt), errors.Is(err, context.Canceled):
		return err
	case containsAny(err, refused):
		return err
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(err.Error(), retried):
		return fmt.Errorf("%w: %w", repository.ErrUnavailable, err)
	}
	return err
}

// isDamage reports whether an error says something about the content of the repository: the storage has answered.
func isDamage(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) &&
		!errors.Is(mark(err), repository.ErrUnavailable) && !containsAny(err, refused)
}

// markWrite is mark for a write. That a write finds something missing says that the storage
// has no bucket now: a server that starts answers so before it has its buckets.
func markWrite(err error) error {
	if errors.Is(err, blob.ErrBlobNotFound) && !errors.Is(err, repository.ErrNotFound) {
		return fmt.Errorf("%w: %w", repository.ErrUnavailable, err)
	}
	return mark(err)
}

// corrupt marks an error with repository.ErrCorrupt.
func corrupt(err error) error {
	if errors.Is(err, repository.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", repository.ErrCorrupt, err)
}

// checkPresent fails if the content that an object starts with is not in the repository. The
// error wraps repository.ErrNotFound.
func checkPresent(ctx context.Context, rep repo.Repository, id object.ID) error {
	_, err := findContent(ctx, rep, firstContent(id))
	return err
}

// findContent finds a content in the index. A content that garbage collection has marked counts as
// gone.
func findContent(ctx context.Context, rep repo.Repository, id content.ID) (content.Info, error) {
	info, err := rep.ContentInfo(ctx, id)
	switch {
	case err != nil:
		return info, fmt.Errorf("look up content %v: %w", id, translate(err))
	case info.Deleted:
		return info, fmt.Errorf("content %v is marked for deletion: %w", id, repository.ErrNotFound)
	}
	return info, nil
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
