package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/repository"
)

// ErrBaseGone is wrapped by the errors of Fold that say that the repository does not have the
// image that the changes are relative to. Only all of the disk can be backed up.
var ErrBaseGone = errors.New("the repository does not have the image that the changes are relative to")

// Changes is a disk that is there in part: what changed since an instant. A reader of qcow2
// files is one.
type Changes interface {
	device.Reader
	cbt.Source
	// Since is the name of the instant, or "" if all of the disk is there.
	Since() cbt.ChangeID
	// SetBase gives the disk as it was at that instant.
	SetBase(device.Disk)
}

// Fold completes the input of a backup whose device is a Changes: it puts the changes over the
// image of the instant that they are relative to. This image is the only parent that is
// tried. The input has Request and Volume. Without an instant, Request.Full says why.
//
// Nothing is audited. What is not in the changes is read from the image itself.
//
// The caller calls closeBase after the backup, also after an error.
func Fold(ctx context.Context, changes Changes, in chain.Input, store chain.Store, history []repository.Snapshot) (out chain.Input, closeBase func() error, err error) {
	in.Source, in.Unavailable, in.Audit, in.Capacity = changes, "", 0, 0
	closeBase = func() error { return nil }
	since := changes.Since()
	if since == "" {
		if len(in.Full) == 0 {
			return in, closeBase, errors.New("fold disk: it is there as a whole, and nothing says why")
		}
		return in, closeBase, nil
	}
	parent, ok := baseOf(since, in.Target, history)
	if !ok {
		return in, closeBase, fault.Mark(fmt.Errorf("fold what changed since %s into %s: %w", since, in.Volume, ErrBaseGone))
	}
	image, err := store.OpenReader(ctx, parent)
	switch {
	case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrCorrupt):
		return in, closeBase, fault.Mark(fmt.Errorf("fold what changed since %s into %s: %w: %w", since, in.Volume, ErrBaseGone, err))
	case err != nil:
		return in, closeBase, fmt.Errorf("fold what changed since %s into %s: %w", since, in.Volume, err)
	}
	changes.SetBase(disk{image})
	in.Parent = string(parent)
	return in, image.Close, nil
}

// baseOf finds the image of an instant.
func baseOf(since cbt.ChangeID, target repository.Meta, history []repository.Snapshot) (repository.SnapshotID, bool) {
	for _, s := range history {
		if s.Damage == nil && cbt.ChangeID(s.Meta.ChangeID) == since && s.Meta.Mover == target.Mover &&
			s.Meta.Driver == target.Driver && s.Meta.VolumeHandle == target.VolumeHandle {
			return s.ID, true
		}
	}
	return "", false
}

// disk is an image as a disk.
type disk struct{ repository.VolumeReader }

// Size implements device.Disk.
func (d disk) Size() int64 { return d.Meta().Size }
