package kopia

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/blockmover/blockmover/internal/repository"
)

// Commit implements repository.VolumeWriter.
func (w *writer) Commit(ctx context.Context, s repository.Snapshot) (repository.SnapshotID, repository.WriteStats, error) {
	id, err := w.commit(ctx, s)
	if err != nil {
		return "", repository.WriteStats{}, w.ledger.Fail(fmt.Errorf("commit image: %w", markWrite(w.explain(ctx, err))))
	}
	stats := w.ledger.Stats()
	stats.IncompressibleBytes = min(w.objects.incompressible.Load(), stats.BytesUploaded)
	return id, stats, nil
}

func (w *writer) commit(ctx context.Context, s repository.Snapshot) (repository.SnapshotID, error) {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	if err := w.sealUpTo(ctx, w.layout.Chunks()); err != nil {
		return "", err
	}
	if err := w.ledger.Complete(); err != nil {
		return "", err
	}
	disk, fresh, err := w.sealer.writeRoot(ctx, w.layout.Segments())
	if err != nil {
		return "", err
	}
	w.ledger.Add(repository.WriteStats{MetadataBytes: fresh})
	dir, summary, err := writeDirectory(ctx, w.objects, disk, w.layout.PaddedSize(), w.doc)
	if err != nil {
		return "", err
	}
	id, err := w.save(ctx, s, dir, summary)
	if err != nil {
		return "", err
	}
	if err := w.ledger.Finish(); err != nil {
		return "", err
	}
	return id, w.objects.w.Close(ctx)
}

// save saves the repo snapshot, and flushes all of the image with it, so that there is one index blob. Then it checks that
// nothing of the image is lost.
func (w *writer) save(ctx context.Context, s repository.Snapshot, dir object.ID, summary *fs.DirectorySummary) (repository.SnapshotID, error) {
	// An earlier run of the operation may not have ended yet. And to delete a hold, kopia reads all manifests, which maintenance
	// may have moved.
	if err := refresh(ctx, w.rep); err != nil {
		return "", err
	}
	saved, err := findOperation(ctx, w.rep, w.hold.volume, w.hold.operation)
	switch {
	case err != nil:
		return "", err
	case saved != "":
		return saved, w.hold.release(ctx)
	}
	holds, err := findHolds(ctx, w.rep, w.hold.volume, w.hold.operation)
	if err != nil {
		return "", err
	}
	id, err := snapshot.SaveSnapshot(ctx, w.objects.w, newManifest(s, w.hold, w.doc.Meta, dir, summary))
	if err != nil {
		return "", fmt.Errorf("save repo snapshot: %w", err)
	}
	// Both in one flush: nothing is without a manifest at any moment.
	for _, h := range w.hold.ids {
		if !slices.Contains(holds, h) {
			holds = append(holds, h)
		}
	}
	if err := deleteManifests(ctx, w.objects.w, holds); err != nil {
		return "", fmt.Errorf("release hold: %w", err)
	}
	if err := w.objects.w.Flush(ctx); err != nil {
		return "", fmt.Errorf("flush image: %w", err)
	}
	w.hold.ids = nil
	err = w.objects.checkWritten(ctx)
	if err == nil {
		err = w.hold.checkParent(ctx)
	}
	if errors.Is(err, errLost) || errors.Is(err, repository.ErrParentDeleted) {
		err = errors.Join(err, removeManifests(ctx, w.rep, []manifest.ID{id}))
	}
	return repository.SnapshotID(id), err
}

// explain says that the parent is gone, where something of it is missing.
func (w *writer) explain(ctx context.Context, err error) error {
	if !errors.Is(err, repository.ErrNotFound) || refresh(ctx, w.rep) != nil {
		return err
	}
	if gone := w.hold.checkParent(ctx); errors.Is(gone, repository.ErrParentDeleted) {
		return fmt.Errorf("%w: %v", gone, err) //nolint:errorlint // it is not the repository that is damaged
	}
	return err
}
