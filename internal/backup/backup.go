// Package backup makes one image of a volume and names it. The worker, the command line
// and the tests all back up this way:
//
//	list the repo snapshots of the volume
//	an earlier run of this operation saved one?    it is the result
//	delete the repo snapshots of failed operations
//	open the device
//	choose the parent and what to read             package chain
//	read and put                                   package datapath
//	commit the image, which saves the repo snapshot
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
//	while it commits               the repo snapshot   checks that nothing of it is lost, and returns it
//	after the last step            the repo snapshot   the same
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
	// Deleted are the repo snapshots that were found of failed operations, and of earlier runs that were killed while maintenance, or the
	// storage, took away a part of what they had saved.
	Deleted []Deleted
}

// Deleted is a repo snapshot that is none. Err is nil if it was deleted. A later
// run tries again, so the error is not one of the run.
type Deleted struct {
	ID        repository.SnapshotID
	Operation string
	Err       error
	// Lost says what is gone of a repo snapshot that an earlier run of this operation saved.
	Lost error
}

// Run makes the backup.
func Run(ctx context.Context, job Job) (result Result, err error) {
	start := job.Now()
	history, err := job.Store.List(ctx, job.Volume)
	if err != nil {
		return Result{}, err
	}
	history, saved, err := job.savedBefore(ctx, history)
	if err != nil || saved.SavedBefore {
		return saved, err
	}
	history, failed := job.deleteFailed(ctx, history)
	result.Deleted = slices.Concat(saved.Deleted, failed)
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
	result.SnapshotID, result.Written, err = run.Writer.Commit(ctx, repository.Snapshot{Tags: tags(run.Reason), Start: start, End: moved})
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

// savedBefore returns the result of an earlier run that saved the repo snapshot. That run may have ended before it could check what it had
// saved. If it lacks something, or may do so, savedBefore deletes it, and returns the history without it.
func (j Job) savedBefore(ctx context.Context, history []repository.Snapshot) ([]repository.Snapshot, Result, error) {
	saved, ok := repository.FindOperation(history, j.Operation)
	if !ok {
		return history, Result{}, nil
	}
	switch {
	case saved.Damage != nil:
		return nil, Result{}, fmt.Errorf("read repo snapshot %s, which an earlier run of operation %s saved: %w", saved.ID, j.Operation, saved.Damage)
	case j.Size != 0 && saved.Meta.Size != j.Size:
		return nil, Result{}, fmt.Errorf("an earlier run of operation %s saved repo snapshot %s of %d bytes, and the device has %d",
			j.Operation, saved.ID, saved.Meta.Size, j.Size)
	}
	is := func(id repository.SnapshotID) func(repository.Snapshot) bool {
		return func(s repository.Snapshot) bool { return s.ID == id }
	}
	err := j.Store.Check(ctx, saved.ID)
	if parent := saved.Meta.Parent; err == nil && parent != "" && !slices.ContainsFunc(history, is(parent)) {
		err = fmt.Errorf("look for parent %s: %w", parent, repository.ErrNotFound)
	}
	switch {
	case errors.Is(err, repository.ErrNotFound):
		rest := slices.DeleteFunc(slices.Clone(history), is(saved.ID))
		return rest, Result{Deleted: []Deleted{{ID: saved.ID, Operation: j.Operation, Lost: err}}}, j.Store.Delete(ctx, saved.ID)
	case err != nil:
		return nil, Result{}, err
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
	return history, result, nil
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
		deleted = append(deleted, Deleted{ID: s.ID, Operation: operation, Err: j.Store.Delete(ctx, s.ID)})
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

func tags(reason chain.Reason) map[string]string {
	if reason == "" {
		return nil
	}
	return map[string]string{repository.TagReason: string(reason)}
}
