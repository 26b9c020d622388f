package kubevirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/e2e/kit"
	"github.com/blockmover/blockmover/e2e/kubevirt/standin"
)

// testNoSpace has QEMU run out of space, and compares what a backup made then with the guest. Another
// attempt has a volume twice as large, and what changed is not lost.
func (s *scenario) testNoSpace(g vm, backUp func() string) {
	s.Helper()
	const room = 4 << 20
	s.fill(g, 1024, 8, 20)
	filled := make(chan error, 1)
	before, err := s.scratch(s.ctx, g)
	require.NoError(s, err)
	go func() { filled <- s.fillScratch(g, before, room) }()
	name := backUp()
	require.NoError(s, <-filled)
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(s, err)
	for claim, u := range uploads {
		require.Contains(s, u.Status.DataMoverResult["checkpoint"], "-2-20", "%s: the second attempt", claim)
	}
	s.requireEqual(s.restoreDisks(name, g.namespace, name+"-restored"), g)
}

// scratch lists the PVCs that QEMU is given for its files.
func (s *scenario) scratch(ctx context.Context, g vm) ([]kit.Object, error) {
	return s.kit.List(ctx, "-n", g.namespace, "pvc", "-l", "blockmover.io/vm-backup")
}

// fillScratch leaves room for so many bytes in the next volume that QEMU is given for its files, less what it has written already. Those of
// an earlier backup may be about to go.
func (s *scenario) fillScratch(g vm, before []kit.Object, room int64) error {
	err := s.kit.Wait(s.ctx, "volume for the files", time.Minute, func(ctx context.Context) (bool, string, error) {
		claims, err := s.scratch(ctx, g)
		claims = slices.DeleteFunc(claims, func(c kit.Object) bool {
			return slices.ContainsFunc(before, func(b kit.Object) bool { return b.Metadata.UID == c.Metadata.UID })
		})
		if err != nil || len(claims) == 0 || claims[0].Spec.VolumeName == "" {
			return false, fmt.Sprint(claims), err
		}
		directories, err := filepath.Glob(standin.HostPath(os.Getenv("BLOCKMOVER_KUBELET_ROOT"), "*", claims[0].Spec.VolumeName, false))
		if err != nil || len(directories) == 0 || !isMountPoint(directories[0]) {
			return false, fmt.Sprint(directories), err
		}
		f, err := os.Create(filepath.Join(directories[0], "filling"))
		if err != nil {
			return false, "", err
		}
		defer func() { _ = f.Close() }()
		var fs unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
			return false, "", err
		}
		written, err := bytesIn(directories[0])
		if err != nil {
			return false, "", err
		}
		return true, "", unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-max(0, room-written))
	})
	return err
}

// bytesIn is how much room the files in a directory take.
func bytesIn(directory string) (total int64, err error) {
	err = filepath.WalkDir(directory, func(path string, d os.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && !d.IsDir() {
			err = syscall.Stat(path, &st)
		}
		total += st.Blocks * 512
		if errors.Is(err, os.ErrNotExist) {
			return nil // it has gone meanwhile
		}
		return err
	})
	return total, err
}

// isMountPoint reports whether a directory is on another file system than its parent.
func isMountPoint(directory string) bool {
	var inner, outer syscall.Stat_t
	err := errors.Join(syscall.Stat(directory, &inner), syscall.Stat(filepath.Dir(directory), &outer))
	return err == nil && inner.Dev != outer.Dev
}
