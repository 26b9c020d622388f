package device

import (
	"context"
	"errors"

	"github.com/blockmover/blockmover/internal/block"
)

// zeros is what is written where nothing shorter makes zeros.
var zeros = NewBuffer(1 << 20)

// Zero makes a range of a device read as zeros. If the device has no shorter way, Zero writes them, as
// others write to d: within the limits of d, and until ctx ends.
func Zero(ctx context.Context, d Writer, e block.Extent) error {
	err := d.Zero(e)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	for off := e.Offset; off < e.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := d.WriteAt(zeros[:min(int64(len(zeros)), e.End()-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
