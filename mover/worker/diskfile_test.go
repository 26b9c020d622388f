package worker

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/qcow2/qcow2test"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
)

// writeDisk makes the file that KubeVirt writes for a disk, with a byte of data at an offset, and
// what the worker has to know of it.
func writeDisk(t *testing.T, directory, backupName, at string) task.DiskFile {
	t.Helper()
	f := task.DiskFile{Instance: "vm", Backup: backupName, Volume: "disk-1"}
	path := filepath.Join(directory, f.Instance, backupName+"-2026-11-25_02-35-01")
	require.NoError(t, os.MkdirAll(path, 0o700))
	file := filepath.Join(path, backupName+"-disk-1.qcow2")
	qcow2test.QEMU(t, "qemu-img", "create", "-q", "-f", "qcow2", file, "8M")
	qcow2test.QEMU(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x11 "+at+" 64k", file)
	return f
}

// diskRequest is the task for such a file.
func diskRequest(operation string, at time.Time, f task.DiskFile) task.Request {
	r := backupRequest(operation, at)
	r.Backup.DiskFile = &f
	return r
}

func TestDiskOfVM(t *testing.T) {
	directory := t.TempDir()
	f := newFixture(t)
	open := func(file task.DiskFile) {
		stack, err := openDiskFile(t.Context(), directory, file)
		require.NoError(t, err)
		f.changes = stack
	}
	first := writeDisk(t, directory, "one", "0")
	first.Full = []chain.Step{{Reason: "NoParent", Detail: "the VM has no checkpoint"}}
	open(first)
	full := f.run(t, diskRequest("du-1.1", monday, first))
	require.Equal(t, repository.Full, full.Kind)
	require.Equal(t, "NoParent", full.Reason)
	require.Equal(t, "NoParent: the VM has no checkpoint", full.Detail)
	require.EqualValues(t, 64<<10, full.BytesRead)

	second := writeDisk(t, directory, "two", "1M")
	second.Since = "handle-du-1.1"
	open(second)
	next := f.run(t, diskRequest("du-2.1", monday.Add(time.Hour), second))
	require.Equal(t, repository.Incremental, next.Kind)
	require.Equal(t, full.SnapshotID, next.Parent)
	require.EqualValues(t, 64<<10, next.BytesRead)

	image, err := f.store.OpenReader(t.Context(), next.SnapshotID)
	require.NoError(t, err)
	for offset, want := range map[int64]byte{0: 0x11, 64 << 10: 0, 1 << 20: 0x11} {
		found := make([]byte, 1)
		_, err := image.ReadAt(found, offset)
		require.NoError(t, err)
		require.Equal(t, want, found[0], "at %d", offset)
	}

	third := writeDisk(t, directory, "three", "2M")
	third.Since = "handle-du-9.1"
	open(third)
	_, err = f.Run(t.Context(), diskRequest("du-3.1", monday.Add(2*time.Hour), third))
	require.ErrorIs(t, err, backup.ErrBaseGone)
	require.Equal(t, fault.Final, fault.Of(err))

	open(second)
	r := diskRequest("du-4.1", monday.Add(2*time.Hour), second)
	r.Backup.Capacity = 9 << 20
	_, err = f.Run(t.Context(), r)
	require.ErrorContains(t, err, "the disk has 8388608 bytes, and its volume 9437184")
}

func TestDiskFileErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, directory, file string, f *task.DiskFile)
		want  string
	}{
		"no instance":      {func(_ *testing.T, _, _ string, f *task.DiskFile) { f.Instance = "other" }, "KubeVirt has not written it"},
		"no file":          {func(_ *testing.T, _, _ string, f *task.DiskFile) { f.Volume = "other" }, "KubeVirt has not written one-*/one-other.qcow2"},
		"no backup":        {func(_ *testing.T, _, _ string, f *task.DiskFile) { f.Backup = "two" }, "KubeVirt has not written two-*/two-disk-1.qcow2"},
		"a way out":        {func(_ *testing.T, _, _ string, f *task.DiskFile) { f.Instance = ".." }, `".." is not the name of a file`},
		"a way out in one": {func(_ *testing.T, _, _ string, f *task.DiskFile) { f.Volume = "/../../x" }, "is not the name of a file"},
		"two files": {func(t *testing.T, directory, _ string, _ *task.DiskFile) {
			require.NoError(t, os.CopyFS(filepath.Join(directory, "vm", "one-later"), os.DirFS(filepath.Join(directory, "vm", "one-2026-11-25_02-35-01"))))
		}, "there are 2 files one-*/one-disk-1.qcow2, want one"},
		"a link": {func(t *testing.T, _, file string, _ *task.DiskFile) {
			require.NoError(t, os.Rename(file, file+".moved"))
			require.NoError(t, os.Symlink(file+".moved", file))
		}, "is not a regular file, but L"},
		"a link to a directory": {func(t *testing.T, directory, _ string, _ *task.DiskFile) {
			require.NoError(t, os.Rename(filepath.Join(directory, "vm"), filepath.Join(directory, "moved")))
			require.NoError(t, os.Symlink("moved", filepath.Join(directory, "vm")))
		}, "vm is not a directory, but L"},
		"no qcow2": {func(t *testing.T, _, file string, _ *task.DiskFile) {
			require.NoError(t, os.WriteFile(file, make([]byte, 4096), 0o600))
		}, "qcow2"},
		"cut off": {func(t *testing.T, _, file string, _ *task.DiskFile) {
			require.NoError(t, os.Truncate(file, 300<<10))
		}, "outside"},
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			f := writeDisk(t, directory, "one", "0")
			tc.spoil(t, directory, filepath.Join(directory, "vm", "one-2026-11-25_02-35-01", "one-disk-1.qcow2"), &f)
			_, err := openDiskFile(t.Context(), directory, f)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "open disk "+f.Volume+" of VM "+f.Instance+": ")
			require.Equal(t, fault.Final, fault.Of(err), "another attempt finds the same")
		})
	}
}

func TestDiskImage(t *testing.T) {
	directory := t.TempDir()
	for range 2 { // a second attempt finds what the first one wrote
		dev, err := openDiskImage(directory, 3<<20+512)
		require.NoError(t, err)
		require.EqualValues(t, 3<<20+512, dev.Size())
		_, err = dev.WriteAt([]byte("data"), 3<<20)
		require.NoError(t, err)
		require.NoError(t, dev.Close())
	}
	dev, err := device.Open(filepath.Join(directory, "disk.img"))
	require.NoError(t, err)
	found := make([]byte, 4)
	_, err = dev.ReadAt(found, 3<<20)
	require.NoError(t, err)
	require.Equal(t, "data", string(found))
	require.NoError(t, dev.Close())

	_, err = openDiskImage(filepath.Join(directory, "missing"), 1)
	require.ErrorContains(t, err, "create file of the disk: ")
}
