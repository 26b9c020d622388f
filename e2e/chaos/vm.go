package chaos

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/blockmover/blockmover/e2e/cluster"
	"github.com/blockmover/blockmover/e2e/kit"
)

// vmName is that of the VM of an application that is one. Its disks have the names of their PVCs.
const vmName = "vm"

// vmPolicy gives the disks of VMs to KubeVirt.
const vmPolicy = "chaos-vm"

// installVM makes an application that is a VM.
func (a *application) installVM(ctx context.Context, w *world) error {
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", a.namespace)
	disks, volumes := make([]string, 0, len(a.volumes)), make([]string, 0, len(a.volumes))
	for _, v := range a.volumes {
		manifest += "---\n" + kit.PVC(a.namespace, v.name, v.class, "Block", v.mib<<20) + "\n"
		disks = append(disks, fmt.Sprintf("{name: %s, disk: {bus: virtio}}", v.name))
		volumes = append(volumes, fmt.Sprintf("{name: %[1]s, persistentVolumeClaim: {claimName: %[1]s}}", v.name))
	}
	manifest += fmt.Sprintf(`---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: %s, namespace: %s, labels: {changedBlockTracking: "true"}}
spec:
  runStrategy: Always
  template:
    metadata: {labels: {changedBlockTracking: "true"}}
    spec:
      domain: {devices: {disks: [%s]}}
      volumes: [%s]
`, vmName, a.namespace, strings.Join(disks, ", "), strings.Join(volumes, ", "))
	if err := w.kit.Apply(ctx, manifest); err != nil {
		return err
	}
	if err := w.vmRuns(ctx, a.namespace); err != nil {
		return err
	}
	for _, v := range a.volumes {
		if err := w.vms.Fill(ctx, a.namespace, vmName, v.name, 0, v.mib<<20*6/10); err != nil {
			return err
		}
	}
	return nil
}

// disksIn names the disks that may have been restored in place.
func (a *application) disksIn(namespace string) (names []string) {
	if a.vm && namespace == a.namespace {
		for _, v := range a.volumes {
			names = append(names, v.name)
		}
	}
	return names
}

// vmRuns waits until the VM of a namespace runs.
func (w *world) vmRuns(ctx context.Context, namespace string) error {
	return w.wait(ctx, "VM of "+namespace+" to run", 4*time.Minute, func(ctx context.Context) (string, error) {
		status, err := w.kit.Kubectl(ctx, "-n", namespace, "get", "vm", vmName, "-o", "jsonpath={.status.printableStatus}")
		if status != "Running" {
			return "it is " + status, err
		}
		_, _, err = w.vms.Machine(namespace, vmName)
		return "", err
	})
}

// vmSums reads the disks of the VM of a namespace.
func (w *world) vmSums(ctx context.Context, a *application, namespace string) (map[string]string, error) {
	if err := w.vmRuns(ctx, namespace); err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for _, v := range a.volumes {
		var err error
		if sums[v.name], err = w.vms.Sum(ctx, namespace, vmName, v.name, sha256.New()); err != nil {
			return nil, err
		}
	}
	return sums, nil
}

// writeVM writes to the disks of a VM. No hook sees the instant of its backups, so it writes no more in the round.
func (w *world) writeVM(ctx context.Context, a *application, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 'v'))
	if err := w.vmRuns(ctx, a.namespace); err != nil {
		return err
	}
	const place, places = 64 << 10, 12
	for _, v := range a.volumes {
		for range places {
			at := random.Int64N(v.mib<<20/place) * place
			if err := w.vms.Fill(ctx, a.namespace, vmName, v.name, at, place); err != nil {
				return err
			}
		}
	}
	var err error
	a.sums, err = w.vmSums(ctx, a, a.namespace)
	return err
}

// runVM starts or stops the VM of an application.
func (w *world) runVM(ctx context.Context, a *application, run bool) error {
	strategy, want := "Halted", "Stopped"
	if run {
		strategy, want = "Always", "Running"
	}
	return w.wait(ctx, "VM of "+a.namespace+" to be "+want, 3*time.Minute, func(ctx context.Context) (string, error) {
		if _, err := w.kit.Kubectl(ctx, "-n", a.namespace, "patch", "vm", vmName, "--type=merge", "-p", fmt.Sprintf(`{"spec":{"runStrategy":%q}}`, strategy)); err != nil {
			return "", err
		}
		status, err := w.kit.Kubectl(ctx, "-n", a.namespace, "get", "vm", vmName, "-o", "jsonpath={.status.printableStatus}")
		if status == want {
			return "", err
		}
		return "it is " + status, err
	})
}

// killVM kills QEMU.
func killVM(_ context.Context, w *world, f Fault) (string, healer, error) {
	var running []int
	for _, a := range w.apps {
		if pid, _, err := w.vms.Machine(a.namespace, vmName); a.vm && err == nil {
			running = append(running, pid)
		}
	}
	if len(running) == 0 {
		return "", nil, errMissed
	}
	pid := running[f.Pick%uint64(len(running))]
	return fmt.Sprintf("QEMU %d", pid), nil, cluster.Signal(pid, syscall.SIGKILL)
}

// holdKubeVirt stops KubeVirt's controllers. They start again when the last such fault is over.
func holdKubeVirt(_ context.Context, w *world, _ Fault) (string, healer, error) {
	w.vmHolds.Lock()
	defer w.vmHolds.Unlock()
	if w.vmHolds.n++; w.vmHolds.n == 1 {
		w.vms.Stop()
	}
	return "controllers of KubeVirt", func(context.Context) error {
		w.vmHolds.Lock()
		defer w.vmHolds.Unlock()
		if w.vmHolds.n--; w.vmHolds.n == 0 {
			w.vms.Start() //nolint:contextcheck // until Stop
		}
		return nil
	}, nil
}
