package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/blockmover/blockmover/e2e/cluster"
)

// processes lists those whose arguments begin like that. The path of the program does not count.
func processes(argv ...string) ([]int, error) {
	return cluster.Processes(func(pid int) bool {
		have := argvOf(pid)
		return len(have) >= len(argv) && filepath.Base(have[0]) == filepath.Base(argv[0]) && slices.Equal(have[1:len(argv)], argv[1:])
	})
}

// argvOf reads the arguments of a process. There are none if it has ended, or is of the kernel.
func argvOf(pid int) []string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(line) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
}

// parentOf reads the parent of a process. It is 0 if the process has ended.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, can have anything in it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

// killContainers kills the shims of containerd and all that runs below them.
func killContainers() (int, error) {
	below, parents := map[int]bool{}, map[int]int{}
	if _, err := cluster.Processes(func(pid int) bool {
		argv := argvOf(pid)
		parents[pid] = parentOf(pid)
		below[pid] = len(argv) > 0 && strings.HasPrefix(filepath.Base(argv[0]), "containerd-shim")
		return true
	}); err != nil {
		return 0, err
	}
	for grew := true; grew; {
		grew = false
		for pid, parent := range parents {
			if below[parent] && !below[pid] {
				below[pid], grew = true, true
			}
		}
	}
	n := 0
	var errs error
	for pid, is := range below {
		if is {
			n++
			errs = errors.Join(errs, cluster.Signal(pid, syscall.SIGKILL))
		}
	}
	return n, errs
}

// running returns the process of a component.
func (w *world) running(component string) (int, error) {
	pid, err := cluster.PID(w.state, component)
	if err == nil && pid == 0 {
		err = fmt.Errorf("%w: %s does not run", errMissed, component)
	}
	return pid, err
}

// fillMoverPod writes more into the scratch space of a mover pod than it may have. The kubelet
// evicts the pod.
func fillMoverPod(ctx context.Context, w *world, f Fault) (string, healer, error) {
	pod, err := pickMoverPod(ctx, w, f)
	if err != nil {
		return "", nil, err
	}
	uid, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return "", nil, err
	}
	volumes, err := filepath.Glob(filepath.Join(w.kubelet, "pods", uid, "volumes", "kubernetes.io~empty-dir", "home"))
	if err != nil || len(volumes) == 0 {
		return "", nil, errors.Join(errMissed, err)
	}
	file, err := os.Create(filepath.Join(volumes[0], "chaos"))
	if err != nil {
		return "", nil, errors.Join(errMissed, err)
	}
	defer func() { _ = file.Close() }()
	for range 2 * scratchMiB {
		if _, err := file.Write(make([]byte, 1<<20)); err != nil {
			return "", nil, errors.Join(errMissed, err)
		}
	}
	return pod, nil, nil
}

// exhaustMoverPod leaves a mover process no more memory than it has. The kernel kills it as soon
// as it wants more.
func exhaustMoverPod(ctx context.Context, _ *world, f Fault) (string, healer, error) {
	found, err := awaitSome(ctx, func(context.Context) ([]int, error) { return processes("/blockmover", "worker") })
	if err != nil {
		return "", nil, err
	}
	pid := found[f.Pick%uint64(len(found))]
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", nil, errors.Join(errMissed, err)
	}
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || parts[1] != "memory" || parts[2] == "/" { // one that ends is in the root
			continue
		}
		dir := "/sys/fs/cgroup/memory" + parts[2]
		used, err := os.ReadFile(filepath.Join(dir, "memory.usage_in_bytes"))
		if err != nil {
			return "", nil, errors.Join(errMissed, err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(used)), 10, 64)
		if err != nil {
			return "", nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, "memory.limit_in_bytes"), []byte(strconv.FormatInt(n+256<<10, 10)), 0o600); err != nil {
			return "", nil, errors.Join(errMissed, err)
		}
		return fmt.Sprintf("worker %d", pid), nil, nil
	}
	return "", nil, fmt.Errorf("%w: no memory cgroup of process %d", errMissed, pid)
}

// settle waits until everything that the faults may have hit works again. A container that the
// kubelet starts late, because it was killed often, is replaced.
func (w *world) settle(ctx context.Context) error {
	for _, c := range []struct{ name, selector string }{{"deployment/velero", "deploy=velero"}, {"deployment/blockmover", "app.kubernetes.io/component=manager"}} {
		if err := w.wait(ctx, c.name+" to run", 4*time.Minute, func(ctx context.Context) (string, error) {
			out, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "get", "pods", "-l", c.selector, "-o",
				`jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].ready} {.status.containerStatuses[*].state.waiting.reason}{"\n"}{end}`)
			if err != nil {
				return "", err
			}
			if strings.Contains(out, "CrashLoopBackOff") {
				_, err = w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "delete", "pods", "-l", c.selector, "--force", "--grace-period=0", "--wait=false")
				return out, err
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if len(lines) == 1 && strings.HasSuffix(strings.TrimSpace(lines[0]), " true") {
				return "", nil
			}
			return out, nil
		}); err != nil {
			return err
		}
	}
	return w.wait(ctx, "backup storage location", 3*time.Minute, func(ctx context.Context) (string, error) {
		out, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "get", "backupstoragelocations.velero.io", "default", "-o", "jsonpath={.status.phase}")
		if out == "Available" {
			return "", err
		}
		return "phase " + out, err
	})
}

// wait polls until nothing is missing. Errors are as good as something missing.
func (w *world) wait(ctx context.Context, what string, limit time.Duration, missing func(context.Context) (string, error)) error {
	return w.kit.Wait(ctx, what, limit, func(ctx context.Context) (bool, string, error) {
		seen, err := missing(ctx)
		if err != nil {
			return false, err.Error(), nil //nolint:nilerr // what is asked may be away
		}
		return seen == "", seen, nil
	})
}
