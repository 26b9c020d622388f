package kopia

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/repository"
)

// The look of a manifest, which is that of Velero's own data movers.
const (
	snapshotUser = "default"
	snapshotHost = "default"

	requester = "snapshot-data-upload-download"
	uploader  = "blockmover"
	// sourcePrefix is followed by namespace/pvc.
	sourcePrefix = requester + "/" + uploader + "/"

	tagRequester = "snapshot-requester"
	tagUploader  = "snapshot-uploader"

	// pin protects from kopia's retention policies: only Velero decides how long a backup
	// lives.
	pin = "velero-pin"

	description = "Blockmover volume image"
)

// parallelDescriptions is how many images are read at once for a list: each takes two small requests, one after the other.
const parallelDescriptions = 16

func sourceOf(v repository.VolumeKey) snapshot.SourceInfo {
	return snapshot.SourceInfo{UserName: snapshotUser, Host: snapshotHost, Path: sourcePrefix + v.Namespace + "/" + v.PVC}
}

// volumeOf is the inverse of sourceOf.
func volumeOf(s snapshot.SourceInfo) (repository.VolumeKey, bool) {
	name, ours := strings.CutPrefix(s.Path, sourcePrefix)
	namespace, pvc, ok := strings.Cut(name, "/")
	if !ours || !ok || namespace == "" || pvc == "" || strings.Contains(pvc, "/") {
		return repository.VolumeKey{}, false
	}
	return repository.VolumeKey{Namespace: namespace, PVC: pvc}, true
}

func checkVolume(v repository.VolumeKey) error {
	if back, ok := volumeOf(sourceOf(v)); !ok || back != v || path.Clean(sourceOf(v).Path) != sourceOf(v).Path {
		return fmt.Errorf("volume %q is not a namespace and the name of a PVC", v)
	}
	return nil
}

// newManifest is that of a complete image.
func newManifest(s repository.Snapshot, h *hold, meta repository.Meta, dir object.ID, summary *fs.DirectorySummary) *snapshot.Manifest {
	tags := maps.Clone(s.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	tags[repository.TagOperation] = h.operation
	tags[tagRequester] = requester
	tags[tagUploader] = uploader
	m := &snapshot.Manifest{
		Source:      sourceOf(h.volume),
		Description: description,
		StartTime:   fs.UTCTimestampFromTime(s.Start),
		EndTime:     fs.UTCTimestampFromTime(s.End),
		RootEntry: &snapshot.DirEntry{
			Name:        h.volume.PVC,
			Type:        snapshot.EntryTypeDirectory,
			Permissions: 0o700,
			ModTime:     fs.UTCTimestampFromTime(meta.SnapshotTime),
			ObjectID:    dir,
			DirSummary:  summary,
		},
		Tags: tags,
		Pins: []string{pin},
	}
	m.Stats.TotalFileSize = summary.TotalFileSize
	m.Stats.TotalFileCount = int32(summary.TotalFileCount) //nolint:gosec // it is 2
	m.Stats.TotalDirectoryCount = 1
	return m
}

// findOperation returns the repo snapshot that an operation saved, or "".
func findOperation(ctx context.Context, rep repo.Repository, v repository.VolumeKey, operation string) (repository.SnapshotID, error) {
	manifests, err := manifests(ctx, rep, v)
	if err != nil {
		return "", err
	}
	for _, m := range manifests {
		if m.Tags[repository.TagOperation] == operation {
			return repository.SnapshotID(m.ID), nil
		}
	}
	return "", nil
}

// manifests loads the complete manifests of a volume, as the index has them.
func manifests(ctx context.Context, rep repo.Repository, v repository.VolumeKey) ([]*snapshot.Manifest, error) {
	source := sourceOf(v)
	ids, err := snapshot.ListSnapshotManifests(ctx, rep, &source, nil)
	if err != nil {
		return nil, err
	}
	var result []*snapshot.Manifest
	for _, id := range ids {
		m, err := snapshot.LoadSnapshot(ctx, rep, id)
		switch {
		case errors.Is(err, snapshot.ErrSnapshotNotFound):
			continue // deleted in the meantime
		case err != nil:
			return nil, fmt.Errorf("load manifest %s: %w", id, err)
		case m.IncompleteReason != "":
			continue
		}
		result = append(result, m)
	}
	return result, nil
}

// List implements repository.Catalog.
func (s *Store) List(ctx context.Context, v repository.VolumeKey) ([]repository.Snapshot, error) {
	result, err := s.list(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("list repo snapshots of %s: %w", v, mark(err))
	}
	slices.SortStableFunc(result, func(a, b repository.Snapshot) int {
		if (a.Damage == nil) != (b.Damage == nil) {
			if a.Damage == nil {
				return -1
			}
			return 1
		}
		if c := b.Meta.SnapshotTime.Compare(a.Meta.SnapshotTime); c != 0 {
			return c
		}
		return b.Start.Compare(a.Start)
	})
	return result, nil
}

func (s *Store) list(ctx context.Context, v repository.VolumeKey) ([]repository.Snapshot, error) {
	// Other processes may have written some since.
	if err := refresh(ctx, s.rep); err != nil {
		return nil, err
	}
	manifests, err := readableManifests(ctx, s.rep, v)
	if err != nil {
		return nil, err
	}
	result := make([]repository.Snapshot, len(manifests))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelDescriptions)
	for i, m := range manifests {
		group.Go(func() error {
			snap, _, err := describe(ctx, s.rep, m)
			switch {
			case err == nil:
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(mark(err), repository.ErrUnavailable): // it says nothing about the image
				return err
			default:
				snap.Damage = err
			}
			result[i] = snap
			return nil
		})
	}
	return result, group.Wait()
}

// Get implements repository.Catalog.
func (s *Store) Get(ctx context.Context, id repository.SnapshotID) (repository.Snapshot, error) {
	snap, _, err := s.load(ctx, id)
	if err != nil {
		return snap, fmt.Errorf("get repo snapshot %s: %w", id, mark(err))
	}
	return snap, nil
}

// load finds a repo snapshot and the image that it names.
func (s *Store) load(ctx context.Context, id repository.SnapshotID) (repository.Snapshot, image, error) {
	// Another process may have written it since, or maintenance may have moved it to another pack.
	if err := refresh(ctx, s.rep); err != nil {
		return repository.Snapshot{}, image{}, err
	}
	return s.loadKnown(ctx, id)
}

// loadKnown is load for a repo snapshot that was listed just now.
func (s *Store) loadKnown(ctx context.Context, id repository.SnapshotID) (repository.Snapshot, image, error) {
	m, err := readableManifest(ctx, s.rep, id)
	switch {
	case errors.Is(err, repository.ErrNotFound):
		return repository.Snapshot{}, image{}, s.missing(ctx, id, err)
	case err != nil:
		return repository.Snapshot{}, image{}, err
	}
	snap, img, err := describe(ctx, s.rep, m)
	return snap, img, s.explainImage(ctx, snap.Volume, err)
}

// loadManifest loads a complete manifest, as the index has it.
func loadManifest(ctx context.Context, rep repo.Repository, id repository.SnapshotID) (*snapshot.Manifest, error) {
	m, err := snapshot.LoadSnapshot(ctx, rep, manifest.ID(id))
	switch {
	case errors.Is(err, snapshot.ErrSnapshotNotFound):
		return nil, fmt.Errorf("%w: %w", repository.ErrNotFound, err)
	case err != nil: // another manifest may be the cause: it does not say that this one is not there
		return nil, fmt.Errorf("load manifest: %w", err)
	}
	return complete(m)
}

// describe reads the documents of a manifest. With an error, it returns a Snapshot with what
// the manifest alone says.
func describe(ctx context.Context, rep repo.Repository, m *snapshot.Manifest) (repository.Snapshot, image, error) {
	snap := repository.Snapshot{
		ID:    repository.SnapshotID(m.ID),
		Tags:  m.Tags,
		Start: m.StartTime.ToTime(),
		End:   m.EndTime.ToTime(),
	}
	volume, ok := volumeOf(m.Source)
	if !ok || m.RootEntry == nil {
		return snap, image{}, fmt.Errorf("manifest of %s holds no volume image: %w", m.Source, repository.ErrNotFound)
	}
	snap.Volume = volume
	dir, err := readDirectory(ctx, rep, m.RootEntry.ObjectID)
	if err != nil {
		return snap, image{}, err
	}
	snap.Meta = dir.document.Meta
	return snap, dir, nil
}

// Volumes implements repository.Catalog: by the labels of manifests, without
// loading any.
func (s *Store) Volumes(ctx context.Context) ([]repository.VolumeKey, error) {
	if err := refresh(ctx, s.rep); err != nil {
		return nil, err
	}
	all, err := s.rep.FindManifests(ctx, map[string]string{
		manifest.TypeLabelKey: snapshot.ManifestType, snapshot.UsernameLabel: snapshotUser, snapshot.HostnameLabel: snapshotHost,
	})
	if err != nil {
		found, err := readableVolumes(ctx, s.rep, err)
		if err != nil {
			return nil, fmt.Errorf("find repo snapshots: %w", mark(err))
		}
		return slices.SortedFunc(maps.Keys(found), repository.VolumeKey.Compare), nil
	}
	found := map[repository.VolumeKey]bool{}
	for _, m := range all {
		v, ok := volumeOf(snapshot.SourceInfo{Path: m.Labels[snapshot.PathLabel]})
		if _, hold := m.Labels[tagHold]; ok && !hold {
			found[v] = true
		}
	}
	return slices.SortedFunc(maps.Keys(found), repository.VolumeKey.Compare), nil
}

// Delete implements repository.Catalog.
func (s *Store) Delete(ctx context.Context, id repository.SnapshotID) error {
	if err := refresh(ctx, s.rep); err != nil {
		return fmt.Errorf("delete repo snapshot %s: %w", id, err)
	}
	m, err := loadManifest(ctx, s.rep, id)
	if errors.Is(err, repository.ErrNotFound) {
		return nil
	}
	if err == nil {
		if _, ok := volumeOf(m.Source); !ok {
			return fmt.Errorf("delete repo snapshot %s: manifest of %s holds no volume image", id, m.Source)
		}
		err = repo.WriteSession(ctx, s.rep, repo.WriteSessionOptions{Purpose: "Blockmover delete"},
			func(ctx context.Context, w repo.RepositoryWriter) error {
				return w.DeleteManifest(ctx, m.ID)
			})
	}
	if err != nil {
		return fmt.Errorf("delete repo snapshot %s: %w", id, err)
	}
	return nil
}
