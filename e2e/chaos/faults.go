package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/blockmover/blockmover/e2e/cluster"
)

// errMissed says that there was nothing that a fault could hit.
var errMissed = errors.New("there was nothing to hit")

// healer ends a fault.
type healer func(context.Context) error

// injector begins a fault, and returns what it has hit. heal is nil if nothing has to end it.
type injector func(ctx context.Context, w *world, f Fault) (hit string, heal healer, err error)

// kind is a kind of fault.
type kind struct {
	name   string
	weight int
	inject injector
}

// faults are all kinds of faults. The clock is that of the whole machine, so nobody gets it
// without asking.
var faults []kind

func init() { //nolint:gochecknoinits // the plan asks for names and weights, and the faults need the plan
	faults = []kind{
		{"worker-kill", 8, pickProcess("worker", "/blockmover", "worker")},
		{"worker-delete", 3, deleteMoverPod()},
		{"worker-force", 3, deleteMoverPod("--force", "--grace-period=0")},
		{"worker-evict", 2, evictMoverPod},
		{"worker-disk", 2, fillMoverPod},
		{"worker-memory", 2, exhaustMoverPod},
		{"worker-cancel", 2, cancelOperation},
		{"manager-kill", 2, pickProcess("manager", "/blockmover", "manager")},
		{"manager-delete", 4, deletePods("app.kubernetes.io/component=manager")},
		{"manager-two", 2, twoManagers},
		{"velero-kill", 1, pickProcess("Velero server", "/velero", "server")},
		{"velero-delete", 3, deletePods("deploy=velero")},
		{"velero-plugin", 3, pickProcess("plugin", "velero-plugin-blockmover")},
		{"s3-kill", 3, hold("versitygw")},
		{"s3-stop", 2, freeze("versitygw")},
		{"s3-error", 3, store(mode{share: 0.3, status: http.StatusInternalServerError, code: "InternalError"})},
		{"s3-slowdown", 3, store(mode{share: 0.5, status: http.StatusServiceUnavailable, code: "SlowDown"})},
		{"s3-slow", 2, store(mode{share: 1, delay: 300 * time.Millisecond, rate: 2 << 20})},
		{"s3-cut", 4, store(mode{share: 0.2, cut: true})},
		{"s3-full", 2, store(mode{share: 1, status: http.StatusInsufficientStorage, code: "XMinioStorageFull", writes: true})},
		{"s3-clock", 1, store(mode{share: 1, status: http.StatusForbidden, code: "RequestTimeTooSkewed"})},
		{"s3-credentials", 1, store(mode{share: 1, status: http.StatusForbidden, code: "InvalidAccessKeyId"})},
		{"node-containerd", 2, hold("containerd")},
		{"node-kubelet", 3, hold("kubelet")},
		{"node-reboot", 2, reboot},
		{"node-clock", 0, stepClock},
		{"api-kill", 3, hold("kube-apiserver")},
		{"api-etcd", 1, hold("etcd")},
		{"api-controllers", 2, hold("kube-controller-manager")},
		{"api-scheduler", 1, hold("kube-scheduler")},
		{"driver-kill", 3, holdOfDriver("csidriver")},
		{"driver-provisioner", 2, holdOfDriver("csi-provisioner")},
		{"driver-snapshotter", 2, holdOfDriver("csi-snapshotter")},
		{"driver-resizer", 1, holdOfDriver("csi-resizer")},
		{"driver-metadata", 2, holdOfDriver("csi-snapshot-metadata")},
		{"driver-controller", 2, hold("snapshot-controller")},
		{"vm-kill", 2, killVM},
		{"vm-controllers", 2, holdKubeVirt},
		{"metadata-cut", 2, metadata((*tunnel).cut)},
		{"metadata-stall", 2, metadata((*tunnel).stall)},
	}
}

// pickProcess kills a process whose arguments begin like that.
func pickProcess(what string, argv ...string) injector {
	return func(ctx context.Context, _ *world, f Fault) (string, healer, error) {
		found, err := awaitSome(ctx, func(context.Context) ([]int, error) { return processes(argv...) })
		if err != nil {
			return "", nil, err
		}
		pid := found[f.Pick%uint64(len(found))]
		return fmt.Sprintf("%s %d", what, pid), nil, cluster.Signal(pid, syscall.SIGKILL)
	}
}

// awaitSome waits a moment for something that a fault can hit.
func awaitSome[T any](ctx context.Context, list func(context.Context) ([]T, error)) ([]T, error) {
	const patience = 25 * time.Second
	for end := time.Now().Add(patience); ; {
		found, err := list(ctx)
		if err == nil && len(found) > 0 {
			return found, nil
		}
		if time.Now().After(end) {
			return nil, errors.Join(errMissed, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// hold kills a component of the cluster and keeps it away.
func hold(component string) injector {
	return func(_ context.Context, w *world, _ Fault) (string, healer, error) {
		return component, func(context.Context) error { return cluster.Release(w.state, component) }, cluster.Hold(w.state, component)
	}
}

func holdOfDriver(component string) injector {
	return func(ctx context.Context, w *world, f Fault) (string, healer, error) {
		return hold(component+"-"+w.drivers[f.Pick%uint64(len(w.drivers))])(ctx, w, f)
	}
}

// freeze stops a component, so that its connections stay and nothing answers.
func freeze(component string) injector {
	return func(_ context.Context, w *world, _ Fault) (string, healer, error) {
		pid, err := w.running(component)
		if err != nil {
			return "", nil, err
		}
		return component + " stopped", func(context.Context) error { return cluster.Signal(pid, syscall.SIGCONT) }, cluster.Signal(pid, syscall.SIGSTOP)
	}
}

// store lets the proxy of the object store misbehave. The last one counts.
func store(m mode) injector {
	return func(_ context.Context, w *world, _ Fault) (string, healer, error) {
		w.store.mode.Store(&m)
		return "", func(context.Context) error {
			w.store.mode.CompareAndSwap(&m, nil)
			return nil
		}, nil
	}
}

func metadata(begin func(*tunnel)) injector {
	return func(_ context.Context, w *world, f Fault) (string, healer, error) {
		t := w.tunnels[f.Pick%uint64(len(w.tunnels))]
		begin(t)
		return t.target, func(context.Context) error {
			t.heal()
			return nil
		}, nil
	}
}

// reboot ends all that runs below containerd, with it and the kubelet.
func reboot(_ context.Context, w *world, _ Fault) (string, healer, error) {
	if err := errors.Join(cluster.Hold(w.state, "kubelet"), cluster.Hold(w.state, "containerd")); err != nil {
		return "", nil, err
	}
	n, err := killContainers()
	for _, a := range w.apps { // QEMU runs beside them, and not in them
		if pid, _, notRunning := w.vms.Machine(a.namespace, vmName); a.vm && notRunning == nil {
			n, err = n+1, errors.Join(err, cluster.Signal(pid, syscall.SIGKILL))
		}
	}
	return fmt.Sprintf("%d processes", n), func(context.Context) error {
		return errors.Join(cluster.Release(w.state, "containerd"), cluster.Release(w.state, "kubelet"))
	}, err
}

// stepClock steps the clock of the machine, and back.
func stepClock(_ context.Context, _ *world, f Fault) (string, healer, error) {
	step := 10 * time.Minute
	if f.Pick%2 == 0 {
		step = -step
	}
	return step.String(), func(context.Context) error { return shiftClock(-step) }, shiftClock(step)
}

func shiftClock(by time.Duration) error {
	tv := syscall.NsecToTimeval(time.Now().Add(by).UnixNano())
	if err := syscall.Settimeofday(&tv); err != nil {
		return fmt.Errorf("step clock: %w", err)
	}
	return nil
}

func deletePods(selector string) injector {
	return func(ctx context.Context, w *world, _ Fault) (string, healer, error) {
		_, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "delete", "pods", "-l", selector, "--force", "--grace-period=0", "--wait=false")
		return selector, nil, err
	}
}

// twoManagers lets two managers run for a while.
func twoManagers(ctx context.Context, w *world, _ Fault) (string, healer, error) {
	scale := func(ctx context.Context, n string) error {
		_, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "scale", "deployment/blockmover", "--replicas="+n)
		return err
	}
	return "", func(ctx context.Context) error { return scale(ctx, "1") }, scale(ctx, "2")
}

// pickMoverPod chooses a mover pod that runs.
func pickMoverPod(ctx context.Context, w *world, f Fault) (string, error) {
	found, err := awaitSome(ctx, func(ctx context.Context) ([]string, error) {
		out, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "get", "pods", "-l", "blockmover.io/operation",
			"--field-selector", "status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}")
		return strings.Fields(out), err
	})
	if err != nil {
		return "", err
	}
	slices.Sort(found)
	return found[f.Pick%uint64(len(found))], nil
}

func deleteMoverPod(args ...string) injector {
	return func(ctx context.Context, w *world, f Fault) (string, healer, error) {
		pod, err := pickMoverPod(ctx, w, f)
		if err != nil {
			return "", nil, err
		}
		_, err = w.kit.Kubectl(ctx, append([]string{"-n", w.kit.VeleroNamespace, "delete", "pod", pod, "--wait=false"}, args...)...)
		return pod, nil, err
	}
}

// evictMoverPod evicts as a drain of the node does.
func evictMoverPod(ctx context.Context, w *world, f Fault) (string, healer, error) {
	pod, err := pickMoverPod(ctx, w, f)
	if err != nil {
		return "", nil, err
	}
	eviction := fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":%q,"namespace":%q}}`, pod, w.kit.VeleroNamespace)
	_, err = w.kit.Run(ctx, eviction, "kubectl", "create", "-f", "-", "--raw",
		fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/eviction", w.kit.VeleroNamespace, pod))
	return pod, nil, err
}

// cancelOperation cancels an operation, as its user does.
func cancelOperation(ctx context.Context, w *world, f Fault) (string, healer, error) {
	found, err := awaitSome(ctx, func(ctx context.Context) ([]string, error) {
		out, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "get", "datauploads,datadownloads", "-o",
			`jsonpath={range .items[*]}{.kind}/{.metadata.name} {.status.phase}{"\n"}{end}`)
		var live []string
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			if len(fields) == 1 || len(fields) == 2 && !slices.Contains(endedOperations, fields[1]) {
				live = append(live, strings.ToLower(fields[0]))
			}
		}
		return live, err
	})
	if err != nil {
		return "", nil, err
	}
	operation := found[f.Pick%uint64(len(found))]
	_, err = w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "patch", operation, "--type=merge", "-p", `{"spec":{"cancel":true}}`)
	return operation, nil, err
}
