// Package pool keeps the filesystem that all volumes and snapshots lie on: XFS
// with reflinks, in a sparse image file, mounted from a loop device.
//
// The image costs what is written to it: it is sparse, and the filesystem gives
// back what is deleted (mount option discard). Flushes end in the page cache of
// the machine; nothing here survives a power failure.
package pool

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/mount"
)

// MinSize is the smallest filesystem that mkfs.xfs makes: 300 MiB.
const MinSize = 300 << 20

// A mount goes away a little later than the process that it belonged to, and a
// detached device with its last user.
const (
	cleanupTimeout  = 10 * time.Second
	cleanupInterval = 20 * time.Millisecond
)

// Pool is a mounted pool.
type Pool struct {
	// Dir is where it is mounted.
	Dir string
}

func imagePath(stateDir string) string { return filepath.Join(stateDir, "pool.img") }
func mountPath(stateDir string) string { return filepath.Join(stateDir, "pool") }

// Open mounts the pool of a state directory, which is made with the given size
// when there is none. A pool that an earlier process left mounted, or frozen, is
// taken over.
func Open(stateDir string, size int64) (*Pool, error) {
	if size < MinSize {
		return nil, fmt.Errorf("open pool: %d bytes are less than the %d that XFS needs", size, int64(MinSize))
	}
	dir := mountPath(stateDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make pool directory: %w", err)
	}
	_, mounted, err := mount.At(dir)
	if err != nil {
		return nil, err
	}
	if !mounted {
		if err := mountImage(imagePath(stateDir), dir, size); err != nil {
			return nil, err
		}
	}
	if err := mount.Thaw(dir); err != nil {
		return nil, err
	}
	return &Pool{Dir: dir}, nil
}

// mountImage attaches and mounts the image, and makes it before when it is missing.
func mountImage(image, dir string, size int64) error {
	if err := ensureImage(image, size); err != nil {
		return err
	}
	// The image may still be attached although it is not mounted here: volumes
	// outlive the mount namespace that they were attached in. A second device
	// on the same image would be refused as a duplicate filesystem.
	device, found, err := loop.Find(image, false)
	if err != nil {
		return err
	}
	if !found {
		if device, err = loop.Attach(image, loop.Config{}); err != nil {
			return err
		}
	}
	// What is flushed need not reach the disk: the pool outlives processes, not
	// the machine. Otherwise an fsync in a volume takes 6 ms instead of 0.1 ms,
	// and a snapshot waits for the disk. A sysfs that cannot be written costs
	// speed only. Cleanup takes this back.
	_ = device.SetWriteThrough(true)
	return mount.Mount(device.Path, dir, "xfs", unix.MS_NOATIME, "discard")
}

// ensureImage makes the image under another name first, so that a crash leaves
// no half-made one.
func ensureImage(image string, size int64) error {
	_, err := os.Stat(image)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	draft := image + ".new"
	if err := makeSparse(draft, size); err != nil {
		return err
	}
	output, err := exec.Command("mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1", draft).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make pool filesystem: %w: %s", err, strings.TrimSpace(string(output)))
	}
	if err := os.Rename(draft, image); err != nil {
		return fmt.Errorf("name pool image: %w", err)
	}
	return nil
}

func makeSparse(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create pool image: %w", err)
	}
	if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
		return fmt.Errorf("size pool image: %w", err)
	}
	return nil
}

// Available is how many bytes the pool can still take.
func (p *Pool) Available() (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(p.Dir, &stat); err != nil {
		return 0, fmt.Errorf("stat pool: %w", err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

// Sync writes what the pool has in memory.
func (p *Pool) Sync() error {
	directory, err := os.Open(p.Dir)
	if err != nil {
		return fmt.Errorf("open pool: %w", err)
	}
	defer func() { _ = directory.Close() }()
	if err := unix.Syncfs(int(directory.Fd())); err != nil {
		return fmt.Errorf("sync pool: %w", err)
	}
	return nil
}

// Freeze writes out the pool and stalls every write to every file on it until
// thaw is called.
func (p *Pool) Freeze() (thaw func() error, err error) {
	return mount.Freeze(p.Dir)
}

// Cleanup unmounts the pool of a state directory and detaches every loop device
// that leads back to it: the volumes', those that a kubelet stacked on them,
// and the pool's own. Mounts of these devices in this mount namespace go first, and
// the pool's in all others. The files stay. Running it twice, or without a pool, is
// no error; a device that is still used elsewhere after some seconds is one.
func Cleanup(stateDir string) error {
	image := imagePath(stateDir)
	if _, err := os.Stat(image); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	devices, err := loop.Of(image)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if err := device.While(func() error { return thaw(device, mountPath(stateDir)) }); err != nil {
			return fmt.Errorf("clean up pool: %w", err)
		}
	}
	for deadline := time.Now().Add(cleanupTimeout); len(devices) > 0; {
		for _, device := range devices {
			if err := device.While(func() error { return release(device, true) }); err != nil {
				return fmt.Errorf("clean up pool: %w", err)
			}
		}
		// With the directory go the copies of the mount in other namespaces. Where it
		// stays, they keep the device in use, which ends in an error.
		_ = os.Remove(mountPath(stateDir))
		if devices, err = loop.Of(image); err != nil {
			return err
		}
		if len(devices) > 0 && time.Now().After(deadline) {
			return fmt.Errorf("clean up pool: %s is still in use after %s", devices[0].Path, cleanupTimeout)
		}
		time.Sleep(cleanupInterval)
	}
	return nil
}

// thaw ends a freeze that a killed driver left behind. A frozen filesystem
// outlives its last mount, with whoever waits to write to it, so it is mounted
// to be reached.
func thaw(device loop.Device, dir string) error {
	_, mounted, err := mount.At(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := mount.Mount(device.Path, dir, "xfs", 0, "discard"); err != nil {
			return err
		}
	}
	return mount.Thaw(dir)
}

// release detaches a device after everything that stands on it.
func release(device loop.Device, ofPool bool) error {
	stacked, err := loop.On(device.Number)
	if err != nil {
		return err
	}
	for _, upper := range stacked {
		if err := upper.While(func() error { return release(upper, false) }); err != nil {
			return err
		}
	}
	if err := unmountAll(device); err != nil {
		return err
	}
	if ofPool {
		_ = device.SetWriteThrough(false) // if this fails, so did setting it
	}
	return device.Detach()
}

// unmountAll takes away the mounts of the device's filesystem and the places
// that the device's node is bound to.
func unmountAll(device loop.Device) error {
	points, err := mount.List()
	if err != nil {
		return err
	}
	for i := len(points) - 1; i >= 0; i-- {
		point := points[i]
		bound := point.Type == "devtmpfs" && point.Root == "/"+device.Name()
		if point.Device != device.Number && !bound {
			continue
		}
		if err := mount.Detach(point.Target); err != nil {
			return err
		}
	}
	return nil
}
