package kopia

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/blockmover/blockmover/internal/repository"
)

const (
	// incompleteReason is the one that kopia's own checkpoints give: stock kopia
	// hides such a snapshot from its lists, and keeps what it refers to.
	incompleteReason = "checkpoint"

	// tagHold marks the manifests of running operations, so that they are found by
	// their labels alone.
	tagHold   = "blockmover.io/hold"
	holdValue = "true"
	// tagBasis is WriterOptions.Basis.
	tagBasis = "blockmover.io/basis"

	holdDescription = "Blockmover volume image, not complete"

	// holdLife is after what time without a sign of life an operation is taken for
	// dead. A living one renews its hold in the first Advance after holdRenewal:
	// a hundred of them must fail to come.
	holdLife    = 24 * time.Hour
	holdRenewal = holdLife / 100

	// holdDelay is how long an operation runs without a hold. Most are over by then, and save the two
	// flushes that a hold takes, and their blobs.
	holdDelay = time.Minute
)

var errNoOperation = errors.New("operation ID is missing")

// hold is the incomplete manifest by which a running operation keeps what it
// refers to from garbage collection; see the package comment.
type hold struct {
	rep       repo.Repository
	volume    repository.VolumeKey
	operation string
	basis     string
	start     time.Time
	// delay is after what time the parent gets a hold.
	delay time.Duration
	// parent is the image that the new one inherits from, or "" once a manifest of the operation keeps it.
	parent repository.SnapshotID
	// ids are the manifests that the next one replaces: its own last one, or what
	// an earlier run of the operation has left.
	ids []manifest.ID
	// What it refers to, and since when.
	root    object.ID
	summary *fs.DirectorySummary
	taken   time.Time
}

// newHold removes the holds of dead operations, and finds what earlier runs of this
// one have left, without touching it.
func newHold(ctx context.Context, rep repo.Repository, o repository.WriterOptions, delay time.Duration) (*hold, error) {
	var ids []manifest.ID
	if err := withIndex(ctx, rep, func() (err error) {
		if err = sweepHolds(ctx, rep); err == nil {
			ids, err = findHolds(ctx, rep, o.Volume, o.Operation)
		}
		return err
	}); err != nil {
		return nil, err
	}
	return &hold{rep: rep, volume: o.Volume, operation: o.Operation, basis: o.Basis, parent: o.Parent, start: rep.Time(), delay: cmp.Or(delay, holdDelay), ids: ids}, nil
}

// findHolds lists the holds of an operation, oldest first.
func findHolds(ctx context.Context, rep repo.Repository, volume repository.VolumeKey, operation string) ([]manifest.ID, error) {
	source := sourceOf(volume)
	ids, err := snapshot.ListSnapshotManifests(ctx, rep, &source, map[string]string{
		tagHold: holdValue, repository.TagOperation: operation,
	})
	if err != nil {
		return nil, fmt.Errorf("find holds of operation %s: %w", operation, err)
	}
	return ids, nil
}

// take makes the hold refer to a directory instead of what it referred to
// before, and flushes the session.
func (h *hold) take(ctx context.Context, w repo.RepositoryWriter, root object.ID, summary *fs.DirectorySummary) error {
	now := fs.UTCTimestampFromTime(w.Time())
	id, err := snapshot.SaveSnapshot(ctx, w, &snapshot.Manifest{
		Source:      sourceOf(h.volume),
		Description: holdDescription,
		StartTime:   fs.UTCTimestampFromTime(h.start),
		EndTime:     now,
		RootEntry: &snapshot.DirEntry{
			Name:        h.volume.PVC,
			Type:        snapshot.EntryTypeDirectory,
			Permissions: 0o700,
			ModTime:     now,
			ObjectID:    root,
			DirSummary:  summary,
		},
		IncompleteReason: incompleteReason,
		Tags: map[string]string{
			tagRequester: requester, tagUploader: uploader,
			tagHold: holdValue, repository.TagOperation: h.operation, tagBasis: h.basis,
		},
		Pins: []string{pin},
	})
	if err != nil {
		return fmt.Errorf("save hold: %w", err)
	}
	// Both in one flush: nothing is without a hold at any moment.
	if err := deleteManifests(ctx, w, h.ids); err != nil {
		return fmt.Errorf("replace hold: %w", err)
	}
	if err := w.Flush(ctx); err != nil {
		return fmt.Errorf("flush hold: %w", err)
	}
	h.ids, h.root, h.summary, h.taken = []manifest.ID{id}, root, summary, now.ToTime()
	if h.parent != "" {
		if err := refresh(ctx, h.rep); err != nil {
			return err
		}
		if err := h.checkParent(ctx); err != nil {
			return errors.Join(err, h.release(ctx))
		}
		h.parent = ""
	}
	return nil
}

// checkParent fails if the parent was deleted before the operation had a hold. While the parent is there, it keeps what the
// image inherits. Once it is gone, a maintenance that has looked for manifests in between keeps nothing of it. The
// manifest that shall keep it instead is flushed, and the index is read after that.
func (h *hold) checkParent(ctx context.Context) error {
	if h.parent == "" {
		return nil
	}
	_, err := loadManifest(ctx, h.rep, h.parent)
	if errors.Is(err, repository.ErrNotFound) {
		err = repository.ErrParentDeleted
	}
	if err != nil {
		return fmt.Errorf("look for parent %s: %w", h.parent, err)
	}
	return nil
}

// keep makes the hold refer to a directory, and checks that everything in it is in the
// repository. If something is lost, keep releases the hold, so that no later run continues
// from it.
func (h *hold) keep(ctx context.Context, objects *objectWriter, dir object.ID, summary *fs.DirectorySummary) error {
	if err := h.take(ctx, objects.w, dir, summary); err != nil {
		return err
	}
	err := objects.checkWritten(ctx)
	if errors.Is(err, errLost) {
		err = errors.Join(err, h.release(ctx))
	}
	return err
}

// renew takes the first hold, where it is time, and shows later that the operation is alive.
func (h *hold) renew(ctx context.Context, w repo.RepositoryWriter) error {
	since, wait := h.taken, holdRenewal
	if h.taken.IsZero() {
		since, wait = h.start, h.delay
	}
	if h.root == object.EmptyID || w.Time().Sub(since) < wait {
		return nil
	}
	return h.take(ctx, w, h.root, h.summary)
}

// release removes the hold.
func (h *hold) release(ctx context.Context) error {
	if err := removeManifests(ctx, h.rep, h.ids); err != nil {
		return fmt.Errorf("release hold: %w", err)
	}
	h.ids = nil
	return nil
}

// removeManifests deletes manifests in a session of its own.
func removeManifests(ctx context.Context, rep repo.Repository, ids []manifest.ID) error {
	if len(ids) == 0 {
		return nil
	}
	// Maintenance may have moved the manifests meanwhile, all of which kopia reads to delete one.
	if err := refresh(ctx, rep); err != nil {
		return err
	}
	return repo.WriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "Blockmover release"},
		func(ctx context.Context, w repo.RepositoryWriter) error { return deleteManifests(ctx, w, ids) })
}

func deleteManifests(ctx context.Context, w repo.RepositoryWriter, ids []manifest.ID) error {
	for _, id := range ids {
		if err := w.DeleteManifest(ctx, id); err != nil {
			return fmt.Errorf("delete manifest %s: %w", id, err)
		}
	}
	return nil
}

// sweepHolds removes the holds of dead operations, of all volumes: a volume
// that is not backed up any more has nobody else to do it. An operation that has saved its image
// is dead, too. Its hold was deleted at that time, but kopia can bring it back if two processes compact the
// manifests at once. One has read the index before the deletion, and writes the hold anew. The other
// one drops the entry that says that the hold is deleted.
func sweepHolds(ctx context.Context, rep repo.Repository) error {
	all, err := rep.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: snapshot.ManifestType})
	if isDamage(ctx, err) {
		return corrupt(fmt.Errorf("find holds: %w: %s", err, adviseManifest))
	}
	if err != nil {
		return fmt.Errorf("find holds: %w", err)
	}
	saved := map[string]bool{}
	for _, m := range all {
		if m.Labels[tagHold] == "" {
			saved[m.Labels[repository.TagOperation]] = true
		}
	}
	delete(saved, "") // what others have saved has no operation
	dead := slices.DeleteFunc(all, func(m *manifest.EntryMetadata) bool {
		return m.Labels[tagHold] != holdValue || !saved[m.Labels[repository.TagOperation]] && rep.Time().Sub(m.ModTime) < holdLife
	})
	if len(dead) == 0 {
		return nil
	}
	ids := make([]manifest.ID, len(dead))
	for i, m := range dead {
		ids[i] = m.ID
	}
	if err := removeManifests(ctx, rep, ids); err != nil {
		return fmt.Errorf("release hold: %w", err)
	}
	return nil
}
