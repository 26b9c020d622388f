package worker

import (
	"context"
	"fmt"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/heap"
)

// backup makes an image of the device and names it.
func (w *Worker) backup(ctx context.Context, r task.Request, options datapath.Options) (task.Report, error) {
	var steps task.Steps
	lap := w.laps()
	store, err := w.Environment.OpenStore(ctx)
	if err != nil {
		return task.Report{}, err
	}
	steps.Open = lap()
	defer w.closeStore(ctx, store)
	heap.Limit()
	var dev device.Reader
	closeBase := func() error { return nil }
	defer func() {
		if dev != nil {
			w.warn("Cannot close device", dev.Close())
		}
		w.warn("Cannot close the image of the parent", closeBase())
	}()
	result, err := backup.Run(ctx, backup.Job{
		Store:     store,
		Volume:    r.Volume,
		Operation: r.OperationID,
		Failed:    r.Backup.Failed,
		Open: func() (device.Reader, error) {
			if dev, err = w.Environment.OpenReader(ctx); err != nil {
				return nil, err
			}
			return device.LimitReader(ctx, livingReader{dev, &w.life}, r.RateLimit), nil
		},
		Plan: func(ctx context.Context, limited device.Reader, history []repository.Snapshot) (chain.Input, error) {
			in, err := w.plan(r, limited)
			changes, inPart := dev.(backup.Changes)
			if err != nil || !inPart {
				return in, err
			}
			in, closeBase, err = backup.Fold(ctx, changes, in, store, history)
			in.Source = livingSource{in.Source, &w.life}
			return in, err
		},
		Begun: func(b backup.Result) error {
			steps.Plan = lap()
			w.Log.Info("Backup begins", "kind", b.Kind, "parent", b.Parent, "reason", b.Reason, "detail", b.Detail,
				"size", b.Size, "resumedBytes", b.Resumed, "blocks", b.Source.Blocks,
				"resumptions", b.Source.Resumptions, "bytesAudited", b.Audited.Bytes)
			return nil
		},
		Options: options,
		Now:     w.Now,
	})
	for _, d := range result.Deleted {
		switch {
		case d.Lost != nil:
			w.warn(fmt.Sprintf("Deleted repo snapshot %s, which an earlier mover pod saved, and began again", d.ID), d.Lost)
			continue
		case d.Err != nil:
			w.warn(fmt.Sprintf("Cannot delete repo snapshot %s of upload %s, which failed", d.ID, d.Operation), d.Err)
			continue
		}
		w.Log.Info("Deleted the repo snapshot of an upload that failed", "snapshotID", d.ID, "operation", d.Operation)
	}
	report := reportOf(result)
	if err == nil {
		steps.Move, steps.Save = max(0, lap()-result.Saving), result.Saving
	}
	report.Steps = steps
	report.VolumeHandle = r.Backup.VolumeHandle
	if err != nil {
		return report, err
	}
	w.Log.Info("Backup is complete", "snapshotID", report.SnapshotID, "savedBefore", result.SavedBefore,
		"bytesRead", report.BytesRead, "bytesUploaded", report.BytesUploaded, "metadataBytes", report.MetadataBytes)
	return report, nil
}

// reportOf renders a result.
func reportOf(b backup.Result) task.Report {
	report := task.Report{
		SnapshotID:    b.SnapshotID,
		Kind:          b.Kind,
		Parent:        b.Parent,
		Reason:        string(b.Reason),
		Detail:        b.Detail,
		VolumeSize:    b.Size,
		Resumptions:   b.Source.Resumptions,
		ChunksAudited: b.Audited.Chunks,
		BytesAudited:  b.Audited.Bytes,
		BytesRead:     b.Read.BytesRead,
		BytesUploaded: b.Written.BytesUploaded,
		MetadataBytes: b.Written.MetadataBytes,

		IncompressibleBytes: b.Written.IncompressibleBytes,
		ChunksWritten:       b.Written.ChunksWritten,
		ChunksInherited:     b.Written.ChunksInherited,
		ZeroBytes:           b.Written.ZeroBytes,
	}
	if b.SavedBefore {
		report.Detail = "an earlier attempt saved the repo snapshot"
	}
	for _, reason := range b.Reasons {
		report.Reasons = append(report.Reasons, string(reason))
	}
	return report
}

// plan returns the input of the choice of the parent.
func (w *Worker) plan(r task.Request, dev device.Reader) (chain.Input, error) {
	share, err := policy.ParsePercent(r.Backup.Audit)
	if err != nil {
		return chain.Input{}, fault.Mark(fmt.Errorf("read audit %q: %w", r.Backup.Audit, err))
	}
	if err := checkFilesystem(dev, r.Backup.Filesystem); err != nil {
		return chain.Input{}, err
	}
	in := chain.Input{
		Volume:   r.Volume,
		Capacity: r.Backup.Capacity,
		Request: chain.Request{
			Parent:    r.Backup.ParentSnapshot,
			FullEvery: r.Backup.FullEvery,
			Now:       w.Now(),
			Target: repository.Meta{
				Size:           dev.Size(),
				Driver:         r.Backup.Driver,
				VolumeHandle:   r.Backup.VolumeHandle,
				SnapshotHandle: r.Backup.SnapshotHandle,
				ChangeID:       r.Backup.SnapshotHandle, // CSI names a base by its handle; for KubeVirt, the manager does
				SnapshotTime:   r.Backup.SnapshotTime,
				Mover:          identity.DataMover,
			},
		},
		Collect: w.Collect,
		Audit:   share,
	}
	in.Collect.Notify = w.waitsFor
	if file := r.Backup.DiskFile; file != nil {
		in.Target.Mover = identity.MoverKubeVirt
		if dev.Size() < r.Backup.Capacity {
			return chain.Input{}, fault.Mark(fmt.Errorf("the disk has %d bytes, and its volume %d: KubeVirt has not backed up all of it", dev.Size(), r.Backup.Capacity))
		}
		in.Full = file.Full
		return in, nil
	}
	in.Source, in.Unavailable = w.source()
	return in, nil
}

// source returns the changed-block tracking, or says why there is none.
func (w *Worker) source() (cbt.Source, string) {
	source, err := w.Environment.Source()
	if err != nil {
		return nil, err.Error()
	}
	return livingSource{source, &w.life}, ""
}

// waitsFor shows that the metadata service is waited for, or with nil that it answers again.
func (w *Worker) waitsFor(why error) {
	if why == nil {
		w.waiting.Store(nil)
		return
	}
	text := "waits for the metadata service of the storage: " + why.Error()
	w.waiting.Store(&text)
	w.Log.Info("Waiting for the metadata service", "error", why.Error())
}
