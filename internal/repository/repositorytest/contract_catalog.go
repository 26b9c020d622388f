package repositorytest

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

func (s suite) catalog(t *testing.T) {
	t.Helper()
	first := repository.WriterOptions{Volume: shopDB, Operation: "op-1"}
	newer, _ := s.write(t, first, meta(chunk, instant.Add(time.Hour)), random(1, chunk), []int64{0})
	again, _ := s.write(t, first, meta(chunk, instant.Add(2*time.Hour)), random(3, chunk), []int64{0})
	require.Equal(t, newer, again, "the operation has saved it")
	first.Volume = shopLog
	other, _ := s.write(t, first, meta(chunk, instant.Add(time.Hour)), random(1, chunk), []int64{0})
	require.NotEqual(t, newer, other)
	for _, id := range []repository.SnapshotID{newer, other} {
		require.NoError(t, s.Check(t.Context(), id))
	}
	m := meta(chunk, instant)
	m.SnapshotHandle = "older"
	older := s.backup(t, "op-2", m, "", random(2, chunk), []int64{0})

	list, err := s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, []repository.SnapshotID{newer, older}, []repository.SnapshotID{list[0].ID, list[1].ID}, "newest instant first")
	for _, snap := range list {
		require.NoError(t, snap.Damage)
		require.Equal(t, shopDB, snap.Volume)
		require.Equal(t, "red", snap.Tags["color"])
		require.True(t, instant.Equal(snap.Start))
		require.True(t, instant.Add(time.Minute).Equal(snap.End))
		got, err := s.Get(t.Context(), snap.ID)
		require.NoError(t, err)
		require.Equal(t, snap, got)
	}
	found, ok := repository.FindOperation(list, "op-2")
	require.True(t, ok)
	require.Equal(t, older, found.ID)
	_, ok = repository.FindOperation(list, "")
	require.False(t, ok)

	_, err = s.Get(t.Context(), "0123456789abcdef0123456789abcdef")
	require.ErrorIs(t, err, repository.ErrNotFound)
	require.NoError(t, s.Delete(t.Context(), newer))
	require.NoError(t, s.Delete(t.Context(), newer), "gone already")
	require.ErrorIs(t, s.Check(t.Context(), newer), repository.ErrNotFound)
	_, err = s.Get(t.Context(), newer)
	require.ErrorIs(t, err, repository.ErrNotFound)
	list, err = s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Len(t, list, 1)
	losses, err := s.Losses(t.Context())
	require.NoError(t, err)
	require.Empty(t, losses, "what is deleted is not lost")
	list, err = s.List(t.Context(), repository.VolumeKey{Namespace: "shop", PVC: "none"})
	require.NoError(t, err)
	require.Empty(t, list)
}

func (s suite) volumes(t *testing.T) {
	t.Helper()
	require.Empty(t, s.listVolumes(t))
	last := repository.VolumeKey{Namespace: "shop-2", PVC: "a"}
	var ids []repository.SnapshotID
	for i, v := range []repository.VolumeKey{last, shopLog, shopDB, shopLog} {
		m := meta(chunk, instant)
		m.SnapshotHandle = string(rune('a' + i)) // nothing to go on from
		id, _ := s.write(t, repository.WriterOptions{Volume: v, Operation: "op-" + string(rune('a'+i))}, m, random(1, chunk), []int64{0})
		ids = append(ids, id)
	}
	require.Equal(t, []repository.VolumeKey{shopDB, shopLog, last}, s.listVolumes(t))
	require.NoError(t, s.Delete(t.Context(), ids[1]))
	require.NoError(t, s.Delete(t.Context(), ids[2]))
	require.Equal(t, []repository.VolumeKey{shopLog, last}, s.listVolumes(t))

	// A backup that runs is none yet.
	w, err := s.NewWriter(t.Context(), meta(chunk, instant), repository.WriterOptions{Volume: shopDB, Operation: "op", Parent: ids[3]})
	require.NoError(t, err)
	require.Equal(t, []repository.VolumeKey{shopLog, last}, s.listVolumes(t))
	end(t, w, repository.Discard)
}

func (s suite) listVolumes(t *testing.T) []repository.VolumeKey {
	t.Helper()
	v, err := s.Volumes(t.Context())
	require.NoError(t, err)
	return v
}

func (s suite) differences(t *testing.T) {
	t.Helper()
	const size = 30*chunk + 100
	first := random(1, size)
	clear(first[6*chunk : 10*chunk])
	old := s.backup(t, "op-1", meta(size, instant), "", first, chunks(31))
	second := bytes.Clone(first)
	second[2*chunk]++
	second[7*chunk+5]++
	clear(second[3*chunk : 4*chunk])
	second[size-1]++
	changed := []int64{2, 3, 7, 30}
	next := s.backup(t, "op-2", meta(size, instant), old, second, changed)
	full := s.backup(t, "op-3", meta(size, instant), "", second, chunks(31))
	shorter := s.backup(t, "op-4", meta(20*chunk+1, instant), next, second[:20*chunk+1], []int64{20})
	other := meta(size, instant)
	other.ChunkSize, other.SegmentSize = 2*chunk, 4*chunk
	w, err := s.NewWriter(t.Context(), other, options(""))
	require.NoError(t, err)
	zeros, _ := commit(t, w)

	want := []block.Extent{{Offset: 2 * chunk, Length: 2 * chunk}, {Offset: 7 * chunk, Length: chunk}, {Offset: 30 * chunk, Length: 100}}
	require.Equal(t, want, s.compare(t, old, next))
	require.Equal(t, want, s.compare(t, next, old))
	require.Equal(t, want, s.compare(t, old, full))
	require.Empty(t, s.compare(t, next, next))
	require.Empty(t, s.compare(t, next, full), "the same content")
	// The last chunk of the shorter one has padding in it.
	require.Equal(t, []block.Extent{{Offset: 20 * chunk, Length: 1}}, s.compare(t, next, shorter))
	require.Equal(t, s.compare(t, next, shorter), s.compare(t, shorter, next))
	require.Equal(t, []block.Extent{{Length: size}}, s.compare(t, next, zeros), "cut in another way")

	stop := errors.New("stop")
	require.ErrorIs(t, s.Compare(t.Context(), old, next, func(block.Extent) error { return stop }), stop)
	for _, pair := range [][2]repository.SnapshotID{{old, "0123456789abcdef0123456789abcdef"}, {"0123456789abcdef0123456789abcdef", old}} {
		err := s.Compare(t.Context(), pair[0], pair[1], func(block.Extent) error { return nil })
		require.ErrorIs(t, err, repository.ErrNotFound)
	}
}

func (s suite) compare(t *testing.T, a, b repository.SnapshotID) []block.Extent {
	t.Helper()
	var found []block.Extent
	require.NoError(t, s.Compare(t.Context(), a, b, func(e block.Extent) error {
		found = append(found, e)
		return nil
	}))
	return found
}
