package rollback_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/audit"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
	"github.com/blockmover/blockmover/internal/rollback"
)

const chunkSize = 64 << 10

var volume = repository.VolumeKey{Namespace: "app", PVC: "data"}

// world is a volume with its images, and a storage that knows its snapshots.
type world struct {
	t     *testing.T
	store *repositorytest.Memory
	// contents are what the snapshots of the storage hold, by change ID, and images the repo
	// snapshots.
	contents map[string][]byte
	images   map[string]repository.SnapshotID
	live     []byte
	day      int
}

func newWorld(t *testing.T, size int64) *world {
	t.Helper()
	return &world{t: t, store: repositorytest.NewMemory(), contents: map[string][]byte{}, images: map[string]repository.SnapshotID{}, live: random(1, size)}
}

func random(seed uint64, size int64) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	return data
}

// backup makes a full image of the live volume.
func (w *world) backup(changeID string) {
	w.t.Helper()
	w.day++
	meta := repository.Meta{
		Size: int64(len(w.live)), ChunkSize: chunkSize, SnapshotTime: time.Unix(int64(w.day), 0), ChangeID: changeID,
		Driver: "driver", VolumeHandle: "volume-1", Mover: "blockmover",
	}
	writer, err := w.store.NewWriter(w.t.Context(), meta, repository.WriterOptions{Volume: volume, Operation: changeID})
	require.NoError(w.t, err)
	padded := append(append([]byte{}, w.live...), make([]byte, (chunkSize-len(w.live)%chunkSize)%chunkSize)...)
	require.NoError(w.t, writer.Put(w.t.Context(), 0, padded))
	w.images[changeID], _, err = writer.Commit(w.t.Context(), repository.Snapshot{})
	require.NoError(w.t, err)
	w.contents[changeID] = append([]byte{}, w.live...)
}

// write changes the live volume, which may grow.
func (w *world) write(offset int64, data []byte) {
	if end := offset + int64(len(data)); end > int64(len(w.live)) {
		w.live = append(w.live, make([]byte, end-int64(len(w.live)))...)
	}
	copy(w.live[offset:], data)
}

// delta is what a storage says, in blocks of 4 KiB.
func (w *world) delta(changeID string) []block.Extent {
	was := append([]byte{}, w.contents[changeID]...)
	if n := len(w.live) - len(was); n > 0 {
		was = append(was, make([]byte, n)...)
	}
	var changed []block.Extent
	for off := int64(0); off < int64(len(w.live)); off += 4096 {
		end := min(off+4096, int64(len(w.live)))
		if string(was[off:end]) != string(w.live[off:end]) {
			changed = append(changed, block.Extent{Offset: off, Length: end - off})
		}
	}
	return changed
}

// input asks for an image, with a storage that knows the snapshots of these change IDs.
func (w *world) input(wanted string, known ...string) rollback.Input {
	w.t.Helper()
	image, err := w.store.OpenReader(w.t.Context(), w.images[wanted])
	require.NoError(w.t, err)
	history, err := w.store.List(w.t.Context(), volume)
	require.NoError(w.t, err)
	v := rollback.Volume{Driver: "driver", Handle: "volume-1", Size: int64(len(w.live)), Wanted: w.images[wanted], Image: image}
	bases, _ := rollback.Bases(v, history)
	storage := cbttest.Volume{Capacity: int64(len(w.live)), Changed: map[cbt.ChangeID][]block.Extent{}}
	for _, id := range known {
		storage.Changed[cbt.ChangeID(id)] = w.delta(id)
	}
	return rollback.Input{
		Volume: v, Bases: bases, Store: w.store, Source: cbttest.Memory{Volume: storage},
		Collect: cbt.Options{Backoff: time.Nanosecond}, Audit: 1, Seed: "seed", Device: device.NewMemory(w.live, 512),
	}
}

// restore writes the image as a plan says, and requires that the volume is equal to it and zero
// beyond.
func (w *world) restore(in rollback.Input, only *block.Bitmap) datapath.RestoreStats {
	w.t.Helper()
	stats, err := datapath.Restore(w.t.Context(), in.Image, device.NewMemory(w.live, 512), datapath.Options{Compare: true, Only: only})
	require.NoError(w.t, err)
	want := make([]byte, in.Image.Meta().Size)
	if n, err := in.Image.ReadAt(want, 0); n < len(want) {
		require.NoError(w.t, err)
	}
	require.Equal(w.t, want, w.live[:len(want)])
	require.True(w.t, block.IsZero(w.live[len(want):]))
	return stats
}

// TestFind: whatever has changed, between the images and since, the plan has all of it, and the
// rest is not looked at.
func TestFind(t *testing.T) {
	const size = 64 * chunkSize
	for name, tc := range map[string]struct {
		size    int64
		changes func(w *world)
		wanted  string
		known   []string
		base    string
		// chunks are how many are looked at.
		chunks int64
	}{
		"the newest image, from itself": {
			size: size, wanted: "one", known: []string{"one"}, base: "one", chunks: 2,
			changes: func(w *world) { w.write(5*chunkSize+7, []byte("x")); w.write(9*chunkSize, []byte("y")) },
		},
		"nothing has changed": {size: size, wanted: "one", known: []string{"one"}, base: "one", changes: func(*world) {}},
		"an older image, from the newest": {
			size: size, wanted: "one", known: []string{"two"}, base: "two", chunks: 3,
			changes: func(w *world) {
				w.write(5*chunkSize, random(2, chunkSize))
				w.write(20*chunkSize, random(3, chunkSize))
				w.backup("two")
				w.write(9*chunkSize, []byte("y"))
			},
		},
		"the only base that the storage has": {
			size: size, wanted: "two", known: []string{"one"}, base: "one", chunks: 2,
			changes: func(w *world) {
				w.write(5*chunkSize, random(2, chunkSize))
				w.backup("two")
				w.write(9*chunkSize, []byte("y"))
			},
		},
		"the volume has grown since": {
			size: 64*chunkSize - 512, wanted: "one", known: []string{"one"}, base: "one", chunks: 5,
			changes: func(w *world) { w.write(66*chunkSize, []byte("beyond")); w.write(0, []byte("x")) },
		},
		"the volume has grown between the images": {
			size: 64 * chunkSize, wanted: "one", known: []string{"two"}, base: "two", chunks: 3,
			changes: func(w *world) { w.write(65*chunkSize, []byte("beyond")); w.backup("two"); w.write(0, []byte("x")) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.size)
			w.backup("one")
			tc.changes(w)
			in := w.input(tc.wanted, tc.known...)
			plan, err := rollback.Find(t.Context(), in)
			require.NoError(t, err)
			require.NotNil(t, plan.Only, "%v", plan.Steps)
			require.Equal(t, w.images[tc.base], plan.Base)
			require.Positive(t, plan.Audited.Chunks)
			g, err := block.NewGeometry(in.Size, chunkSize)
			require.NoError(t, err)
			require.Equal(t, tc.chunks, plan.Only.CountChunks(g))
			w.restore(in, plan.Only)
		})
	}
}

// TestSecondAttempt: what an attempt has written that was lost is a change like any other.
func TestSecondAttempt(t *testing.T) {
	w := newWorld(t, 64*chunkSize)
	w.backup("one")
	w.write(5*chunkSize, random(2, 3*chunkSize))
	w.backup("two")
	w.write(20*chunkSize, random(3, chunkSize))
	in := w.input("one", "two")
	plan, err := rollback.Find(t.Context(), in)
	require.NoError(t, err)
	dev := devicetest.NewFaulty(device.NewMemory(w.live, 512))
	dev.Fail(devicetest.Write, 1, errors.New("lost"))
	_, err = datapath.Restore(t.Context(), in.Image, dev, datapath.Options{Compare: true, Only: plan.Only, Workers: 1, ReadSize: chunkSize})
	require.Error(t, err)
	w.write(40*chunkSize, []byte("somebody else"))

	in = w.input("one", "two")
	plan, err = rollback.Find(t.Context(), in)
	require.NoError(t, err)
	require.NotNil(t, plan.Only)
	w.restore(in, plan.Only)
}

// TestFallbacks: what goes wrong has a reason, and all of the volume is compared.
func TestFallbacks(t *testing.T) {
	w := newWorld(t, 64*chunkSize)
	w.backup("one")
	w.backup("two")
	w.write(5*chunkSize, []byte("x"))
	for name, tc := range map[string]struct {
		change  func(in *rollback.Input)
		reasons []string
	}{
		"the storage has no base": {func(in *rollback.Input) { *in = w.input("one") }, []string{"DeltaFailed"}},
		"the service is away": {func(in *rollback.Input) {
			in.Source = &cbttest.Faulty{Source: in.Source, After: []int{0, 0}, Err: cbt.ErrUnavailable}
		}, []string{"CBTUnavailable"}},
		"the storage forgets": {func(in *rollback.Input) {
			in.Source = cbttest.Memory{Volume: cbttest.Volume{Capacity: in.Size, Changed: map[cbt.ChangeID][]block.Extent{"one": nil, "two": nil}}}
			in.Audit = 100
		}, []string{"AuditFailed"}},
		"the image of the base is gone": {func(in *rollback.Input) {
			for i := range in.Bases {
				in.Bases[i].ID = "gone"
			}
		}, []string{"ParentGone"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := w.input("one", "one", "two")
			tc.change(&in)
			plan, err := rollback.Find(t.Context(), in)
			require.NoError(t, err)
			require.Nil(t, plan.Only)
			require.Empty(t, plan.Base)
			require.Equal(t, tc.reasons, rollback.Reasons(plan.Steps))
			require.Contains(t, rollback.Detail(plan.Steps), tc.reasons[0]+": ")
		})
	}
}

// refusing is a repository that does not compare images.
type refusing struct {
	repository.Store
	err error
}

func (r refusing) Compare(context.Context, repository.SnapshotID, repository.SnapshotID, func(block.Extent) error) error {
	return r.err
}

// TestFindEnds: the device, the repository and the context end a restore.
func TestFindEnds(t *testing.T) {
	w := newWorld(t, 64*chunkSize)
	w.backup("one")
	w.backup("two")
	refused := refusing{w.store, errors.New("AccessDenied")}
	in := w.input("one", "two")
	in.Store = refused
	_, err := rollback.Find(t.Context(), in)
	require.ErrorIs(t, err, refused.err, "it says nothing about the image")

	in = w.input("one", "one")
	dev := devicetest.NewFaulty(device.NewMemory(w.live, 512))
	dev.Fail(devicetest.Read, 0, errors.New("input/output error"))
	in.Device = dev
	_, err = rollback.Find(t.Context(), in)
	require.ErrorIs(t, err, audit.ErrDevice)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = rollback.Find(ctx, w.input("one", "one"))
	require.ErrorIs(t, err, context.Canceled)
}

func TestBases(t *testing.T) {
	good := repository.Meta{Driver: "driver", VolumeHandle: "volume-1", ChangeID: "c", Mover: "blockmover"}
	change := func(edit func(*repository.Meta)) repository.Snapshot {
		meta := good
		edit(&meta)
		return repository.Snapshot{ID: "s", Meta: meta}
	}
	v := rollback.Volume{Driver: "driver", Handle: "volume-1"}
	for name, tc := range map[string]struct {
		snapshot repository.Snapshot
		want     chain.Reason
	}{
		"good":           {change(func(*repository.Meta) {}), ""},
		"another volume": {change(func(m *repository.Meta) { m.VolumeHandle = "volume-2" }), chain.VolumeReplaced},
		"another driver": {change(func(m *repository.Meta) { m.Driver = "other" }), chain.VolumeReplaced},
		"of KubeVirt":    {change(func(m *repository.Meta) { m.Mover = "blockmover-kubevirt" }), chain.MoverChanged},
		"no instant":     {change(func(m *repository.Meta) { m.ChangeID = "" }), chain.NoChangeID},
		"damaged":        {repository.Snapshot{ID: "s", Damage: errors.New("torn")}, chain.ParentDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			bases, steps := rollback.Bases(v, []repository.Snapshot{tc.snapshot})
			if tc.want == "" {
				require.Len(t, bases, 1)
				require.Empty(t, steps)
				return
			}
			require.Empty(t, bases)
			require.Len(t, steps, 1)
			require.Equal(t, tc.want, steps[0].Reason)
		})
	}
	_, steps := rollback.Bases(v, nil)
	require.Equal(t, []string{"NoParent"}, rollback.Reasons(steps))
}

func TestReasonsPutTheAuditFirst(t *testing.T) {
	steps := []chain.Step{{Reason: chain.DeltaFailed}, {Reason: chain.AuditFailed}, {Reason: chain.DeltaFailed}}
	require.Equal(t, []string{"AuditFailed", "DeltaFailed"}, rollback.Reasons(steps))
}
