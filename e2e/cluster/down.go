package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Down ends the cluster and removes everything that it left: processes, loop devices,
// cgroups, mounts, files. It can be called at any moment, and any number of times.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.clean(ctx, false)
}

// cleanupLimit bounds each step of cleaning. What has not ended by then is stuck in the
// kernel, and a person must look.
const cleanupLimit = 30 * time.Second

func (c *Cluster) clean(ctx context.Context, keepLogs bool) error {
	if err := c.killAll(ctx); err != nil {
		return err
	}
	// The cgroups come before the loop devices: an rmdir that succeeds proves that no process
	// of a pod is left to hold a device.
	errs := []error{
		c.removeCgroups(),
		c.cleanDrivers(ctx),
		detachLoops(c.State, cleanupLimit),
		c.unmountAll(),
	}
	if err := errors.Join(errs...); err != nil {
		return err // the files stay: another try needs them
	}
	entries, err := os.ReadDir(c.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if keepLogs && e.Name() == "logs" {
			continue
		}
		if err := os.RemoveAll(c.path(e.Name())); err != nil {
			return err
		}
	}
	if keepLogs {
		return nil
	}
	return os.Remove(c.State)
}

// cleanDrivers makes each CSI driver detach its devices. It also thaws a pool that was frozen
// when the driver was killed.
func (c *Cluster) cleanDrivers(ctx context.Context) error {
	if _, err := os.Stat(c.bin("csidriver")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	for _, d := range Drivers {
		out, err := exec.CommandContext(ctx, c.bin("csidriver"), "cleanup", "--state-dir", c.CSIState(d.Name)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("clean up CSI driver %s: %w: %s", d.Name, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// inits finds the PID 1s of this cluster (one, unless something went wrong),
// as seen from the host.
func (c *Cluster) inits() ([]int, error) {
	want := strings.Join(c.identity(), "\x00") + "\x00"
	return Processes(func(pid int) bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return false
		}
		_, args, _ := bytes.Cut(cmdline, []byte{0})
		// The supervisor below PID 1 is no init. It dies with it.
		return strings.HasPrefix(string(args), want) && !bytes.Contains(args, []byte("--supervisor"))
	})
}

// stragglers finds processes that are in the cluster's namespaces and not below its PID 1:
// the outer side of `cluster exec`.
func (c *Cluster) stragglers() ([]int, error) {
	data, err := os.ReadFile(c.path("namespaces"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	namespaces := strings.Fields(string(data))
	return Processes(func(pid int) bool {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/mnt", pid))
		for _, link := range links {
			if ns, err := os.Readlink(link); err == nil && slices.Contains(namespaces, ns) {
				return true
			}
		}
		return false
	})
}

// Processes lists the processes that match, without this one.
func Processes(match func(pid int) bool) ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err == nil && pid != os.Getpid() && match(pid) {
			found = append(found, pid)
		}
	}
	return found, nil
}

// thawAfter is how long killed processes may take to die. After that, a frozen pool is the
// likely cause, on which they would wait forever.
const thawAfter = time.Second

func (c *Cluster) killAll(ctx context.Context) error {
	start := time.Now()
	deadline := start.Add(cleanupLimit)
	for {
		inits, err := c.inits()
		if err != nil {
			return err
		}
		others, err := c.stragglers()
		if err != nil {
			return err
		}
		all := slices.Concat(inits, others)
		if len(all) == 0 {
			return nil
		}
		for _, pid := range all {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			// A child of this process (up that cleans up) must be reaped.
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
		if time.Since(start) > thawAfter {
			if err := c.cleanDrivers(ctx); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of cluster %s survive SIGKILL for %s", all, c.Name, cleanupLimit)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// removeCgroups removes the cluster's cgroup in every hierarchy, leaves first.
func (c *Cluster) removeCgroups() error {
	roots, err := filepath.Glob(filepath.Join(cgroupRoot, "*", c.cgroup()))
	if err != nil {
		return err
	}
	deadline := time.Now().Add(cleanupLimit)
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil // it vanished in the meantime
		})
		if err != nil {
			return err
		}
		slices.Reverse(dirs)
		for _, dir := range dirs {
			for {
				err := unix.Rmdir(dir)
				if err == nil || errors.Is(err, unix.ENOENT) {
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("remove cgroup %s: %w", dir, err)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	return nil
}

// unmountAll removes mounts below the state directory from this namespace.
// There should be none, since all are made in the cluster's.
func (c *Cluster) unmountAll() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	points := mountsBelow(string(data), c.State)
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// mountsBelow lists the mount points below dir, in order of mounting.
func mountsBelow(mountinfo, dir string) []string {
	var points []string
	for _, line := range strings.Split(mountinfo, "\n") {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points
}
