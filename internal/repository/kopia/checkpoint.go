package kopia

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/blockmover/blockmover/internal/repository"
)

// The entries of a checkpoint's directory beside those of an image. Nobody
// reads them: they keep what they refer to.
const (
	parentName = "parent"
	looseName  = "unfinished.raw"
)

// checkpointIfDue makes a checkpoint when enough was put since the last one.
func (w *writer) checkpointIfDue(ctx context.Context) error {
	w.sealing.Lock()
	defer w.sealing.Unlock()
	w.mu.Lock()
	due := w.unrecorded >= w.threshold()
	w.mu.Unlock()
	if due {
		return w.checkpoint(ctx)
	}
	return w.hold.renew(ctx, w.objects.w)
}

// threshold leaves room in the interval for what a checkpoint does not record: the segment
// that is written, and what is in flight.
func (w *writer) threshold() int64 {
	interval := w.interval
	if interval == 0 {
		interval = repository.DefaultCheckpointInterval
	}
	return max(interval-w.layout.segment-repository.MaxInFlight, w.layout.segment)
}

// checkpoint makes the hold refer to all that is stored: as an image that ends
// after the last finished segment, the parent, and the chunks of segments that are
// not finished. The caller holds w.sealing.
func (w *writer) checkpoint(ctx context.Context) error {
	w.storing.Lock()
	defer w.storing.Unlock()
	segments, loose, err := w.progress()
	if err != nil || segments == 0 {
		return err
	}
	disk, err := w.writeRoot(ctx, segments)
	if err != nil {
		return err
	}
	var others []*snapshot.DirEntry
	modified := fs.UTCTimestampFromTime(w.doc.SnapshotTime)
	if w.parent != nil {
		others = append(others, &snapshot.DirEntry{
			Name: parentName, Type: snapshot.EntryTypeDirectory, Permissions: 0o700, ModTime: modified,
			ObjectID: w.parent.image.root, DirSummary: w.parent.manifest.Summary,
		})
	}
	unfinished, _, err := w.objects.writeIndex(ctx, len(loose), func(i int) entry { return loose[i] })
	if err != nil {
		return fmt.Errorf("write index of unfinished segments: %w", err)
	}
	last := loose[len(loose)-1]
	others = append(others, fileEntry(looseName, last.Start+last.Length, unfinished, modified))
	dir, summary, err := writeDirectory(ctx, w.objects, disk, w.layout.end(segments), w.doc, others...)
	if err != nil {
		return err
	}
	if err := w.keep(ctx, dir, summary); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unrecorded = 0
	return nil
}

// keep makes the hold refer to a directory, and looks whether all that it
// consists of is there. Where it is not, nobody is to go on from there.
func (w *writer) keep(ctx context.Context, dir object.ID, summary *fs.DirectorySummary) error {
	if err := w.hold.take(ctx, w.objects.w, dir, summary); err != nil {
		return err
	}
	err := w.objects.checkWritten(ctx)
	if errors.Is(err, errLost) {
		err = errors.Join(err, w.hold.release(ctx, w.rep))
	}
	return err
}

// progress is how many segments are finished, and what is stored of those beyond
// them, beginning with the zeros, which any segment may come to need.
func (w *writer) progress() (int64, []entry, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// A segment without an object is one that another goroutine has failed to finish.
	if w.state != writing || slices.Contains(w.root[:w.frontier], object.EmptyID) {
		return 0, nil, errNotWriting
	}
	chunkSize, page := w.layout.ChunkSize(), w.layout.page
	loose := []entry{{Length: chunkSize, Object: w.zero}, {Start: chunkSize, Length: page, Object: w.zeroPage}}
	add := func(ids []object.ID, length int64) {
		for _, id := range ids {
			if id != object.EmptyID && id != w.zero && id != w.zeroPage {
				last := loose[len(loose)-1]
				loose = append(loose, entry{Start: last.Start + last.Length, Length: length, Object: id})
			}
		}
	}
	for _, s := range w.open {
		add(s.chunks, chunkSize)
		for _, pages := range s.pages {
			add(pages, page)
		}
	}
	return w.frontier, loose, nil
}

// findCheckpoint returns what an earlier run of the operation has recorded of
// the image, or nothing.
func (s *Store) findCheckpoint(ctx context.Context, h *hold, meta repository.Meta) (image, error) {
	if meta.SnapshotHandle == "" {
		return image{}, nil // the device may hold anything
	}
	for _, id := range slices.Backward(h.ids) {
		m, err := snapshot.LoadSnapshot(ctx, s.rep, id)
		if err == nil && m.RootEntry != nil {
			var img image
			if img, err = readDirectory(ctx, s.rep, m.RootEntry.ObjectID); err == nil && sameMeta(img.document.Meta, meta) {
				return img, nil
			}
		}
		if err = translate(err); err != nil && !errors.Is(err, repository.ErrNotFound) && !errors.Is(err, repository.ErrCorrupt) {
			return image{}, fmt.Errorf("load checkpoint %s: %w", id, err)
		}
	}
	return image{}, nil
}

// sameMeta reports whether two runs make the same image. What the device holds is
// named by the SnapshotHandle; a run that has no better one gives the time at which
// it has begun.
func sameMeta(a, b repository.Meta) bool {
	a.SnapshotTime = b.SnapshotTime
	return a == b
}

// resume takes over the segments that an earlier run has finished. Where one
// of them is not there any more, the writer starts from the beginning.
func (w *writer) resume(ctx context.Context, earlier image) error {
	n := (earlier.diskSize + w.layout.segment - 1) / w.layout.segment
	if earlier.diskSize <= 0 || earlier.diskSize != w.layout.end(n) {
		return nil
	}
	root, err := loadSegments(ctx, w.rep, earlier.disk, w.layout, n)
	for i := 0; err == nil && i < len(root); i++ {
		if i == 0 || root[i] != root[i-1] {
			err = checkPresent(ctx, w.rep, root[i])
		}
	}
	switch {
	case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrCorrupt):
		return nil
	case err != nil:
		return fmt.Errorf("load finished segments: %w", err)
	}
	copy(w.root, root)
	w.resumed, w.frontier = n, n
	w.doc.Zero = earlier.document.Zero
	if w.tail < w.Resumed() {
		w.tail = -1
	}
	return nil
}

// Resumed implements repository.VolumeWriter.
func (w *writer) Resumed() int64 {
	return min(w.resumed*w.layout.perSegment(), w.layout.Chunks())
}
