package kopia

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/content/index"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

// twoImages makes a repository with two full images of one volume.
func twoImages(t *testing.T) (dir string, ids []repository.SnapshotID, want []byte) {
	t.Helper()
	dir = newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(20000, testTime)
	want = make([]byte, meta.Size)
	for i := range 2 {
		want[0] = byte(i + 1)
		meta.SnapshotTime = testTime.Add(time.Duration(i) * time.Hour)
		id, _ := backup(t, s, meta, "", want, allChunks(t, meta))
		ids = append(ids, id)
	}
	return dir, ids, want
}

func last(files []string) string { return files[len(files)-1] }

// TestLostIndex: an image that the index does not know is told of, by its pack, until kopia has recovered the index.
func TestLostIndex(t *testing.T) {
	dir, ids, want := twoImages(t)
	require.NoError(t, os.Remove(last(blobFiles(t, dir, "xn"))))

	s, err := OpenFilesystemReadOnly(t.Context(), dir, testPassword)
	require.NoError(t, err)
	images, err := s.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Len(t, images, 1)
	require.Equal(t, ids[0], images[0].ID)
	losses, err := s.Losses(t.Context())
	require.NoError(t, err)
	require.Len(t, losses, 1)
	require.Len(t, losses[0].Images, 1)
	require.Equal(t, ids[1], losses[0].Images[0].ID)
	require.Equal(t, testVolume, losses[0].Images[0].Volume)
	require.True(t, testTime.Equal(losses[0].Images[0].Start))
	require.NotEmpty(t, losses[0].Images[0].Tags[repository.TagOperation])
	_, err = s.OpenReader(t.Context(), ids[1])
	require.ErrorIs(t, err, repository.ErrNotFound)
	require.ErrorContains(t, err, "image of volume shop/db")
	require.ErrorContains(t, err, "index recover --commit")
	require.NoError(t, s.Close(t.Context()))

	recoverIndex(t, dir)
	s = openStore(t, dir)
	requireNoLoss(t, s)
	requireImage(t, s, ids[1], want)
}

// recoverIndex is `kopia index recover --commit`.
func recoverIndex(t *testing.T, dir string) {
	t.Helper()
	s := openStore(t, dir)
	err := repo.DirectWriteSession(t.Context(), direct(t, s), repo.WriteSessionOptions{}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		for _, prefix := range content.PackBlobIDPrefixes {
			if err := w.BlobReader().ListBlobs(ctx, prefix, func(b blob.Metadata) error {
				_, err := w.ContentManager().RecoverIndexFromPackBlob(ctx, b.BlobID, b.Length, true)
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, err)
}

func direct(t *testing.T, s *Store) repo.DirectRepository {
	t.Helper()
	d, ok := s.rep.(repo.DirectRepository)
	require.True(t, ok)
	return d
}

func requireNoLoss(t *testing.T, s *Store) {
	t.Helper()
	losses, err := s.Losses(t.Context())
	require.NoError(t, err)
	require.Empty(t, losses)
}

// TestDamagedIndex: who reads does without the index blob, and names it. Who writes does not.
func TestDamagedIndex(t *testing.T) {
	dir, ids, want := twoImages(t)
	index := last(blobFiles(t, dir, "xn"))
	text, err := os.ReadFile(index)
	require.NoError(t, err)
	text[len(text)/2] ^= 1
	require.NoError(t, os.WriteFile(index, text, 0o600))
	_, err = OpenFilesystem(t.Context(), dir, testPassword)
	require.ErrorIs(t, err, repository.ErrUnusable)
	require.ErrorContains(t, err, "index blob xn0_")
	require.ErrorContains(t, err, "move it away")

	s, err := OpenFilesystemReadOnly(t.Context(), dir, testPassword)
	require.NoError(t, err)
	losses, err := s.Losses(t.Context())
	require.NoError(t, err)
	require.Len(t, losses, 2)
	require.Equal(t, ids[1], losses[0].Images[0].ID)
	require.ErrorContains(t, losses[1].Cause, "index blob xn0_")
	_, err = s.OpenReader(t.Context(), ids[1])
	require.ErrorContains(t, err, "image of volume shop/db")
	want[0] = 1
	requireImage(t, s, ids[0], want)
	require.NoError(t, s.rep.Refresh(t.Context()), "also later")
	requireImage(t, s, ids[0], want)
	require.NoError(t, s.Close(t.Context()))

	require.NoError(t, os.Remove(index))
	recoverIndex(t, dir)
	want[0] = 2
	requireImage(t, openStore(t, dir), ids[1], want)
}

// TestNoLoss: what is deleted, what runs, and what maintenance has dropped is not lost.
func TestNoLoss(t *testing.T) {
	dir, ids, _ := twoImages(t)
	s := openStore(t, dir)
	requireNoLoss(t, s)

	require.NoError(t, s.Delete(t.Context(), ids[0]))
	requireNoLoss(t, s)

	// A backup is killed before it writes its index: its session stays open.
	index := last(blobFiles(t, dir, "xn"))
	pack := last(blobFiles(t, dir, "q"))
	_, session, _ := strings.Cut(filepath.Base(pack), "-")
	require.NoError(t, os.Rename(index, index+".away"))
	marker := filepath.Join(dir, session[:1], session[1:4])
	require.NoError(t, os.MkdirAll(marker, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(marker, strings.Repeat("0", 30)+"-"+session), nil, 0o600))
	requireNoLoss(t, openStore(t, dir))
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "s")))

	// The pack of the second image is older than what maintenance has dropped.
	images, err := openStore(t, dir).List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Len(t, images, 2, "the deletion is lost")
	require.NoError(t, os.Rename(index+".away", index))
	save := blobFiles(t, dir, "xn")
	require.NoError(t, os.Remove(save[len(save)-2]), "the index of the second image")
	s = openStore(t, dir)
	losses, err := s.Losses(t.Context())
	require.NoError(t, err)
	require.Len(t, losses, 1)
	manager, ok, err := direct(t, s).ContentReader().EpochManager(t.Context())
	require.NoError(t, err)
	require.True(t, ok)
	_, err = manager.AdvanceDeletionWatermark(t.Context(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	requireNoLoss(t, openStore(t, dir))
}

// damageManifest damages the newest content of manifests.
func damageManifest(t *testing.T, dir string) {
	t.Helper()
	pack := last(blobFiles(t, dir, "q"))
	var found content.Info
	prefix := content.IterateOptions{Range: index.PrefixRange(manifest.ContentPrefix)}
	require.NoError(t, direct(t, openStore(t, dir)).ContentReader().IterateContents(t.Context(), prefix, func(i content.Info) error {
		if strings.HasSuffix(strings.ReplaceAll(pack, "/", ""), string(i.PackBlobID)+".f") {
			found = i
		}
		return nil
	}))
	text, err := os.ReadFile(pack)
	require.NoError(t, err)
	text[found.PackOffset+8] ^= 1
	require.NoError(t, os.WriteFile(pack, text, 0o600))
}

// TestDamagedManifest: other images are read all the same, and nothing is written until kopia has forgotten the content.
func TestDamagedManifest(t *testing.T) {
	dir, ids, want := twoImages(t)
	damageManifest(t, dir)
	s := openStore(t, dir)
	losses, err := s.Losses(t.Context())
	require.NoError(t, err)
	require.Len(t, losses, 1)
	require.Empty(t, losses[0].Images)
	require.ErrorContains(t, losses[0].Cause, "read manifests in content m")
	require.ErrorContains(t, losses[0].Cause, "invalid checksum at q")

	volumes, err := s.Volumes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []repository.VolumeKey{testVolume}, volumes)
	images, err := s.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Len(t, images, 1)
	require.NoError(t, images[0].Damage)
	want[0] = 1
	r, err := s.OpenReader(t.Context(), ids[0])
	require.NoError(t, err)
	got := make([]byte, len(want))
	_, err = r.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, want, got)
	_, err = s.OpenReader(t.Context(), ids[1])
	require.ErrorIs(t, err, repository.ErrNotFound)
	require.ErrorContains(t, err, "invalid checksum at q")

	// That the manifest is damaged is no reason to call the image deleted.
	require.Error(t, s.Delete(t.Context(), ids[1]))
	_, err = s.NewWriter(t.Context(), testMeta(20000, testTime), nextOperation(""))
	require.ErrorContains(t, err, "content delete")
	require.ErrorIs(t, err, repository.ErrCorrupt)

	forgetContents(t, s, "m")
	requireNoLoss(t, s)
	backup(t, s, testMeta(20000, testTime), "", want, allChunks(t, testMeta(20000, testTime)))
}

// forgetContents is `kopia content delete` of the contents with a prefix that are damaged.
func forgetContents(t *testing.T, s *Store, prefix content.IDPrefix) {
	t.Helper()
	err := repo.DirectWriteSession(t.Context(), direct(t, s), repo.WriteSessionOptions{}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return w.ContentReader().IterateContents(ctx, content.IterateOptions{}, func(i content.Info) error {
			if _, err := w.ContentManager().GetContent(ctx, i.ContentID); err != nil && i.ContentID.Prefix() == prefix {
				return w.ContentManager().DeleteContent(ctx, i.ContentID)
			}
			return nil
		})
	})
	require.NoError(t, err)
}

// TestDataIsWrittenAgain: a backup does not store again what the index has, even if it is damaged. When kopia has forgotten the damaged
// content, a full backup heals all images that consist of it.
func TestDataIsWrittenAgain(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(20000, testTime)
	data := make([]byte, meta.Size)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	id, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	pack := blobFiles(t, dir, "p")[0]
	text, err := os.ReadFile(pack)
	require.NoError(t, err)
	for at := 40; at < len(text); at += 100 {
		text[at] ^= 1
	}
	require.NoError(t, os.WriteFile(pack, text, 0o600))
	isWhole := func(id repository.SnapshotID) bool {
		r, err := openStore(t, dir).OpenReader(t.Context(), id)
		if err == nil {
			_, err = r.ReadAt(make([]byte, meta.Size), 0)
		}
		if err != nil {
			require.ErrorIs(t, err, repository.ErrCorrupt)
			require.ErrorContains(t, err, "volume shop/db")
		}
		return err == nil
	}
	require.False(t, isWhole(id))
	meta.SnapshotTime = testTime.Add(time.Hour)
	again, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	require.False(t, isWhole(again))
	forgetContents(t, s, "")
	meta.SnapshotTime = testTime.Add(2 * time.Hour)
	third, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	require.True(t, isWhole(third))
	require.True(t, isWhole(again), "its data are written again, and its volume.json was never damaged")
	require.False(t, isWhole(id), "its volume.json is gone")
}

// TestManifestsAreThoseOfKopia: what this package reads of manifest contents is what kopia does.
func TestManifestsAreThoseOfKopia(t *testing.T) {
	dir, ids, _ := twoImages(t)
	s := openStore(t, dir)
	require.NoError(t, s.Delete(t.Context(), ids[0]))
	set, damaged, err := loadManifests(t.Context(), direct(t, s))
	require.NoError(t, err)
	require.Empty(t, damaged)
	found, err := s.rep.FindManifests(t.Context(), map[string]string{manifest.TypeLabelKey: snapshot.ManifestType})
	require.NoError(t, err)
	living := 0
	for _, e := range set {
		if !e.Deleted && e.Labels[manifest.TypeLabelKey] == snapshot.ManifestType {
			living++
		}
	}
	require.Len(t, found, living)
	for _, f := range found {
		e := set[f.ID]
		require.Equal(t, f.Labels, e.Labels)
		require.True(t, f.ModTime.Equal(e.ModTime))
		want, err := snapshot.LoadSnapshot(t.Context(), s.rep, f.ID)
		require.NoError(t, err)
		got, err := e.snapshot()
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.True(t, set[manifest.ID(ids[0])].Deleted)
}

func TestLostEpochs(t *testing.T) {
	const hash = "_0123456789abcdef0123456789abcdef-s76a51f309fbeada0147-c1"
	for name, tc := range map[string]struct {
		blobs []blob.ID
		want  []string
	}{
		"none":                  {nil, nil},
		"one epoch":             {[]blob.ID{"xn0" + hash, "xw1700000000"}, nil},
		"two":                   {[]blob.ID{"xn0" + hash, "xe1", "xn1" + hash}, nil},
		"one without an index":  {[]blob.ID{"xn0" + hash, "xe1"}, nil},
		"early writer":          {[]blob.ID{"xn0" + hash, "xn1" + hash}, nil},
		"compacted":             {[]blob.ID{"xs0" + hash, "xr1_3" + hash, "xs4" + hash, "xe4", "xe5"}, nil},
		"first is lost":         {[]blob.ID{"xe1", "xn1" + hash}, []string{"epoch 0"}},
		"one of them is lost":   {[]blob.ID{"xs0" + hash, "xs2" + hash, "xe3"}, []string{"epoch 1"}},
		"range is lost":         {[]blob.ID{"xs2" + hash, "xe3"}, []string{"epochs 0 to 1 are lost"}},
		"half a set":            {[]blob.ID{"xs0_1-sa-c2", "xe1"}, []string{"epoch 0"}},
		"half a set, and parts": {[]blob.ID{"xs0_1-sa-c2", "xn0" + hash, "xe1"}, nil},
		"whole set":             {[]blob.ID{"xs0_1-sa-c2", "xs0_2-sa-c2", "xe1"}, nil},
		"marker is lost":        {[]blob.ID{"xs0" + hash, "xs1" + hash, "xs2" + hash}, []string{"xe2"}},
		"two gaps":              {[]blob.ID{"xr1_2" + hash, "xr1_4" + hash, "xs6" + hash, "xe8"}, []string{"epoch 0", "epoch 5", "epoch 7"}},
		"any numbers":           {[]blob.ID{"xe4611686018427387904", "xr1_4611686018427387900" + hash}, []string{"epoch 0", "epochs 4611686018427387901 to 4611686018427387903"}},
		"numbers of no epoch":   {[]blob.ID{"xe-5", "xn-1" + hash, "xr5_1" + hash, "xe9223372036854775807", "xn99999999999999999999" + hash}, nil},
		"names of other things": {[]blob.ID{"x", "xe", "xq5", "xn", "xnine_", "xr1_2", "xr_", "xs1-2"}, nil},
	} {
		lost := lostEpochs(tc.blobs)
		require.Len(t, lost, len(tc.want), "%s: %v", name, lost)
		for i, want := range tc.want {
			require.ErrorContains(t, lost[i], want, name)
			require.ErrorIs(t, lost[i], repository.ErrCorrupt)
		}
	}
}
