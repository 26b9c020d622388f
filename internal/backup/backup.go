// Package backup makes one image of a volume and names it. The worker, the command line
// and the tests all back up this way:
//
//	list the repo snapshots of the volume
//	an earlier run of this operation saved one?    it is the result
//	delete the repo snapshots of failed operations
//	open the device
//	choose the parent and what to read             package chain
//	read and put                                   package datapath
//	commit the image
//	save the repo snapshot
//
// # Crashes
//
// Only the last step makes a backup. So a run that is killed leaves the repository with
// the backup or without it, and what else it wrote is found or removed by a later run of
// the same operation:
//
//	the run ended                  it leaves           the next run of the operation
//	before the first checkpoint    nothing             starts over
//	by a kill, or canceled         its checkpoint      resumes from it
//	by an error                    its checkpoint      resumes from it
//	by an error that is final      nothing             starts over
//	by an error after the commit   its checkpoint      resumes from it
//	after the last step            the repo snapshot   returns it
//
// A run that fails with an error that is final (see package fault) discards its checkpoint:
// what failed may be what it recorded. Package repository says which runs can resume: the
// target must have a SnapshotHandle.
//
// The package is pure: device and repository are behind interfaces.
package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/repository"
)

// Job is one backup.
type Job struct {
	Store  repository.Store
	Volume repository.VolumeKey
	// Operation is the ID of the operation, which is the same in each run of it.
	Operation string
	// Failed are the IDs of operations that will never become a backup, although they may
	// have saved a repo snapshot.
	Failed []string
	// Size is the size that a repo snapshot of an earlier run must have, or 0 if any will
	// do.
	Size int64
	// Open opens the device. It is not called if an earlier run saved the repo snapshot.
	// The caller of Run closes the device.
	Open func() (device.Reader, error)
	// Plan returns what chain.Begin shall work with. Run sets Volume, History, Operation,
	// Store and Device. The history is that of the volume, without failed operations.
	Plan func(ctx context.Context, dev device.Reader, history []repository.Snapshot) (chain.Input, error)
	// Begun, if not nil, is called when it is decided what is read. An error ends the run.
	Begun func(Result) error
	// Options of the data path.
	Options datapath.Options
	// Now is the clock.
	Now func() time.Time
}

// Result is what a run did. With an error, it is how far the run came.
type Result struct {
	// SnapshotID is the repo snapshot, or "" if the run failed.
	SnapshotID repository.SnapshotID
	// SavedBefore is set if an earlier run of the operation saved the repo snapshot. Of the
	// decision, only Kind, Parent, Reason and Reasons are known then.
	SavedBefore bool
	chain.Decision
	// Size of the volume in bytes.
	Size int64
	// ToRead is how many bytes of the volume the decision makes this run and earlier runs
	// of the operation read.
	ToRead int64
	// Resumed is how many bytes of the volume earlier runs have finished. What follows does
	// not include them.
	Resumed int64
	Read    datapath.BackupStats
	Written repository.WriteStats
	// Saving is how long it took to commit the image and to save the repo snapshot.
	Saving time.Duration
	// Deleted are the repo snapshots of failed operations that were found.
	Deleted []Deleted
}

// Deleted is a repo snapshot of a failed operation. Err is nil if it was deleted. A later
// run tries again, so the error is not one of the run.
type Deleted struct {
	ID        repository.SnapshotID
	Operation string
	Err       error
}

// Run makes the backup.
func Run(ctx context.Context, job Job) (result Result, err error) {
	start := job.Now()
	history, err := job.Store.List(ctx, job.Volume)
	if err != nil {
		return Result{}, err
	}
	if saved, ok := repository.FindOperation(history, job.Operation); ok {
		return job.savedBefore(saved)
	}
	history, result.Deleted = job.deleteFailed(ctx, history)
	dev, err := job.Open()
	if err != nil {
		return result, err
	}
	result.Size = dev.Size()
	run, err := job.begin(ctx, dev, history)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, run.Writer.Close(ctx, ending(ctx, err))) }()
	result.Decision = run.Decision
	result.ToRead = run.Read.Bytes()
	result.Resumed = min(run.Writer.Resumed()*run.Writer.Meta().ChunkSize, result.Size)
	if job.Begun != nil {
		if err := job.Begun(result); err != nil {
			return result, err
		}
	}
	result.Read, err = datapath.Backup(ctx, dev, run.Read, run.Writer, job.Options)
	if err != nil {
		return result, err
	}
	moved := job.Now()
	image, written, err := run.Writer.Commit(ctx)
	if err != nil {
		return result, err
	}
	result.Written = written
	result.SnapshotID, err = job.Store.Save(ctx, repository.Snapshot{
		Volume: job.Volume, Tags: job.tags(run.Reason), Start: start, End: job.Now(),
	}, image)
	result.Saving = job.Now().Sub(moved)
	return result, err
}

// ending says what becomes of an image that is not committed. See the package
// documentation.
func ending(ctx context.Context, err error) repository.Ending {
	if ctx.Err() != nil || fault.Of(err) != fault.Final {
		return repository.Suspend
	}
	return repository.Discard
}

// savedBefore returns the result of an earlier run.
func (j Job) savedBefore(saved repository.Snapshot) (Result, error) {
	switch {
	case saved.Damage != nil:
		return Result{}, fmt.Errorf("read repo snapshot %s, which an earlier run of operation %s saved: %w", saved.ID, j.Operation, saved.Damage)
	case j.Size != 0 && saved.Meta.Size != j.Size:
		return Result{}, fmt.Errorf("an earlier run of operation %s saved repo snapshot %s of %d bytes, and the device has %d",
			j.Operation, saved.ID, saved.Meta.Size, j.Size)
	}
	result := Result{
		SnapshotID:  saved.ID,
		SavedBefore: true,
		Decision:    chain.Decision{Kind: saved.Meta.Kind, Parent: saved.Meta.Parent, Reason: chain.Reason(saved.Tags[repository.TagReason])},
		Size:        saved.Meta.Size,
		Resumed:     saved.Meta.Size,
	}
	if result.Reason != "" {
		result.Reasons = []chain.Reason{result.Reason}
	}
	return result, nil
}

// deleteFailed deletes the repo snapshots of failed operations: those were canceled, or
// lost with their pod, right after they had saved. No backup names such a repo snapshot,
// so nobody else would ever delete it.
func (j Job) deleteFailed(ctx context.Context, history []repository.Snapshot) (rest []repository.Snapshot, deleted []Deleted) {
	for _, s := range history {
		operation := s.Tags[repository.TagOperation]
		if operation == "" || !slices.Contains(j.Failed, operation) {
			rest = append(rest, s)
			continue
		}
		deleted = append(deleted, Deleted{s.ID, operation, j.Store.Delete(ctx, s.ID)})
	}
	return rest, deleted
}

func (j Job) begin(ctx context.Context, dev device.Reader, history []repository.Snapshot) (chain.Run, error) {
	in, err := j.Plan(ctx, dev, history)
	if err != nil {
		return chain.Run{}, err
	}
	in.Volume, in.History, in.Operation, in.Store, in.Device = j.Volume, history, j.Operation, j.Store, dev
	return chain.Begin(ctx, in)
}

func (j Job) tags(reason chain.Reason) map[string]string {
	tags := map[string]string{repository.TagOperation: j.Operation}
	if reason != "" {
		tags[repository.TagReason] = string(reason)
	}
	return tags
}
