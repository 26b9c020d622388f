package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/device"
)

// ErrNoBase is wrapped by the errors of a Stack that holds changes only, when what it lacks
// is asked for.
var ErrNoBase = errors.New("the qcow2 files hold only what changed")

// Stack is a disk that several layers make together. It is safe for concurrent use after
// SetBase.
type Stack struct {
	layers []*Layer
	since  cbt.ChangeID
	base   device.Disk
}

var (
	_ device.Reader = (*Stack)(nil)
	_ cbt.Source    = (*Stack)(nil)
)

// NewStack puts layers together, the top one first. The size of the disk is that of the top
// layer. If since is not empty, the layers hold what changed since then, and need a base of
// that name. Otherwise they hold all of the disk.
func NewStack(since cbt.ChangeID, layers ...*Layer) (*Stack, error) {
	if len(layers) == 0 {
		return nil, errors.New("make stack of qcow2 files: there is no layer")
	}
	return &Stack{layers: layers, since: since}, nil
}

// OpenStack makes a stack of one file, and checks all of it. It closes the file after an error.
func OpenStack(ctx context.Context, since cbt.ChangeID, file device.Reader) (*Stack, error) {
	layer, err := Open(file, file.Size())
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	stack, err := NewStack(since, layer)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if err := stack.Check(ctx); err != nil {
		return nil, errors.Join(err, stack.Close())
	}
	return stack, nil
}

// Since is what the caller of NewStack or OpenStack gave.
func (s *Stack) Since() cbt.ChangeID { return s.since }

// SetBase puts the layers over the disk as it was at the instant that they begin with. Behind
// its end is zero. It must not be called while the stack is read.
func (s *Stack) SetBase(base device.Disk) { s.base = base }

// Check checks every layer.
func (s *Stack) Check(ctx context.Context) error {
	for _, l := range s.layers {
		if err := l.Check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Size implements device.Reader.
func (s *Stack) Size() int64 { return s.layers[0].Size() }

// BlockSize implements device.Reader.
func (s *Stack) BlockSize() int { return sectorBytes }

// Close implements device.Reader. It closes the files that can be closed.
func (s *Stack) Close() error {
	var errs []error
	for _, l := range s.layers {
		if c, ok := l.file.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// ReadAt implements device.Reader.
func (s *Stack) ReadAt(p []byte, off int64) (int, error) {
	if err := device.CheckRange(s.Size(), p, off); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.readFrom(0, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readFrom reads from a layer and those below it.
func (s *Stack) readFrom(depth int, p []byte, off int64) error {
	if depth == len(s.layers) {
		return s.readBase(p, off)
	}
	l := s.layers[depth]
	p = cut(p, off, l.Size())
	if len(p) == 0 {
		return nil
	}
	return l.read(context.Background(), p, off, func(p []byte, off int64) error { return s.readFrom(depth+1, p, off) })
}

func (s *Stack) readBase(p []byte, off int64) error {
	switch {
	case s.base != nil:
		if p = cut(p, off, s.base.Size()); len(p) == 0 {
			return nil
		}
		if err := readFull(s.base, p, off); err != nil {
			return fmt.Errorf("read disk below the qcow2 files: %w", err)
		}
	case s.since != "":
		return fmt.Errorf("read %s of the disk: %w since %s", block.Extent{Offset: off, Length: int64(len(p))}, ErrNoBase, s.since)
	default:
		clear(p)
	}
	return nil
}

// cut returns the part of p that a disk of the given size has, and clears the rest.
func cut(p []byte, off, size int64) []byte {
	n := max(min(int64(len(p)), size-off), 0)
	clear(p[n:])
	return p[:n]
}

// Allocated implements cbt.Source. What the base has is not known, so all of it counts.
func (s *Stack) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	return s.stream(ctx, from, record, func(state State) bool {
		return state == Data || state == Absent && s.since != ""
	})
}

// Changed implements cbt.Source. It knows what changed since one instant only.
func (s *Stack) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	if s.since != base {
		return fmt.Errorf("list what changed since %q: the qcow2 files hold what changed since %q", base, s.since)
	}
	return s.stream(ctx, from, record, func(state State) bool { return state != Absent })
}

// batchBlocks is the most blocks of a batch.
const batchBlocks = 1024

// stream records the extents whose state is wanted. The first batch may be empty: it states
// the capacity.
func (s *Stack) stream(ctx context.Context, from int64, record func(cbt.Batch) error, wanted func(State) bool) error {
	batch := cbt.Batch{Capacity: s.Size()}
	recorded := false
	flush := func() error {
		recorded = true
		err := record(batch)
		batch.Blocks = nil
		return err
	}
	if from < s.Size() {
		err := s.states(ctx, 0, block.Extent{Offset: from, Length: s.Size() - from}, func(e Extent) error {
			if !wanted(e.State) {
				return nil
			}
			if n := len(batch.Blocks); n > 0 && batch.Blocks[n-1].End() == e.Offset {
				batch.Blocks[n-1].Length += e.Length
				return nil
			}
			if len(batch.Blocks) == batchBlocks {
				if err := flush(); err != nil {
					return err
				}
			}
			batch.Blocks = append(batch.Blocks, e.Extent)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(batch.Blocks) > 0 || !recorded {
		return flush()
	}
	return nil
}

// states emits the states of a part of the disk, as a layer and those below it see it.
func (s *Stack) states(ctx context.Context, depth int, within block.Extent, emit func(Extent) error) error {
	if depth == len(s.layers) {
		return emit(Extent{within, Absent})
	}
	l := s.layers[depth]
	if inside := max(min(within.End(), l.Size())-within.Offset, 0); inside < within.Length {
		beyond := Extent{block.Extent{Offset: within.Offset + inside, Length: within.Length - inside}, Zero}
		if inside == 0 {
			return emit(beyond)
		}
		within.Length = inside
		if err := s.states(ctx, depth, within, emit); err != nil {
			return err
		}
		return emit(beyond)
	}
	return l.Extents(ctx, within, func(e Extent) error {
		if e.State != Absent {
			return emit(e)
		}
		return s.states(ctx, depth+1, e.Extent, emit)
	})
}
