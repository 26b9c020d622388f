// Package restore writes one image onto a device. The worker, the command line and the
// tests all restore this way:
//
//	open the image of the repo snapshot
//	open the device
//	in place: plan what to look at    package rollback
//	write every byte, sync            package datapath
//	close the device
//
// # Crashes
//
// A device that Run did not finish holds a mixture of old and new bytes. Another Run
// makes it whole, whatever is there: with Options.Resume it reads the device first and
// writes only what differs. A device is complete only once it is closed without an error:
// some storage reports a failed write that late.
//
// The package is pure: device and repository are behind interfaces.
package restore

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
)

// Store is what Run needs of a repository.
type Store interface {
	OpenReader(ctx context.Context, id repository.SnapshotID) (repository.VolumeReader, error)
}

// Job is one restore.
type Job struct {
	Store    Store
	Snapshot repository.SnapshotID
	// Open opens the device for an image of the given size. Run closes it.
	Open func(size int64) (device.Writer, error)
	// Begun, if not nil, is called before anything is written. An error ends the run.
	Begun func(image repository.VolumeReader, dev device.Writer) error
	// Plan, if not nil, is called after that and returns Options.Only. An error ends the run.
	Plan func(ctx context.Context, image repository.VolumeReader, dev device.Writer) (*block.Bitmap, error)
	// Options of the data path.
	Options datapath.Options
}

// Result is what a run did. With an error, it is how far the run came.
type Result struct {
	// Size of the image in bytes.
	Size int64
	datapath.RestoreStats
}

// Run restores. An error that wraps ErrUntouched means that nothing was written.
func Run(ctx context.Context, job Job) (result Result, err error) {
	image, err := job.Store.OpenReader(ctx, job.Snapshot)
	if err != nil {
		return result, untouched(err)
	}
	defer image.Close() //nolint:errcheck // it was only read
	result.Size = image.Meta().Size
	dev, err := job.Open(result.Size)
	if err != nil {
		return result, untouched(err)
	}
	defer func() {
		if closeErr := dev.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("close device: %w", closeErr))
		}
	}()
	if job.Begun != nil {
		if err := job.Begun(image, dev); err != nil {
			return result, untouched(err)
		}
	}
	if job.Plan != nil {
		if job.Options.Only, err = job.Plan(ctx, image, dev); err != nil {
			return result, untouched(err)
		}
	}
	result.RestoreStats, err = datapath.Restore(ctx, image, dev, job.Options)
	if errors.Is(err, datapath.ErrTooSmall) {
		return result, untouched(err)
	}
	return result, err
}

// ErrUntouched is wrapped by an error that came before the first write.
var ErrUntouched = errors.New("device is unchanged")

type untouchedError struct{ error }

func untouched(err error) error { return untouchedError{err} }

func (e untouchedError) Unwrap() []error { return []error{e.error, ErrUntouched} }
