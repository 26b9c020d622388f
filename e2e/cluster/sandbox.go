package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// enterSandbox makes the fresh namespaces of this process a machine of its own. It runs
// first.
func (c *Cluster) enterSandbox(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"record the namespaces", c.recordNamespaces},
		{"detach mounts from the host", c.isolateMounts},
		{"private /run, /var/lib and /var/log", c.privateDirs},
		{"protect the host's kernel settings", c.fakeSysctls},
		{"set the host name", func() error { return unix.Sethostname([]byte(c.Name)) }},
		{"set up the network", func() error { return c.network(ctx) }},
		{"make cgroups", c.makeCgroups},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// recordNamespaces writes the name of the mount namespace for Down, which finds by it the
// processes that entered, even if PID 1 is dead.
func (c *Cluster) recordNamespaces() error {
	mnt, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("namespaces"), []byte(mnt+"\n"), 0o644)
}

// isolateMounts stops propagation to the host, starts it inside (the kubelet and the CSI
// driver need it), and mounts /proc of the new PID namespace.
func (c *Cluster) isolateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// privateDirs covers the directories with fixed names where containerd, runc, CNI and the
// kubelet write. So two clusters do not share them, and nothing stays behind.
func (c *Cluster) privateDirs() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return err
	}
	for _, dir := range []string{"/var/lib", "/var/log"} {
		name := strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-")
		upper, work := c.path("overlay", name, "upper"), c.path("overlay", name, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work); err != nil {
			return fmt.Errorf("overlay on %s: %w", dir, err)
		}
	}
	// KubeVirt knows the kubelet's directory by its default name only.
	for _, dir := range []string{defaultKubeletRoot, c.KubeletRoot()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(c.KubeletRoot(), defaultKubeletRoot, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", defaultKubeletRoot, err)
	}
	return nil
}

const defaultKubeletRoot = "/var/lib/kubelet"

// fakeSysctls shows the kubelet the kernel settings that it wants, as plain files over the
// real ones. Otherwise the kubelet would write the real ones, which belong to the whole
// machine.
func (c *Cluster) fakeSysctls() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := c.path("sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", name, err)
		}
	}
	return nil
}

// network gives lo the address of the node and the Service address of the API server. The
// bridge of the pods comes from CNI.
func (c *Cluster) network(ctx context.Context) error {
	busybox := c.runtimeFile("bin/busybox")
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "addr", "add", NodeIP + "/32", "dev", "lo"},
		{"ip", "addr", "add", serviceIP + "/32", "dev", "lo"},
	} {
		if err := run(ctx, busybox, args...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644)
}

const cgroupRoot = "/sys/fs/cgroup"

// makeCgroups makes the cluster's cgroup in every hierarchy. In cpuset a new
// group is empty, and unusable until it has processors and memory nodes.
func (c *Cluster) makeCgroups() error {
	hierarchies, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if !h.IsDir() {
			continue
		}
		parent := filepath.Join(cgroupRoot, h.Name())
		dir := filepath.Join(parent, c.cgroup())
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(parent, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
