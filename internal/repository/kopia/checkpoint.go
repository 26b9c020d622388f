package kopia

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/ledger"
)

// The entries of the directory of a checkpoint beside those of an image. Nothing reads them:
// they protect what they refer to from garbage collection.
const (
	parentName = "parent"
	looseName  = "unfinished.raw"
)

// checkpoint makes the hold refer to all that is stored: as an image that ends
// after the last finished segment, the parent, and the chunks of segments that are
// not finished. The caller holds w.sealing.
func (w *writer) checkpoint(ctx context.Context) error {
	w.storing.Lock()
	defer w.storing.Unlock()
	done, err := w.ledger.Progress()
	if err != nil || done.Sealed == 0 {
		return err
	}
	disk, fresh, err := w.sealer.writeRoot(ctx, done.Sealed)
	if err != nil {
		return err
	}
	w.ledger.Add(repository.WriteStats{MetadataBytes: fresh})
	var others []*snapshot.DirEntry
	modified := fs.UTCTimestampFromTime(w.doc.SnapshotTime)
	if parent := w.sealer.parent; parent != nil {
		others = append(others, &snapshot.DirEntry{
			Name: parentName, Type: snapshot.EntryTypeDirectory, Permissions: 0o700, ModTime: modified,
			ObjectID: parent.image.root, DirSummary: parent.image.manifest.Summary,
		})
	}
	loose := looseOf(done, w.layout, w.sealer.zero)
	unfinished, _, err := w.objects.writeIndex(ctx, len(loose), func(i int) entry { return loose[i] })
	if err != nil {
		return fmt.Errorf("write index of unfinished segments: %w", err)
	}
	last := loose[len(loose)-1]
	others = append(others, fileEntry(looseName, last.Start+last.Length, unfinished, modified))
	dir, summary, err := writeDirectory(ctx, w.objects, disk, w.layout.EndOf(done.Sealed), w.doc, others...)
	if err != nil {
		return err
	}
	if err := w.hold.keep(ctx, w.objects, dir, summary); err != nil {
		return err
	}
	w.ledger.Recorded()
	return nil
}

// looseOf returns what is stored of segments that are not finished, and first the zeros,
// which any segment may need.
func looseOf(done ledger.Progress[object.ID], l repository.Layout, zero zeros) []entry {
	chunkSize, page := l.ChunkSize(), l.PageSize()
	loose := []entry{{Length: chunkSize, Object: zero.chunk}, {Start: chunkSize, Length: page, Object: zero.page}}
	add := func(ids []object.ID, length int64) {
		for _, id := range ids {
			if !zero.has(id) {
				last := loose[len(loose)-1]
				loose = append(loose, entry{Start: last.Start + last.Length, Length: length, Object: id})
			}
		}
	}
	add(done.Chunks, chunkSize)
	add(done.Pages, page)
	return loose
}

// findCheckpoint returns the checkpoint of an earlier run of the operation, or nothing.
func findCheckpoint(ctx context.Context, rep repo.Repository, h *hold, meta repository.Meta) (image, error) {
	if meta.SnapshotHandle == "" {
		return image{}, nil // nothing says what the device holds
	}
	for _, id := range slices.Backward(h.ids) {
		m, err := snapshot.LoadSnapshot(ctx, rep, id)
		if err == nil && m.RootEntry != nil && m.Tags[tagBasis] == h.basis {
			var img image
			if img, err = readDirectory(ctx, rep, m.RootEntry.ObjectID); err == nil && sameMeta(img.document.Meta, meta) {
				return img, nil
			}
		}
		if err = translate(err); err != nil && !errors.Is(err, repository.ErrNotFound) && !errors.Is(err, repository.ErrCorrupt) {
			return image{}, fmt.Errorf("load checkpoint %s: %w", id, err)
		}
	}
	return image{}, nil
}

// sameMeta reports whether two runs make the same image. The SnapshotHandle says what the
// device holds. The time does not: a run without a better one uses its own start.
func sameMeta(a, b repository.Meta) bool {
	a.SnapshotTime = b.SnapshotTime
	return a == b
}

// resume returns the checkpoint of an earlier run, and the segments that it has finished. If
// one of them is missing, it returns none, and the writer starts over.
func resume(ctx context.Context, rep repo.Repository, h *hold, meta repository.Meta, l repository.Layout) (image, []object.ID, error) {
	earlier, err := findCheckpoint(ctx, rep, h, meta)
	if err != nil || earlier.root == object.EmptyID {
		return image{}, nil, err
	}
	n := (earlier.diskSize + l.SegmentSize() - 1) / l.SegmentSize()
	if earlier.diskSize <= 0 || earlier.diskSize != l.EndOf(n) {
		return image{}, nil, nil
	}
	finished, err := loadSegments(ctx, rep, earlier.disk, l, n)
	if err == nil {
		_, err = checkSegments(ctx, rep, finished)
	}
	switch {
	case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrCorrupt):
		return image{}, nil, nil
	case err != nil:
		return image{}, nil, fmt.Errorf("load finished segments: %w", err)
	}
	return earlier, finished, nil
}
