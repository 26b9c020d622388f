package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one that runs in the cluster.
type process struct {
	pid, parent int
	argv        []string
}

// processes lists those whose arguments begin like that. The path of the program does not count.
func processes(argv ...string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(line) == 0 { // it has ended, or is of the kernel
			continue
		}
		p := process{pid: pid, argv: strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00"), parent: parentOf(pid)}
		if len(p.argv) < len(argv) || !slices.Equal(p.argv[1:max(1, len(argv))], argv[min(1, len(argv)):]) {
			continue
		}
		if len(argv) > 0 && filepath.Base(p.argv[0]) != filepath.Base(argv[0]) {
			continue
		}
		found = append(found, p)
	}
	return found, nil
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
	all, err := processes()
	if err != nil {
		return 0, err
	}
	below := map[int]bool{}
	for _, p := range all {
		if strings.HasPrefix(filepath.Base(p.argv[0]), "containerd-shim") {
			below[p.pid] = true
		}
	}
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if below[p.parent] && !below[p.pid] {
				below[p.pid], grew = true, true
			}
		}
	}
	for pid := range below {
		err = errors.Join(err, kill(pid, syscall.SIGKILL))
	}
	return len(below), err
}

// kill sends a signal. It is no error if the process has ended.
func kill(pid int, signal syscall.Signal) error {
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", signal, pid, err)
	}
	return nil
}

// component is one of the harness's, in status.json.
type component struct {
	Name, Exited string
	PID          int
}

func (w *world) components() ([]component, error) {
	text, err := os.ReadFile(filepath.Join(w.state, "status.json"))
	if err != nil {
		return nil, fmt.Errorf("read status of the cluster: %w", err)
	}
	var status struct{ Components []component }
	if err := json.Unmarshal(text, &status); err != nil {
		return nil, fmt.Errorf("read status of the cluster: %w", err)
	}
	return status.Components, nil
}

func (w *world) pid(name string) (int, error) {
	all, err := w.components()
	if err != nil {
		return 0, err
	}
	for _, c := range all {
		if c.Name == name && c.Exited == "" {
			return c.PID, nil
		}
	}
	return 0, fmt.Errorf("%w: %s does not run", errMissed, name)
}

// hold kills a component. The harness starts it again after release.
func (w *world) hold(name string) error {
	if err := os.WriteFile(filepath.Join(w.state, "hold", name), nil, 0o600); err != nil {
		return fmt.Errorf("hold %s: %w", name, err)
	}
	pid, err := w.pid(name)
	if errors.Is(err, errMissed) { // another fault has it
		return nil
	}
	return errors.Join(err, kill(pid, syscall.SIGKILL))
}

func (w *world) release(name string) error {
	if err := os.Remove(filepath.Join(w.state, "hold", name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release %s: %w", name, err)
	}
	return nil
}

// fillMoverPod writes more into the scratch space of a mover pod than it may have. The kubelet
// evicts the pod.
func fillMoverPod(ctx context.Context, w *world, f Fault) (string, func(context.Context) error, error) {
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
func exhaustMoverPod(ctx context.Context, _ *world, f Fault) (string, func(context.Context) error, error) {
	found, err := awaitSome(ctx, func(context.Context) ([]process, error) { return processes("/blockmover", "worker") })
	if err != nil {
		return "", nil, err
	}
	p := found[f.Pick%uint64(len(found))]
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
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
		return fmt.Sprintf("worker %d", p.pid), nil, nil
	}
	return "", nil, fmt.Errorf("%w: no memory cgroup of process %d", errMissed, p.pid)
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
