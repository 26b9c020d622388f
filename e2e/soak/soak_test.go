// Package soak leads volumes through random lives on the real parts, and compares every byte
// of every backup with a model in memory.
//
//	test CSI driver, a process:  volumes on loop devices, snapshots, changed blocks, over its socket
//	packages of the mover pod:   internal/backup with history and audit, device (O_DIRECT), the kopia adapter
//	stock kopia, a process:      maintenance, verification
//
// A step is a card of a shuffled deck. So every kind of step comes soon, in an order that
// only the seed decides: writes, discards, growth and shrinking, backups by several
// schedules, of single volumes and of all at one instant, deletions, maintenance, a PVC that is
// made again under its name, and a driver that starts to answer in another way. Storage
// snapshots are kept as by retainSnapshot: auto. Those of a group go with the group.
//
// The model predicts each backup before it runs: its kind, its parent, its reasons, and how
// often the stream of blocks is resumed. After every 10th step, each remaining backup is
// restored onto a new device with other bytes, and compared. Stock kopia verifies the
// repository. The storage must have the right volumes and snapshots, and no others.
//
// Kubernetes is not part of it: the scenarios on the cluster have the plugin, the manager and
// the pods. A lying driver is not part of it either: the tests of the audit have a storage
// that reports less than what changed.
//
// The module is separate because it needs the dependencies of the mover, in other versions
// than the cluster's Kubernetes. It contains only the test. `make soak` runs it.
package soak

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
)

// The environment of the test.
const (
	envSteps  = "BLOCKMOVER_SOAK_STEPS"
	envSeed   = "BLOCKMOVER_SOAK_SEED"
	envDriver = "BLOCKMOVER_SOAK_DRIVER" // path of the test CSI driver
	envKopia  = "BLOCKMOVER_SOAK_KOPIA"  // path of stock kopia
)

const (
	mib = 1 << 20

	// dirPrefix is followed by the number of the process.
	dirPrefix = "blockmover-soak-"

	checkEvery = 10
	// enoughSteps make it almost certain that everything in requireDone has happened.
	enoughSteps = 150

	// stepTimeout is far more than a step takes, including checks.
	stepTimeout = time.Minute
)

// Volumes are small, so that a step is fast: 3 segments of 8 MiB at first, and 8 at most.
const (
	volumes      = 3
	firstMaxSize = 24 * mib
	maxSize      = 64 * mib
	// backupsPerVolume is the number of backups after which a volume's next one lets an older
	// one expire.
	backupsPerVolume = 5
)

func TestSoak(t *testing.T) {
	driver, stock := os.Getenv(envDriver), os.Getenv(envKopia)
	if driver == "" || stock == "" {
		t.Skip("`make soak` builds what this needs")
	}
	steps, seed := number(t, envSteps, 200), number(t, envSeed, rand.IntN(1_000_000))
	t.Logf("%s=%d %s=%d", envSteps, steps, envSeed, seed)

	// An interrupted test fails, and cleans up like any test that fails. A second signal does
	// not interrupt the cleaning.
	ctx, stopSignals := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stopSignals)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(steps+10)*stepTimeout)
	defer cancel()

	s := newSoak(ctx, t, seed, driver, stock)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s failed. The same again: make soak SOAK_STEPS=%d SOAK_SEED=%d", s.step, steps, seed)
		}
	})
	for i := 1; i <= steps; i++ {
		card := s.draw()
		s.step = fmt.Sprintf("step %d", i)
		s.done[card.name]++
		card.play(s)
		if i%checkEvery == 0 || i == steps {
			s.check()
		}
	}
	s.end()
	t.Logf("done: %v", s.done)
	if steps >= enoughSteps {
		s.requireDone()
	}
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, name)
	return n
}

// soak is the world, with the model of it.
type soak struct {
	*testing.T
	ctx context.Context
	// noise is the source of all randomness. rnd draws from it.
	noise   *rand.ChaCha8
	rnd     *rand.Rand
	storage *storage
	kopia   stockKopia
	repo    string
	options options

	deck    []card
	volumes []*volume
	// backups are what the repository has, oldest first.
	backups []*saved
	// retained are the storage snapshots that are kept, by handle. ghosts were deleted while
	// the driver still uses such ones as bases.
	retained map[string]*saved
	ghosts   map[string]bool
	// groups are those of the storage: the handles of their snapshots by that of the group. A
	// group stays as long as one of them is retained.
	groups map[string][]string

	// beside has the names of backups that ran beside another one, a deletion or maintenance.
	// kept are those that ended with an error that may pass.
	beside, kept map[string]bool

	// step is the name of the running one. names is the number of the last name.
	step  string
	names int
	// done counts what has happened.
	done map[string]int
}

// volume is a PVC with the volume that it has now.
type volume struct {
	key       repository.VolumeKey
	handle    string
	blockSize int64
	// data is what the volume must hold.
	data []byte
}

// saved is a repo snapshot and the storage snapshot that it was made from.
type saved struct {
	name     string
	id       repository.SnapshotID
	volume   repository.VolumeKey
	handle   string
	snapshot string
	data     []byte
}

func newSoak(ctx context.Context, t *testing.T, seed int, driver, stock string) *soak {
	t.Helper()
	dir := newDir(t, driver)
	repo := filepath.Join(dir, "repository")
	require.NoError(t, kopia.CreateFilesystem(ctx, repo, password))
	noise := rand.NewChaCha8(sha256.Sum256([]byte(strconv.Itoa(seed))))
	s := &soak{
		T: t, ctx: ctx, noise: noise, rnd: rand.New(noise), repo: repo,
		storage:  startStorage(ctx, t, driver, dir),
		kopia:    connectKopia(ctx, t, stock, dir, repo),
		retained: map[string]*saved{}, ghosts: map[string]bool{}, groups: map[string][]string{}, beside: map[string]bool{}, kept: map[string]bool{}, done: map[string]int{},
	}
	s.step = "start"
	s.setOptions(defaultOptions())
	for i := range volumes {
		v := &volume{key: repository.VolumeKey{Namespace: "shop", PVC: fmt.Sprintf("data-%d", i)}}
		s.volumes = append(s.volumes, v)
		s.newVolume(v)
	}
	return s
}

// newDir makes the directory of a soak, in memory if possible.
func newDir(t *testing.T, driver string) string {
	t.Helper()
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = os.TempDir()
	}
	sweep(t, driver, parent)
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove directory: %v", err)
		}
	})
	return dir
}

// say logs what the running step does. After a failure, it shows what led there.
func (s *soak) say(format string, args ...any) {
	s.Helper()
	s.Logf("%s: "+format, append([]any{s.step}, args...)...)
}

// name returns a new one.
func (s *soak) name(kind string) string {
	s.names++
	return fmt.Sprintf("%s-%d", kind, s.names)
}

func (s *soak) chance(of int) bool { return s.rnd.IntN(of) == 0 }

func (s *soak) pickVolume() *volume { return s.volumes[s.rnd.IntN(len(s.volumes))] }

// open opens the repository as a mover pod does: for one operation.
func (s *soak) open() *kopia.Store {
	s.Helper()
	store, err := kopia.OpenFilesystem(s.ctx, s.repo, password)
	require.NoError(s, err)
	return store
}

func (s *soak) close(store *kopia.Store) {
	s.Helper()
	require.NoError(s, store.Close(s.ctx))
}

// check compares everything with the model.
func (s *soak) check() {
	s.Helper()
	s.say("check %d backups", len(s.backups))
	store := s.open()
	for _, b := range s.backups {
		s.restore(store, b)
	}
	losses, err := store.Losses(s.ctx)
	require.NoError(s, err)
	require.Empty(s, losses, "nothing is lost")
	s.close(store)
	s.kopia.verify()
	if n := len(s.backups); n > 0 {
		b := s.backups[s.rnd.IntN(n)]
		s.requireContent(b.name+", restored by stock kopia", s.kopia.restore(string(b.id)), b.data)
	}

	s.checkManifests()
	var handles []string
	for _, v := range s.volumes {
		handles = append(handles, v.handle)
		s.requireContent(v.handle, s.storage.device(v.handle), v.data)
	}
	slices.Sort(handles)
	haveVolumes, haveSnapshots := s.storage.left()
	require.Equal(s, handles, haveVolumes, "volumes of the storage")
	stored := maps.Clone(s.retained)
	for _, members := range s.groups {
		for _, handle := range members {
			stored[handle] = nil
		}
	}
	require.Equal(s, slices.Sorted(maps.Keys(stored)), haveSnapshots, "storage snapshots")
}

// checkManifests compares the repo snapshots with the model.
//
// The hold of an operation stays after an error that may pass. Another hold of one that has ended
// is an error, unless another process changed the repository at the same time. If two processes
// compact kopia's manifests, and only one of them knows of a deletion, the other one brings back
// what was deleted. The sweep of holds removes both after a day.
func (s *soak) checkManifests() {
	s.Helper()
	var want []string
	for _, b := range s.backups {
		want = append(want, string(b.id))
	}
	slices.Sort(want)
	ids, holds := s.kopia.snapshots()
	require.Equal(s, want, ids, "repo snapshots")
	for _, operation := range holds {
		if s.kept[operation] {
			continue
		}
		require.True(s, s.beside[operation], "operation %q is over and has a hold", operation)
		s.say("the hold of %s has come back", operation)
		s.done["hold that came back"]++
	}
}

// end deletes everything. Nothing may be left.
func (s *soak) end() {
	s.Helper()
	s.step = "end"
	for len(s.backups) > 0 {
		s.deleteBackup(s.backups[s.rnd.IntN(len(s.backups))])
	}
	s.maintain("--full", "--safety=none")
	s.check()
	for _, v := range s.volumes {
		s.storage.unpublish(v.handle)
		s.storage.deleteVolume(v.handle)
	}
	haveVolumes, haveSnapshots := s.storage.left()
	require.Empty(s, haveVolumes)
	require.Empty(s, haveSnapshots)
}

// requireDone fails the test if something that it is about never happened.
func (s *soak) requireDone() {
	s.Helper()
	for _, c := range cards {
		require.NotZero(s, s.done[c.name], c.name)
	}
	for _, what := range []string{
		"Full", "Incremental", "Incremental with resumptions", "Incremental after a resize",
		"Incremental on a base that is gone", "Incremental that is audited", "Incremental of a volume made anew", "given up", "refused", "parent deleted meanwhile", "restored", "target too small",
		"NoParent", "ForcedFull", "DeltaFailed", "group deleted",
	} {
		require.NotZero(s, s.done[what], what)
	}
}

// requireContent compares a device with what it must hold. The rest of the device must be
// zero.
func (s *soak) requireContent(what, path string, want []byte) {
	s.Helper()
	dev, err := device.Open(path)
	require.NoError(s, err)
	defer func() { require.NoError(s, dev.Close()) }()
	require.GreaterOrEqual(s, dev.Size(), int64(len(want)), what)
	buf, expected := device.NewBuffer(4*mib), make([]byte, 4*mib)
	for off := int64(0); off < dev.Size(); off += int64(len(buf)) {
		got := buf[:min(int64(len(buf)), dev.Size()-off)]
		_, err := dev.ReadAt(got, off)
		require.NoError(s, err)
		clear(expected)
		if off < int64(len(want)) {
			copy(expected, want[off:])
		}
		if !bytes.Equal(got, expected[:len(got)]) {
			i := 0
			for got[i] == expected[i] {
				i++
			}
			require.FailNow(s, "content differs", "%s: byte %d of %d is %#x, want %#x", what, off+int64(i), len(want), got[i], expected[i])
		}
	}
}
