package xfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// busy works on a file system until it is stopped, as programs do: nothing is written in order.
type busy struct {
	t      testing.TB
	root   string
	random *rand.Rand
	steps  int
}

// expected reports whether an operation may fail so, as others work on the same files.
func expected(err error) bool {
	for _, e := range []error{fs.ErrNotExist, fs.ErrExist, syscall.ENOTEMPTY, syscall.ENOSPC, syscall.EINVAL, syscall.EISDIR, syscall.ENOTDIR, syscall.ENODATA, syscall.ELOOP, syscall.EPERM, syscall.EMLINK, syscall.ENAMETOOLONG, syscall.ENXIO, syscall.ENODEV, syscall.EOPNOTSUPP} {
		if err == nil || errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (b *busy) path() string {
	dir := []string{"", "a", "a/b", "c", "crowd", "crowd", "crowd"}[b.random.IntN(7)]
	return filepath.Join(b.root, dir, fmt.Sprintf("f%d%s", b.random.IntN(400), strings.Repeat("x", b.random.IntN(3)*40)))
}

func (b *busy) content() []byte {
	p := make([]byte, b.random.IntN(40000))
	for i := range p {
		p[i] = byte(b.steps + i*7)
	}
	return p
}

// write changes a file in one of the ways there are.
func (b *busy) write(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // what was written is not relied on
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return err
	}
	switch b.random.IntN(9) {
	case 0, 1:
		_, err = f.Write(b.content())
	case 2:
		for i := range 30 { // many extents
			if _, err = f.WriteAt(b.content(), int64(i)*1e5+b.random.Int64N(2e6)); err != nil {
				break
			}
		}
	case 3:
		err = f.Truncate(b.random.Int64N(1e6))
	case 4:
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, b.random.Int64N(1e6), 1+b.random.Int64N(1e6))
	case 5:
		err = unix.Fallocate(int(f.Fd()), 0, b.random.Int64N(1e6), 1+b.random.Int64N(1e6))
	case 6:
		err = unix.Fallocate(int(f.Fd()), []uint32{unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, unix.FALLOC_FL_ZERO_RANGE}[b.random.IntN(3)], b.random.Int64N(8)<<16, (1+b.random.Int64N(4))<<16)
	case 7:
		var other *os.File
		if other, err = os.OpenFile(b.path(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err == nil {
			if info, statErr := other.Stat(); statErr == nil && info.Mode().IsRegular() {
				err = unix.IoctlFileClone(int(f.Fd()), int(other.Fd()))
			}
			_ = other.Close()
		}
	case 8:
		if _, err = f.Write(b.content()); err == nil {
			err = f.Sync()
		}
	}
	return err
}

func (b *busy) step() error {
	b.steps++
	path := b.path()
	switch b.random.IntN(14) {
	case 0, 1, 2, 3:
		return b.write(path)
	case 4:
		return os.RemoveAll(path)
	case 5:
		return os.Rename(path, b.path())
	case 6:
		return unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, b.path(), unix.RENAME_EXCHANGE)
	case 7:
		return os.Symlink(strings.Repeat("t/", 1+b.random.IntN(500)), path)
	case 8:
		return os.Link(path, b.path())
	case 9:
		return os.MkdirAll(filepath.Join(path, "deep", "deeper"), 0o750)
	case 10, 11:
		name := fmt.Sprintf("%s%d", []string{"user.", "trusted.", "security."}[b.random.IntN(3)], b.random.IntN(12))
		if b.random.IntN(3) == 0 {
			return unix.Lremovexattr(path, name)
		}
		value := b.content()
		return unix.Lsetxattr(path, name, value[:min(len(value), []int{10, 200, 5000, 60000}[b.random.IntN(4)])], 0)
	case 12: // of no driver, as write opens it
		return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(3000+uint32(b.random.IntN(300)), 7)))
	}
	// A crowd grows, or shrinks.
	for i := range 60 {
		path := filepath.Join(b.root, "crowd", fmt.Sprintf("%d-%s", b.random.IntN(3000), strings.Repeat("n", i)))
		var err error
		if b.steps%2000 < 1200 {
			err = os.WriteFile(path, nil, 0o644)
		} else {
			err = os.Remove(path)
		}
		if !expected(err) {
			return err
		}
	}
	return nil
}

// work starts workers. Stop ends them, and returns how many steps they took.
func work(t testing.TB, root string, seed uint64) (stop func() int64) {
	t.Helper()
	for _, dir := range []string{"a/b", "c", "crowd"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	var done atomic.Bool
	var steps atomic.Int64
	var wait sync.WaitGroup
	for worker := range uint64(3) {
		b := &busy{t: t, root: root, random: rand.New(rand.NewPCG(seed, worker))}
		wait.Go(func() {
			for !done.Load() {
				if err := b.step(); !expected(err) {
					t.Errorf("step: %v", err)
					return
				}
				steps.Add(1)
			}
		})
	}
	return func() int64 {
		done.Store(true)
		wait.Wait()
		return steps.Load()
	}
}
