package artifacts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// heartbeat is the interval at which a long step reports.
const heartbeat = 15 * time.Second

// run runs cmd. A step that is longer than a heartbeat reports its elapsed time. If total is
// not 0, cmd is a go build, and run counts the packages that it compiles. A positive total is
// how many there are; such a build gets a line even if it is short. If the command fails, the
// error has its output.
func (c *Cache) run(cmd *exec.Cmd, what string, total int) error {
	start := time.Now()
	isBuild := total != 0
	var packages atomic.Int64
	var output tail
	of := ""
	if total > 0 {
		of = fmt.Sprintf(" of at most %d", total)
		c.Report("%s (%d packages) ...", what, total)
	}
	if isBuild {
		cmd.Args = append(cmd.Args[:2:2], append([]string{"-v"}, cmd.Args[2:]...)...)
	}
	pipe, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	cmd.WaitDelay = 10 * time.Second
	scanned := make(chan struct{})
	go func() {
		defer close(scanned)
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			line := lines.Text()
			// -v prints one import path a line, and nothing else does so.
			if isBuild && !strings.ContainsAny(line, " \t") {
				packages.Add(1)
				continue
			}
			output.add(line)
		}
		_, _ = io.Copy(io.Discard, pipe)
	}()
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				elapsed := int(time.Since(start).Seconds())
				if isBuild {
					c.Report("%s: %d%s packages compiled, %d s", what, packages.Load(), of, elapsed)
				} else {
					c.Report("%s: %d s", what, elapsed)
				}
			}
		}
	}()
	err := cmd.Run()
	close(done)
	_ = writer.Close() // a pipe of this process
	<-scanned
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, output.String())
	}
	if total > 0 {
		c.Report("%s: done, %d packages compiled, %.1f s", what, packages.Load(), time.Since(start).Seconds())
	}
	return nil
}

// tail keeps the last lines of an output.
type tail struct{ lines []string }

func (t *tail) add(line string) {
	const keep = 60
	if t.lines = append(t.lines, line); len(t.lines) > keep {
		t.lines = t.lines[1:]
	}
}

func (t *tail) String() string { return strings.Join(t.lines, "\n") }

// lockFile takes an exclusive lock, so that two builds do not write one file.
func lockFile(ctx context.Context, path string, report func(string, ...any)) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		if first {
			report("waiting for another build of the cache (%s)", path)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// debs are the Debian packages with the container runtime, the test image, QEMU's storage daemon and
// promtool. They are unpacked into the cache and not installed.
var debs = []string{
	"containerd", "runc", "libseccomp2", "busybox-static", "containernetworking-plugins", "e2fsck-static", "qemu-system-common", "prometheus",
}

// hostTools installs what must run on the host: the CSI driver and the tests make, check and
// mount file systems, and compare our reading of qcow2 files with QEMU's.
func (c *Cache) hostTools(ctx context.Context) error {
	needed := map[string]string{
		"mkfs.xfs": "xfsprogs", "mkfs.ext4": "e2fsprogs", "mount": "mount", "losetup": "mount",
		"blkid": "util-linux", "fsfreeze": "util-linux", "qemu-img": "qemu-utils",
	}
	packages := map[string]bool{}
	for tool, pkg := range needed {
		if !onPath(tool) {
			packages[pkg] = true
		}
	}
	if len(packages) == 0 {
		return nil
	}
	args := []string{"install", "-y", "--no-install-recommends"}
	for pkg := range packages {
		args = append(args, pkg)
	}
	c.Report("install on the host: %s", strings.Join(args[3:], " "))
	return c.apt(ctx, args...)
}

func onPath(tool string) bool {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if info, err := os.Stat(filepath.Join(dir, tool)); err == nil && !info.IsDir() {
			return true
		}
	}
	return false
}

// apt runs apt-get. If it fails, apt runs apt-get update and tries once more: fresh machines
// have no package lists, and old ones have stale lists.
func (c *Cache) apt(ctx context.Context, args ...string) error {
	call := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		return c.run(cmd, "apt-get "+args[0], 0)
	}
	first := call(args...)
	if first == nil {
		return nil
	}
	if err := call("update"); err != nil {
		return errors.Join(first, err)
	}
	return call(args...)
}
