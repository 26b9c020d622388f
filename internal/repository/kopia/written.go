package kopia

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/repository"
)

// parallelChecks is how many packs are looked up at once.
const parallelChecks = 8

// written remembers the contents that are in use while no manifest refers to them: those that
// were stored, and those that existed already. Maintenance spares them because of their age.
// Without its safety delays it does not, and nothing in kopia would notice before a restore.
type written struct {
	mu  sync.Mutex
	ids []content.ID
}

func (l *written) add(id content.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = append(l.ids, id)
}

// take returns what was added since the last call.
func (l *written) take() []content.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := l.ids
	l.ids = nil
	return ids
}

// errLost is the error of a writer whose contents are lost.
var errLost = errors.New("the repository has lost it: maintenance without its safety delays (--safety=none) has deleted it meanwhile, " +
	"or the storage has; if another backup fails likewise, `kopia content verify` lists what is gone")

// checkWritten checks that everything written since the last call is in the repository: in
// its index, and in a pack that exists. It runs after a manifest refers to it all.
func (o *objectWriter) checkWritten(ctx context.Context) error {
	if err := refresh(ctx, o.committed); err != nil {
		return err
	}
	packs := packSet{}
	var err error
	for _, id := range o.written.take() {
		if err = packs.add(ctx, o.committed, id); err != nil {
			break
		}
	}
	if err == nil {
		err = packs.check(ctx, o.w.BlobReader())
	}
	if errors.Is(err, repository.ErrNotFound) {
		return fmt.Errorf("%w: %v", errLost, err) //nolint:errorlint // another attempt stores it again
	}
	return err
}

// packSet is a set of packs.
type packSet map[blob.ID]struct{}

// add adds the pack that a content is in, as the index has it.
func (s packSet) add(ctx context.Context, rep repo.Repository, id content.ID) error {
	info, err := findContent(ctx, rep, id)
	if err == nil {
		s[info.PackBlobID] = struct{}{}
	}
	return err
}

// check fails if the storage does not have one of them.
func (s packSet) check(ctx context.Context, storage blob.Reader) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelChecks)
	for pack := range s {
		group.Go(func() error {
			if _, err := storage.GetMetadata(ctx, pack); err != nil {
				return fmt.Errorf("look up pack %s: %w", pack, translate(err))
			}
			return nil
		})
	}
	return group.Wait()
}
