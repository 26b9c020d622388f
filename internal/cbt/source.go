// Package cbt turns what a storage system says about allocated and changed
// blocks into a block.Bitmap, or says why it cannot.
//
// Terms: the target is the snapshot that is backed up. The base is the earlier snapshot that
// a delta is relative to. The change ID is the storage's name for the base (for CSI: the
// snapshot handle).
//
// Collect trusts what a Source reports, which is the purpose of CBT. It does not trust the
// form: it checks order, overlap, bounds and capacity of every block. A stream that fails the
// check is an error, not data.
package cbt

import (
	"context"

	"github.com/blockmover/blockmover/internal/block"
)

// ChangeID is the storage's name for a base snapshot. It is opaque, and never empty in a
// request for a delta.
type ChangeID string

// Batch is one message of a stream of blocks.
type Batch struct {
	// Fixed is true if the storage says that all its blocks have one length (CSI:
	// FIXED_LENGTH), and false for VARIABLE_LENGTH.
	Fixed bool
	// Capacity is the size in bytes of the volume that the storage describes.
	Capacity int64
	// Blocks are in ascending order and do not overlap, within the batch and from one batch
	// to the next.
	Blocks []block.Extent
}

// Source streams block metadata of one target snapshot.
//
// Both methods call record for each batch in turn, on the caller's goroutine. They start with
// the block that contains or follows the byte offset from. They return nil only if the stream
// ended by itself, so that all blocks were recorded. An error of record ends the stream and
// is returned as it is. A transient failure of the transport wraps ErrInterrupted: the caller
// may call again, with from set to the end of the last block that it recorded.
type Source interface {
	// Allocated streams the blocks of the target that hold data.
	Allocated(ctx context.Context, from int64, record func(Batch) error) error
	// Changed streams the blocks that differ between base and target.
	Changed(ctx context.Context, base ChangeID, from int64, record func(Batch) error) error
}
