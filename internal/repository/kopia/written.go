package kopia

import (
	"context"
	"errors"
	"fmt"
	"sync"

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
// its index, and in a pack that exists. It runs after a hold refers to it all.
func (o *objectWriter) checkWritten(ctx context.Context) error {
	if err := refresh(ctx, o.committed); err != nil {
		return err
	}
	packs := map[blob.ID]struct{}{}
	for _, id := range o.written.take() {
		info, err := o.committed.ContentInfo(ctx, id)
		switch {
		case err == nil && !info.Deleted:
			packs[info.PackBlobID] = struct{}{}
		case err == nil || errors.Is(translate(err), repository.ErrNotFound):
			return fmt.Errorf("look up content %v: %w", id, errLost)
		default:
			return fmt.Errorf("look up content %v: %w", id, err)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelChecks)
	for pack := range packs {
		group.Go(func() error {
			_, err := o.w.BlobReader().GetMetadata(ctx, pack)
			if errors.Is(err, blob.ErrBlobNotFound) {
				err = errLost
			}
			if err != nil {
				return fmt.Errorf("look up pack %s: %w", pack, err)
			}
			return nil
		})
	}
	return group.Wait()
}
