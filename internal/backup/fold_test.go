package backup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	faultclass "github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/qcow2"
	"github.com/blockmover/blockmover/internal/qcow2/qcow2test"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
)

// vm is a disk whose backups are qcow2 files that QEMU writes: each file holds what changed
// since the one before it.
type vm struct {
	t     *testing.T
	dir   string
	files []string
	store *repositorytest.Memory
	meta  repository.Meta
}

func newVM(t *testing.T) *vm {
	return &vm{
		t: t, dir: t.TempDir(), store: repositorytest.NewMemory(),
		meta: repository.Meta{Driver: "kubevirt.io", VolumeHandle: "vm/disk", Mover: "blockmover-kubevirt"},
	}
}

// file makes the next file, of a disk of the given size.
func (v *vm) file(size int64, commands ...string) {
	path := filepath.Join(v.dir, fmt.Sprintf("checkpoint-%d", len(v.files)))
	args := []string{"qemu-img", "create", "-q", "-f", "qcow2"}
	if len(v.files) > 0 {
		args = append(args, "-b", v.files[len(v.files)-1], "-F", "qcow2")
	}
	qcow2test.QEMU(v.t, append(args, path, fmt.Sprint(size))...)
	args = []string{"qemu-io", "-t", "unsafe", "-d", "unmap", "-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	qcow2test.QEMU(v.t, append(args, path)...)
	v.files = append(v.files, path)
}

func (v *vm) stack(since cbt.ChangeID) *qcow2.Stack {
	file, err := device.Open(v.files[len(v.files)-1])
	require.NoError(v.t, err)
	stack, err := qcow2.OpenStack(v.t.Context(), since, file)
	require.NoError(v.t, err)
	v.t.Cleanup(func() { require.NoError(v.t, stack.Close()) })
	return stack
}

// back backs the newest file up. since is the number of the file that it is relative to.
func (v *vm) back(since int, edit func(*chain.Input)) (backup.Result, error) {
	n := len(v.files) - 1
	instant := cbt.ChangeID("")
	if since >= 0 {
		instant = cbt.ChangeID(fmt.Sprint(since))
	}
	stack := v.stack(instant)
	closeBase := func() error { return nil }
	result, err := backup.Run(v.t.Context(), backup.Job{
		Store: v.store, Volume: volume, Operation: fmt.Sprintf("operation-%d", n),
		Open: func() (device.Reader, error) { return stack, nil },
		Plan: func(ctx context.Context, dev device.Reader, history []repository.Snapshot) (chain.Input, error) {
			in := chain.Input{Volume: volume, Request: chain.Request{Target: v.meta, Now: monday}}
			in.Target.Size, in.Target.SnapshotHandle, in.Target.ChangeID = dev.Size(), fmt.Sprint(n), fmt.Sprint(n)
			in.Target.SnapshotTime = monday.Add(time.Duration(n) * time.Minute)
			if since < 0 {
				in.Full = []chain.Step{{Reason: chain.NoParent, Detail: "first"}}
			}
			if edit != nil {
				edit(&in)
			}
			var err error
			in, closeBase, err = backup.Fold(ctx, stack, in, v.store, history)
			return in, err
		},
		Options: datapath.Options{Workers: 2},
		Now:     func() time.Time { return monday },
	})
	require.NoError(v.t, closeBase())
	return result, err
}

func (v *vm) requireImage(id repository.SnapshotID) {
	v.t.Helper()
	want := qcow2test.Raw(v.t, v.files[len(v.files)-1])
	image, err := v.store.OpenReader(v.t.Context(), id)
	require.NoError(v.t, err)
	require.EqualValues(v.t, len(want), image.Meta().Size)
	got := make([]byte, len(want))
	_, err = image.ReadAt(got, 0)
	require.NoError(v.t, err)
	qcow2test.RequireSame(v.t, want, got)
}

const mib = 1 << 20

// TestFold: each image is the whole disk, whatever of it the file has.
func TestFold(t *testing.T) {
	v := newVM(t)
	v.file(9*mib+512, "write -q -P 1 0 3M", "write -q -P 2 5M 1M")
	full, err := v.back(-1, nil)
	require.NoError(t, err)
	require.Equal(t, repository.Full, full.Kind)
	require.Equal(t, chain.NoParent, full.Reason)
	require.Equal(t, "NoParent: first", full.Detail)
	require.EqualValues(t, 4*mib, full.Read.BytesRead, "what has no data is not read")
	v.requireImage(full.SnapshotID)

	// Data, zeros and a discard, each in a part of a chunk.
	v.file(9*mib+512, "write -q -P 3 65536 512", "write -q -z 1M 100k", "discard -q 5M 256k", "write -q -P 4 9437184 512")
	increment, err := v.back(0, nil)
	require.NoError(t, err)
	require.Equal(t, repository.Incremental, increment.Kind)
	require.Empty(t, increment.Reason)
	require.Equal(t, full.SnapshotID, increment.Parent)
	require.Less(t, increment.Read.BytesRead, int64(mib))
	require.Zero(t, increment.Audited.Bytes)
	v.requireImage(increment.SnapshotID)

	// Grown, and nothing else.
	v.file(12 * mib)
	grown, err := v.back(1, nil)
	require.NoError(t, err)
	require.Equal(t, repository.Incremental, grown.Kind)
	v.requireImage(grown.SnapshotID)

	// Shrunk in the middle of a chunk.
	v.file(2*mib+1024, "write -q -P 5 2M 512")
	shrunk, err := v.back(2, nil)
	require.NoError(t, err)
	require.Equal(t, repository.Incremental, shrunk.Kind)
	v.requireImage(shrunk.SnapshotID)
}

// TestFoldIntoLargeChunks: chunks are larger than clusters, so a cluster covers a part of a
// chunk and the rest comes from the parent's image.
func TestFoldIntoLargeChunks(t *testing.T) {
	v := newVM(t)
	v.meta.ChunkSize, v.meta.SegmentSize = mib, 2*mib
	rnd := rand.New(rand.NewPCG(1, 2))
	size := int64(16*mib + 4096)
	for n := range 8 {
		var commands []string
		for range 12 {
			length := (1 + rnd.Int64N(300)) * 512
			commands = append(commands, fmt.Sprintf("write -q -P %d %d %d", 1+rnd.IntN(255), rnd.Int64N((size-length)/512)*512, length))
		}
		v.file(size, commands...)
		result, err := v.back(n-1, nil)
		require.NoError(t, err)
		if n > 0 {
			require.Equal(t, repository.Incremental, result.Kind)
		}
		v.requireImage(result.SnapshotID)
	}
}

// TestFoldWithNewChunks: the parent cannot be inherited from, and its data is read from its
// image.
func TestFoldWithNewChunks(t *testing.T) {
	v := newVM(t)
	v.file(4*mib, "write -q -P 1 0 3M")
	_, err := v.back(-1, nil)
	require.NoError(t, err)
	v.file(4*mib, "write -q -P 2 1M 512")
	result, err := v.back(0, func(in *chain.Input) { in.Target.ChunkSize, in.Target.SegmentSize = mib, 2*mib })
	require.NoError(t, err)
	require.Equal(t, repository.Full, result.Kind)
	require.Equal(t, []chain.Reason{chain.ChunkSizeChanged}, result.Reasons)
	v.requireImage(result.SnapshotID)
}

// TestFoldNeedsItsBase: what is relative to an image that is not there is not backed up.
func TestFoldNeedsItsBase(t *testing.T) {
	for name, spoil := range map[string]func(v *vm, first repository.SnapshotID){
		"deleted":       func(v *vm, first repository.SnapshotID) { require.NoError(t, v.store.Delete(t.Context(), first)) },
		"another VM":    func(v *vm, _ repository.SnapshotID) { v.meta.VolumeHandle = "vm-2/disk" },
		"another mover": func(v *vm, _ repository.SnapshotID) { v.meta.Mover = "blockmover" },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVM(t)
			v.file(mib, "write -q -P 1 0 64k")
			first, err := v.back(-1, nil)
			require.NoError(t, err)
			spoil(v, first.SnapshotID)
			v.file(mib, "write -q -P 2 0 512")
			_, err = v.back(0, nil)
			require.ErrorIs(t, err, backup.ErrBaseGone)
			require.Equal(t, faultclass.Final, faultclass.Of(err))
		})
	}
	v := newVM(t)
	v.file(mib)
	_, err := v.back(-1, func(in *chain.Input) { in.Full = nil })
	require.ErrorContains(t, err, "nothing says why")
}

// TestChangesOfAnotherInstant: the list of a file is for the instant that it is relative to.
func TestChangesOfAnotherInstant(t *testing.T) {
	v := newVM(t)
	v.file(mib, "write -q -P 1 0 64k")
	stack := v.stack("monday")
	record := func(cbt.Batch) error { return nil }
	require.ErrorContains(t, stack.Changed(t.Context(), "sunday", 0, record), `hold what changed since "monday"`)
	var blocks []block.Extent
	require.NoError(t, stack.Changed(t.Context(), "monday", 0, func(b cbt.Batch) error {
		blocks = append(blocks, b.Blocks...)
		return nil
	}))
	require.Equal(t, []block.Extent{{Length: 64 << 10}}, blocks)
	_, err := stack.ReadAt(make([]byte, 512), 512<<10)
	require.ErrorIs(t, err, qcow2.ErrNoBase)
}
