package kopia

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/content/index"
	"github.com/kopia/kopia/repo/manifest"

	"github.com/blockmover/blockmover/internal/repository"
)

// An image that the index does not know is not there at all: kopia lists the others and says nothing. But traces are left.
//
//   - Each pack ends with an index of its own. A pack that the repository's index does not know, and that has the manifest of an image
//     that is neither listed nor deleted, shows that a part of the index is lost. It also tells which image that is. Only two other things
//     look like it. A backup that has not written its index yet, or never will, has a session blob, which is deleted afterwards. And a
//     manifest content that maintenance has dropped was written before the deletion watermark, by which maintenance says up to when it drops.
//   - Index blobs belong to epochs, which have numbers without gaps.
//
// What is older than the watermark cannot be told from garbage. Such an index was compacted with those of its epoch, usually: then the whole
// epoch is missing.

// adviseManifest is what to do about manifests that cannot be read.
const adviseManifest = "put back the pack from a copy; images with other manifests can be restored, but backups fail until stock kopia has forgotten the content: " +
	"kopia --dangerous-commands=enabled content delete CONTENT"

// Losses implements repository.Catalog.
func (s *Store) Losses(ctx context.Context) ([]repository.Loss, error) {
	direct, ok := s.rep.(repo.DirectRepository)
	if !ok {
		return nil, nil
	}
	losses, err := findLosses(ctx, direct)
	if err != nil {
		return nil, fmt.Errorf("look for what the repository has lost: %w", mark(err))
	}
	for _, err := range s.damagedIndex {
		losses = append(losses, repository.Loss{Cause: err})
	}
	return losses, nil
}

func findLosses(ctx context.Context, rep repo.DirectRepository) ([]repository.Loss, error) {
	// The order matters: a backup that ends in the meantime writes its packs, then the index, and deletes its session.
	packs, err := blob.ListAllBlobs(ctx, rep.BlobReader(), content.PackBlobIDPrefixSpecial)
	if err != nil {
		return nil, fmt.Errorf("list packs: %w", err)
	}
	sessions, err := blob.ListAllBlobs(ctx, rep.BlobReader(), content.BlobIDPrefixSession)
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	if err := refresh(ctx, rep); err != nil {
		return nil, err
	}
	set, damaged, err := loadManifests(ctx, rep)
	if err != nil {
		return nil, err
	}
	var losses []repository.Loss
	for _, err := range damaged {
		losses = append(losses, repository.Loss{Cause: fmt.Errorf("%w: %s", err, adviseManifest)})
	}
	epochs, ok, err := rep.ContentReader().EpochManager(ctx)
	if err != nil || !ok {
		return losses, err // an old format, whose index has no epochs
	}
	indexes, err := blob.ListAllBlobs(ctx, rep.BlobReader(), indexBlobs)
	if err != nil {
		return nil, fmt.Errorf("list index blobs: %w", err)
	}
	for _, err := range lostEpochs(blob.IDsFromMetadata(indexes)) {
		losses = append(losses, repository.Loss{Cause: err})
	}
	state, err := epochs.Current(ctx)
	if err != nil {
		return nil, fmt.Errorf("read epochs of the index: %w", err)
	}
	unknown, err := unknownPacks(ctx, rep, packs, sessions)
	if err != nil || len(unknown) == 0 {
		return losses, err
	}
	hidden, err := hiddenManifests(ctx, rep, unknown, state.DeletionWatermark)
	if err != nil {
		return nil, err
	}
	return append(losses, hiddenImages(hidden, set)...), nil
}

// unknownPacks returns the packs of metadata of which no index knows anything, and which no open session has written.
func unknownPacks(ctx context.Context, rep repo.DirectRepository, packs, sessions []blob.Metadata) ([]blob.Metadata, error) {
	known := map[blob.ID]bool{}
	// Packs of metadata have the contents with prefixes.
	all := content.IterateOptions{Range: index.AllPrefixedIDs, IncludeDeleted: true}
	if err := rep.ContentReader().IterateContents(ctx, all, func(i content.Info) error {
		known[i.PackBlobID] = true
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	open := map[content.SessionID]bool{}
	for _, s := range sessions {
		open[content.SessionIDFromBlobID(s.BlobID)] = true
	}
	return slices.DeleteFunc(packs, func(p blob.Metadata) bool {
		return known[p.BlobID] || open[content.SessionIDFromBlobID(p.BlobID)]
	}), nil
}

// hiddenManifests reads the manifests in packs that the index does not know, and that maintenance has not dropped. Nothing is written.
func hiddenManifests(ctx context.Context, rep repo.DirectRepository, packs []blob.Metadata, watermark time.Time) (manifestSet, error) {
	ctx, w, err := rep.NewDirectWriter(ctx, repo.WriteSessionOptions{Purpose: "Blockmover losses"})
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	defer w.Close(ctx) //nolint:errcheck // it is never flushed
	set := manifestSet{}
	for _, pack := range packs {
		infos, err := w.ContentManager().RecoverIndexFromPackBlob(ctx, pack.BlobID, pack.Length, true)
		if err != nil {
			if !isDamage(ctx, err) {
				return nil, fmt.Errorf("read index of pack %s: %w", pack.BlobID, err)
			}
			continue // nothing can be told of it
		}
		for _, info := range infos {
			if info.ContentID.Prefix() != manifest.ContentPrefix || !info.Timestamp().After(watermark) {
				continue
			}
			if _, err := rep.ContentReader().ContentInfo(ctx, info.ContentID); err == nil {
				continue // it is in another pack, too
			}
			entries, err := readManifests(ctx, w.ContentManager(), info)
			if err != nil && !isDamage(ctx, err) {
				return nil, err
			}
			for _, e := range entries {
				set.add(e)
			}
		}
	}
	return set, nil
}

// hiddenImages returns a loss for each pack that hides images. What the repository knows, listed or deleted, is not hidden.
func hiddenImages(hidden, known manifestSet) []repository.Loss {
	byPack := map[blob.ID][]repository.Snapshot{}
	for id, e := range hidden {
		if _, ok := known[id]; ok {
			continue
		}
		v, ok := e.volume()
		if !ok {
			continue
		}
		image := repository.Snapshot{ID: repository.SnapshotID(id), Volume: v, Tags: e.Labels, Start: e.ModTime, End: e.ModTime}
		if m, err := e.snapshot(); err == nil {
			image.Tags, image.Start, image.End = m.Tags, m.StartTime.ToTime(), m.EndTime.ToTime()
		}
		byPack[e.pack] = append(byPack[e.pack], image)
	}
	losses := make([]repository.Loss, 0, len(byPack))
	for _, pack := range slices.Sorted(maps.Keys(byPack)) {
		images := byPack[pack]
		slices.SortFunc(images, func(a, b repository.Snapshot) int {
			return cmp.Or(a.Volume.Compare(b.Volume), b.Start.Compare(a.Start), cmp.Compare(a.ID, b.ID))
		})
		losses = append(losses, repository.Loss{
			Images: images,
			Cause:  corrupt(fmt.Errorf("an index blob is lost: no index has pack %s: %s", pack, adviseIndex)),
		})
	}
	return losses
}

// missing explains an image that is not there by what the repository has lost.
func (s *Store) missing(ctx context.Context, id repository.SnapshotID, err error) error {
	losses, lookErr := s.Losses(ctx)
	if lookErr != nil {
		return errors.Join(err, lookErr)
	}
	var unclear []error
	for _, l := range losses {
		for _, image := range l.Images {
			if image.ID == id {
				return fmt.Errorf("%w: image of volume %s: %w", err, image.Volume, l.Cause)
			}
		}
		if len(l.Images) == 0 {
			unclear = append(unclear, l.Cause)
		}
	}
	if len(unclear) > 0 {
		return fmt.Errorf("%w, which may be because of: %w", err, errors.Join(unclear...))
	}
	return err
}

// The names of kopia's index blobs: x, a letter for the kind, the number of an epoch.
const (
	indexBlobs = "x"

	indexUncompacted = 'n' // xn7_HASH-sSESSION-c1: any number of them in an epoch
	indexEpoch       = 's' // xs7_HASH-sSESSION-c2: a whole epoch, complete if there are as many as the last number says
	indexRange       = 'r' // xr0_6_HASH-sSESSION-c2: epochs 0 to 6
	indexMarker      = 'e' // xe8: epoch 8 has begun
)

// lostEpochs looks for gaps in the index by the names of its blobs. An epoch only ends when it has index blobs.
func lostEpochs(ids []blob.ID) []error {
	var has []epochs
	sets := map[string]int{}
	current, last := 0, 0
	for _, id := range ids {
		kind, of, set, count, ok := parseIndexBlob(string(id))
		if !ok {
			continue
		}
		if kind == indexMarker {
			current = max(current, of.first)
			continue
		}
		last = max(last, of.last)
		if sets[set]++; kind == indexUncompacted || sets[set] == count {
			has = append(has, of)
		}
	}
	var lost []error
	if last > current+1 { // clients write into the next epoch, too
		lost = append(lost, corrupt(fmt.Errorf("index blob xe%d is lost, without which kopia does not look for epoch %d: put it back", last, last)))
	}
	slices.SortFunc(has, func(a, b epochs) int { return cmp.Compare(a.first, b.first) })
	next := 0 // all epochs before it are there, or are known to be lost
	for _, of := range append(has, epochs{current, current}) {
		if gap := (epochs{next, min(of.first, current) - 1}); gap.first <= gap.last {
			lost = append(lost, corrupt(fmt.Errorf("all index blobs of %s are lost: %s", gap, adviseIndex)))
		}
		next = max(next, of.last+1)
	}
	return lost
}

// epochs are those from the first to the last. Their numbers are those of names, which can be any.
type epochs struct{ first, last int }

func (e epochs) String() string {
	if e.first == e.last {
		return fmt.Sprintf("epoch %d", e.first)
	}
	return fmt.Sprintf("epochs %d to %d", e.first, e.last)
}

// parseIndexBlob reads the name of an index blob. count is how many blobs its set has.
func parseIndexBlob(name string) (kind byte, of epochs, set string, count int, ok bool) {
	if len(name) < len("xe0") {
		return 0, epochs{}, "", 0, false
	}
	kind = name[1]
	fields := strings.Split(name[2:], "_")
	want := map[byte]int{indexMarker: 1, indexUncompacted: 2, indexEpoch: 2, indexRange: 3}[kind]
	if want == 0 || len(fields) != want {
		return 0, epochs{}, "", 0, false
	}
	first, err := strconv.Atoi(fields[0])
	of = epochs{first, first}
	if err == nil && kind == indexRange {
		of.last, err = strconv.Atoi(fields[1])
	}
	rest := fields[len(fields)-1]
	count = 1
	if parts := strings.Split(rest, "-"); err == nil && len(parts) == 3 {
		rest = parts[1]
		count, err = strconv.Atoi(strings.TrimPrefix(parts[2], "c"))
	}
	ok = err == nil && 0 <= of.first && of.first <= of.last && of.last < math.MaxInt
	return kind, of, strings.Join(fields[:len(fields)-1], "_") + "-" + rest, count, ok
}
