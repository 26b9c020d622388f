package cli

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// scanWorkers is how many steps of a scan run at once. It is enough for all cores of a usual
// machine while some steps wait for the storage.
const scanWorkers = 8

// scanStep is the length of one step, a multiple of every chunk size. Memory is scanWorkers *
// scanStep for each image that is read.
const scanStep = block.MaxChunkSize

// ranges yields extents in ascending order, until an error.
type ranges func(emit func(block.Extent) error) error

// whole is all of a volume of size bytes.
func whole(size int64) ranges {
	return func(emit func(block.Extent) error) error { return emit(block.Extent{Length: size}) }
}

// scan runs steps over ranges, several at once, and passes the results on in ascending order.
// Workers have numbers from 0 to scanWorkers-1. Steps that run at once have different
// numbers.
func scan[R any](
	ctx context.Context, in ranges,
	look func(ctx context.Context, worker int, e block.Extent) (R, error),
	emit func(R) error,
) error {
	var steps []block.Extent
	flush := func() error {
		results := make([]R, len(steps))
		group, ctx := errgroup.WithContext(ctx)
		for worker, e := range steps {
			group.Go(func() (err error) {
				if err := ctx.Err(); err != nil {
					return err
				}
				results[worker], err = look(ctx, worker, e)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		steps = steps[:0]
		for _, r := range results {
			if err := emit(r); err != nil {
				return err
			}
		}
		return nil
	}
	err := in(func(e block.Extent) error {
		for off := e.Offset; off < e.End(); off += scanStep {
			steps = append(steps, block.Extent{Offset: off, Length: min(scanStep, e.End()-off)})
			if len(steps) < scanWorkers {
				continue
			}
			if err := flush(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// isZero reports whether a range of an image is known to be zero without
// reading it.
func isZero(ctx context.Context, image repository.VolumeReader, e block.Extent) (bool, error) {
	chunk := image.Meta().ChunkSize
	for c := e.Offset / chunk; c*chunk < e.End(); c++ {
		if zero, err := image.IsZero(ctx, c); !zero || err != nil {
			return false, err
		}
	}
	return true, nil
}
