package kopia

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/content/index"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"

	"github.com/blockmover/blockmover/internal/repository"
)

// kopia reads all manifests of a repository or none. So one manifest content that is damaged would hide every image, also those whose
// manifests are in other contents. Where kopia fails, what reads images reads these contents one by one, and does without those that
// are damaged. What writes does not: kopia itself has to do that.
//
// This file is all that the package knows of kopia's format of manifests. A content with the prefix "m" is JSON, compressed with gzip:
//
//	{"entries":[{"id":"d7e01c…","labels":{…},"modified":"2026-03-01T12:00:00Z","data":{…}}, …]}
//
// Of the entries with one ID, the one that was modified last counts. It may be marked as deleted.
// TestManifestsAreThoseOfKopia compares what this file reads with what kopia does.

// manifestEntry is a manifest in a manifest content.
type manifestEntry struct {
	ID      manifest.ID       `json:"id"`
	Labels  map[string]string `json:"labels"`
	ModTime time.Time         `json:"modified"`
	Deleted bool              `json:"deleted"`
	Data    json.RawMessage   `json:"data"`
	// pack has the content.
	pack blob.ID
}

// manifestSet are manifests by their IDs, also deleted ones.
type manifestSet map[manifest.ID]manifestEntry

func (s manifestSet) add(e manifestEntry) {
	if before, ok := s[e.ID]; !ok || e.ModTime.After(before.ModTime) {
		s[e.ID] = e
	}
}

// volume returns the volume of an image's manifest.
func (e manifestEntry) volume() (repository.VolumeKey, bool) {
	_, hold := e.Labels[tagHold]
	l := e.Labels
	if hold || e.Deleted || l[manifest.TypeLabelKey] != snapshot.ManifestType || l[snapshot.UsernameLabel] != snapshotUser || l[snapshot.HostnameLabel] != snapshotHost {
		return repository.VolumeKey{}, false
	}
	return volumeOf(snapshot.SourceInfo{Path: l[snapshot.PathLabel]})
}

// snapshot returns the manifest of an image.
func (e manifestEntry) snapshot() (*snapshot.Manifest, error) {
	m := &snapshot.Manifest{}
	if err := json.Unmarshal(e.Data, m); err != nil {
		return nil, corrupt(fmt.Errorf("parse manifest %s: %w", e.ID, err))
	}
	m.ID = e.ID
	return m, nil
}

// loadManifests reads all manifest contents, and returns an error for each that is damaged.
func loadManifests(ctx context.Context, rep repo.DirectRepository) (set manifestSet, damaged []error, err error) {
	var infos []content.Info
	if err := rep.ContentReader().IterateContents(ctx, content.IterateOptions{Range: index.PrefixRange(manifest.ContentPrefix)}, func(i content.Info) error {
		infos = append(infos, i)
		return nil
	}); err != nil {
		return nil, nil, fmt.Errorf("find manifest contents: %w", err)
	}
	set = manifestSet{}
	for _, info := range infos {
		entries, err := readManifests(ctx, rep.ContentReader(), info)
		switch {
		case err == nil:
		case errors.Is(err, content.ErrContentNotFound):
			continue // compacted in the meantime
		case isDamage(ctx, err):
			damaged = append(damaged, err)
		default:
			return nil, nil, err
		}
		for _, e := range entries {
			set.add(e)
		}
	}
	return set, damaged, nil
}

// How long the text of manifests may be, measured by what it is compressed to. gzip makes 1,000 bytes of one, so a content of 20 MiB could
// take all memory. The manifest of an image has 1.3 KiB, of which 150 bytes are IDs and times that cannot be compressed: less than 10 to 1.
const (
	minManifestsText  = 1 << 20
	maxManifestsRatio = 64
)

// readManifests reads one manifest content.
func readManifests(ctx context.Context, from interface {
	GetContent(ctx context.Context, id content.ID) ([]byte, error)
}, info content.Info,
) ([]manifestEntry, error) {
	packed, err := from.GetContent(ctx, info.ContentID)
	if err != nil {
		return nil, fmt.Errorf("read manifests in content %v of pack %s: %w", info.ContentID, info.PackBlobID, err)
	}
	var text struct {
		Entries []manifestEntry `json:"entries"`
	}
	zip, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		err = json.NewDecoder(io.LimitReader(zip, minManifestsText+maxManifestsRatio*int64(len(packed)))).Decode(&text)
	}
	if err != nil {
		return nil, corrupt(fmt.Errorf("parse manifests in content %v of pack %s: %w", info.ContentID, info.PackBlobID, err))
	}
	for i := range text.Entries {
		text.Entries[i].pack = info.PackBlobID
	}
	return text.Entries, nil
}

// salvage returns the manifests that can be read, after kopia has failed to read all. If they are not the cause, it returns that.
func salvage(ctx context.Context, rep repo.Repository, cause error) (manifestSet, error) {
	direct, ok := rep.(repo.DirectRepository)
	if !ok || !isDamage(ctx, cause) {
		return nil, cause
	}
	set, damaged, err := loadManifests(ctx, direct)
	if err != nil || len(damaged) == 0 {
		return nil, cause
	}
	maps.DeleteFunc(set, func(_ manifest.ID, e manifestEntry) bool {
		_, ok := e.volume()
		return !ok
	})
	return set, nil
}

// readableManifests returns the complete manifests of a volume, without those that cannot be read.
func readableManifests(ctx context.Context, rep repo.Repository, v repository.VolumeKey) ([]*snapshot.Manifest, error) {
	all, err := manifests(ctx, rep, v)
	if err == nil {
		return all, nil
	}
	set, err := salvage(ctx, rep, err)
	if err != nil {
		return nil, err
	}
	for _, e := range set {
		if of, _ := e.volume(); of != v {
			continue
		}
		m, err := e.snapshot()
		if err != nil {
			return nil, err
		}
		if m.IncompleteReason == "" {
			all = append(all, m)
		}
	}
	return all, nil
}

// readableManifest returns the complete manifest of an image, if it can be read, whatever becomes of others.
func readableManifest(ctx context.Context, rep repo.Repository, id repository.SnapshotID) (*snapshot.Manifest, error) {
	m, err := loadManifest(ctx, rep, id)
	if err == nil || errors.Is(err, repository.ErrNotFound) {
		return m, err
	}
	set, err := salvage(ctx, rep, err)
	if err != nil {
		return nil, err
	}
	e, ok := set[manifest.ID(id)]
	if !ok {
		return nil, repository.ErrNotFound
	}
	if m, err = e.snapshot(); err != nil {
		return nil, err
	}
	return complete(m)
}

// readableVolumes are the volumes of the manifests that can be read.
func readableVolumes(ctx context.Context, rep repo.Repository, cause error) (map[repository.VolumeKey]bool, error) {
	set, err := salvage(ctx, rep, cause)
	if err != nil {
		return nil, err
	}
	found := map[repository.VolumeKey]bool{}
	for _, e := range set {
		v, _ := e.volume()
		found[v] = true
	}
	return found, nil
}

// complete returns a manifest, or an error if it is that of a running operation.
func complete(m *snapshot.Manifest) (*snapshot.Manifest, error) {
	if m.IncompleteReason != "" {
		return nil, fmt.Errorf("it is incomplete (%s): %w", m.IncompleteReason, repository.ErrNotFound)
	}
	return m, nil
}

// explainImage adds the volume of an image to an error of it, and what to do.
func (s *Store) explainImage(ctx context.Context, volume repository.VolumeKey, err error) error {
	err = s.explainIndex(err)
	switch {
	case err == nil:
		return nil
	case isDamage(ctx, err):
		return fmt.Errorf("volume %s: %w: restore another image, or put back what is missing", volume, err)
	}
	return fmt.Errorf("volume %s: %w", volume, err)
}

// explainIndex adds to an error of something that is not there the damage of the index that may be why.
func (s *Store) explainIndex(err error) error {
	if len(s.damagedIndex) > 0 && errors.Is(err, repository.ErrNotFound) {
		return fmt.Errorf("%w: %w", err, errors.Join(s.damagedIndex...))
	}
	return err
}
