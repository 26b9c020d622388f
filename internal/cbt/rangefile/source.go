package rangefile

import (
	"context"
	"fmt"
	"sort"

	"github.com/blockmover/blockmover/internal/cbt"
)

// batch is how many ranges a message of a Source has.
const batch = 4096

// Source is a cbt.Source over lists.
type Source struct {
	// Capacity is the size that the lists were checked against.
	Capacity int64
	// AllocatedRanges and ChangedRanges are nil if there is no such list.
	AllocatedRanges *List
	ChangedRanges   *List
	// Base is the only base that ChangedRanges are relative to.
	Base cbt.ChangeID
}

var _ cbt.Source = Source{}

// Allocated implements cbt.Source.
func (s Source) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	if s.AllocatedRanges == nil {
		return fmt.Errorf("%w: no list of allocated ranges was given", cbt.ErrUnavailable)
	}
	return s.stream(ctx, s.AllocatedRanges, from, record)
}

// Changed implements cbt.Source.
func (s Source) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	if s.ChangedRanges == nil {
		return fmt.Errorf("%w: no list of changed ranges was given", cbt.ErrUnavailable)
	}
	if base != s.Base {
		return fmt.Errorf("the list of changed ranges is relative to %q, not to %q", s.Base, base)
	}
	return s.stream(ctx, s.ChangedRanges, from, record)
}

func (s Source) stream(ctx context.Context, l *List, from int64, record func(cbt.Batch) error) error {
	if len(l.extents) == 0 {
		return record(cbt.Batch{Capacity: s.Capacity}) // whoever gave the list says that there are none
	}
	first := sort.Search(len(l.extents), func(i int) bool { return l.extents[i].End() > from })
	for rest := l.extents[first:]; len(rest) > 0; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stream ranges: %w", err)
		}
		n := min(batch, len(rest))
		if err := record(cbt.Batch{Capacity: s.Capacity, Blocks: rest[:n]}); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}
