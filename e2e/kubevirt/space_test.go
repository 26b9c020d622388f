package kubevirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/e2e/kubevirt/standin"
)

// testNoSpace has QEMU run out of space, and compares what a backup made then with the guest. Another
// attempt has a volume twice as large, and what changed is not lost.
func (s *scenario) testNoSpace(g vm, backUp func() string) {
	s.Helper()
	const room = 4 << 20
	s.fill(g, 1024, 8, 20)
	filled := make(chan error, 1)
	go func() { filled <- s.fillScratch(g, room) }()
	name := backUp()
	require.NoError(s, <-filled)
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(s, err)
	for claim, u := range uploads {
		require.Contains(s, u.Status.DataMoverResult["checkpoint"], "-2-20", "%s: the second attempt", claim)
	}
	s.requireEqual(s.restoreDisks(name, g.namespace, name+"-restored"), g)
}

// fillScratch leaves room for so many bytes in the next volume that QEMU is given for its files.
func (s *scenario) fillScratch(g vm, room int64) error {
	err := s.kit.Wait(s.ctx, "volume for the files", time.Minute, func(ctx context.Context) (bool, string, error) {
		claims, err := s.kit.List(ctx, "-n", g.namespace, "pvc", "-l", "blockmover.io/vm-backup")
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
		return true, "", unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-room)
	})
	return err
}

// isMountPoint reports whether a directory is on another file system than its parent.
func isMountPoint(directory string) bool {
	var inner, outer syscall.Stat_t
	err := errors.Join(syscall.Stat(directory, &inner), syscall.Stat(filepath.Dir(directory), &outer))
	return err == nil && inner.Dev != outer.Dev
}
