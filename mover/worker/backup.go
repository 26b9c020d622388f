package worker

import (
	"context"
	"fmt"
	"slices"

	"github.com/blockmover/blockmover/internal/audit"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/heap"
)

// backup makes an image of the device and names it.
func (w *Worker) backup(ctx context.Context, r task.Request, options datapath.Options) (report task.Report, err error) {
	store, err := w.Environment.OpenStore(ctx)
	if err != nil {
		return report, err
	}
	defer w.closeStore(ctx, store)
	heap.Limit()
	history, err := store.List(ctx, r.Volume)
	if err != nil {
		return report, err
	}
	if saved, ok, err := w.savedBefore(history, r); ok || err != nil {
		return saved, err
	}
	history = w.withoutFailed(ctx, store, history, r.Backup.Failed)

	dev, err := w.Environment.OpenReader()
	if err != nil {
		return report, err
	}
	defer func() { w.warn("Cannot close device", dev.Close()) }()
	dev = device.LimitReader(ctx, dev, r.RateLimit)
	report.VolumeSize = dev.Size()

	start := w.Now()
	in, err := w.chainInput(r, store, dev)
	if err != nil {
		return report, err
	}
	in.History = history
	run, err := chain.Begin(ctx, in)
	if err != nil {
		return report, err
	}
	defer func() {
		if ctx.Err() != nil {
			// Told to stop: where the manager wants another attempt, that goes on from here.
			run.Writer.Suspend()
		}
		run.Writer.Abort()
	}()
	reportChoice(&report, run)
	w.Log.Info("Backup begins", "kind", run.Kind, "parent", run.Parent, "reason", run.Reason, "detail", run.Detail,
		"size", report.VolumeSize, "resumed", run.Writer.Resumed(), "blocks", run.Source.Blocks,
		"resumptions", report.Resumptions, "bytesAudited", report.BytesAudited)

	read, err := datapath.Backup(ctx, dev, run.Read, run.Writer, options)
	report.BytesRead = read.BytesRead
	if err != nil {
		return report, err
	}
	image, written, err := run.Writer.Commit(ctx)
	if err != nil {
		return report, err
	}
	report.BytesUploaded, report.MetadataBytes = written.BytesUploaded, written.MetadataBytes
	report.ChunksWritten, report.ChunksInherited = written.ChunksWritten, written.ChunksInherited
	report.ZeroBytes = written.ZeroBytes
	report.SnapshotID, err = store.Save(ctx, repository.Snapshot{
		Volume: r.Volume,
		Tags:   tagsOf(r, run.Reason),
		Start:  start,
		End:    w.Now(),
	}, image)
	if err != nil {
		return report, err
	}
	w.Log.Info("Backup is complete", "snapshotID", report.SnapshotID,
		"bytesRead", report.BytesRead, "bytesUploaded", report.BytesUploaded, "metadataBytes", report.MetadataBytes)
	return report, nil
}

// reportChoice reports what the image is to be, and why.
func reportChoice(report *task.Report, run chain.Run) {
	report.Kind, report.Parent = run.Kind, run.Parent
	report.Reason, report.Detail = string(run.Reason), run.Detail
	for _, reason := range run.Reasons {
		report.Reasons = append(report.Reasons, string(reason))
	}
	report.Resumptions = run.Source.Resumptions
	report.ChunksAudited, report.BytesAudited = run.Audited.Chunks, run.Audited.Bytes
}

// savedBefore finds the repo snapshot of an earlier attempt at the same
// operation.
func (w *Worker) savedBefore(history []repository.Snapshot, r task.Request) (task.Report, bool, error) {
	saved, ok := repository.FindOperation(history, r.OperationID)
	switch {
	case !ok:
		return task.Report{}, false, nil
	case saved.Damage != nil:
		return task.Report{}, false, fmt.Errorf("read repo snapshot %s, which this operation saved before: %w", saved.ID, saved.Damage)
	}
	w.Log.Info("Backup was complete before", "snapshotID", saved.ID, "kind", saved.Meta.Kind, "parent", saved.Meta.Parent)
	report := task.Report{
		SnapshotID: saved.ID,
		Kind:       saved.Meta.Kind,
		Parent:     saved.Meta.Parent,
		Reason:     saved.Tags[repository.TagReason],
		Detail:     "an earlier attempt saved the repo snapshot",
		VolumeSize: saved.Meta.Size,
	}
	if report.Reason != "" {
		report.Reasons = []string{report.Reason}
	}
	return report, true, nil
}

func tagsOf(r task.Request, reason chain.Reason) map[string]string {
	tags := map[string]string{repository.TagOperation: r.OperationID}
	if reason != "" {
		tags[repository.TagReason] = string(reason)
	}
	return tags
}

// withoutFailed drops the repo snapshots of uploads that failed after they had
// saved them: canceled, or lost with their mover pod, at the last moment. No backup
// names such a repo snapshot, so nobody else would ever delete it.
func (w *Worker) withoutFailed(ctx context.Context, store repository.Store, history []repository.Snapshot, failed []string) []repository.Snapshot {
	return slices.DeleteFunc(history, func(s repository.Snapshot) bool {
		operation := s.Tags[repository.TagOperation]
		if operation == "" || !slices.Contains(failed, operation) {
			return false
		}
		w.Log.Info("Delete repo snapshot of an upload that failed", "snapshotID", s.ID, "operation", operation)
		w.warn("Cannot delete repo snapshot of an upload that failed", store.Delete(ctx, s.ID))
		return true
	})
}

func (w *Worker) chainInput(r task.Request, store repository.Store, dev device.Reader) (chain.Input, error) {
	share, err := audit.ParsePercent(r.Backup.Audit)
	if err != nil {
		return chain.Input{}, fmt.Errorf("read audit %q: %w", r.Backup.Audit, err)
	}
	in := chain.Input{
		Request: chain.Request{
			Parent:    r.Backup.ParentSnapshot,
			FullEvery: r.Backup.FullEvery,
			Now:       w.Now(),
			Target: repository.Meta{
				Size:           dev.Size(),
				Driver:         r.Backup.Driver,
				VolumeHandle:   r.Backup.VolumeHandle,
				SnapshotHandle: r.Backup.SnapshotHandle,
				ChangeID:       r.Backup.SnapshotHandle, // CSI names a base by its handle
				SnapshotTime:   r.Backup.SnapshotTime,
				Mover:          identity.DataMover,
			},
		},
		Volume:    r.Volume,
		Operation: r.OperationID,
		Store:     store,
		Collect:   w.Collect,
		Audit:     share,
		Device:    dev,
	}
	in.Source, in.Unavailable = w.source()
	return in, nil
}

// source returns the changed-block tracking, or why there is none.
func (w *Worker) source() (cbt.Source, string) {
	source, err := w.Environment.Source()
	if err != nil {
		return nil, err.Error()
	}
	return source, ""
}
