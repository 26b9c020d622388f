package kopia

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/repo"
)

// freshFor is for how long the index is taken for what the repository has, where that is only a matter of speed. Reading it again takes two
// rounds of requests. Where something must be seen that came before, Refresh is called.
const freshFor = 2 * time.Second

// freshRepository remembers when its index was read last.
type freshRepository struct {
	repo.DirectRepository

	read atomic.Pointer[time.Time]
	// opened is set until the first Refresh.
	opened atomic.Bool
}

// remembering returns a repository that was opened just now, and remembers that. One that gives no access to its storage is returned as it
// is.
func remembering(rep repo.Repository) repo.Repository {
	direct, ok := rep.(repo.DirectRepository)
	if !ok {
		return rep
	}
	f := &freshRepository{DirectRepository: direct}
	now := direct.Time()
	f.read.Store(&now)
	f.opened.Store(true)
	return f
}

// Refresh implements repo.Repository. The first one after the repository was opened has nothing to do if it comes soon.
func (f *freshRepository) Refresh(ctx context.Context) error {
	if f.opened.Swap(false) && f.isFresh() {
		return nil
	}
	now := f.Time()
	if err := f.DirectRepository.Refresh(ctx); err != nil {
		return err
	}
	f.read.Store(&now)
	return nil
}

func (f *freshRepository) isFresh() bool { return f.Time().Sub(*f.read.Load()) < freshFor }

// withIndex does something for which an index will do that was read in the last freshFor. If that fails, maintenance may have moved what it
// needs meanwhile, so it is done again with an index that is read for it.
func withIndex(ctx context.Context, rep repo.Repository, do func() error) error {
	if f, ok := rep.(*freshRepository); ok && f.isFresh() && do() == nil {
		return nil
	}
	if err := refresh(ctx, rep); err != nil {
		return err
	}
	return do()
}

// refresh reads the index again, so that what other processes have written is seen, and what they have deleted is not.
func refresh(ctx context.Context, rep repo.Repository) error {
	if err := rep.Refresh(ctx); err != nil {
		return fmt.Errorf("refresh repository index: %w", err)
	}
	return nil
}
