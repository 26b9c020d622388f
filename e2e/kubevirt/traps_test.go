package kubevirt

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestTraps backs up one VM again and again, and in between does what makes KubeVirt's backups
// fail, hang, or hold something else than what was asked for. Each backup is complete, says what it
// is, and the last one is what the guest saw.
func TestTraps(t *testing.T) {
	s := newScenario(t)
	g := s.start()
	n := 0
	// next changes a block of each disk, and backs up. All disks must have one of the reasons, of
	// which "" is a plain increment.
	next := func(during func(name string), reasons ...string) string {
		t.Helper()
		n++
		s.fill(g, 64, 1, n)
		name := fmt.Sprintf("trap-%d-%s", n, s.suffix)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if during != nil {
				during(name)
			}
		}()
		for claim, result := range s.backUp(name, g.namespace, "--csi-snapshot-timeout", "30s") {
			require.Contains(t, reasons, result["reason"], "%s: %s", claim, result["detail"])
			require.Equal(t, result["reason"] == "", result["kind"] == "Incremental")
		}
		<-ended
		return name
	}
	next(nil, "NoParent")
	next(nil, "")

	t.Log("the VM restarts")
	s.restart(g.namespace)
	next(nil, "")

	t.Log("KubeVirt's controller and our manager restart while a backup runs")
	next(func(name string) {
		s.waitForBackup(g)
		assert.NoError(t, theWorld.restart(s.ctx, s.kit))
		s.kubectl("-n", s.kit.VeleroNamespace, "delete", "pod", "-l", "app.kubernetes.io/component=manager", "--wait=false")
	}, "")

	t.Log("somebody deletes the VirtualMachineBackup")
	next(func(string) {
		s.kubectl("-n", g.namespace, "delete", "virtualmachinebackups", s.waitForBackup(g), "--wait=false", "--ignore-not-found")
	}, "", "CheckpointUnknown", "NoParent")

	t.Log("QEMU is killed")
	s.kill(g)
	next(nil, "NoParent", "CheckpointLost", "IncrementalStuck")
	next(nil, "")

	t.Log("somebody deletes the checkpoint in QEMU")
	require.NoError(t, g.forget(s.ctx))
	next(nil, "IncrementalStuck")
	next(nil, "")

	t.Log("QEMU runs out of space")
	s.testNoSpace(g, func() string { return next(nil, "") })

	t.Log("two backups at once")
	second := fmt.Sprintf("trap-second-%s", s.suffix)
	next(func(string) {
		s.backUp(second, g.namespace)
	}, "", "CheckpointUnknown")

	t.Log("the VM gets another disk")
	require.NoError(t, s.kit.Apply(s.ctx, kit.PVC(g.namespace, "fourth", s.kit.StorageClass, "Block", 64<<20)))
	s.kubectl("-n", g.namespace, "patch", "vm", "vm1", "--type=json", "-p", `[
		{"op": "add", "path": "/spec/template/spec/domain/devices/disks/-", "value": {"name": "d-4", "disk": {"bus": "virtio"}}},
		{"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "d-4", "persistentVolumeClaim": {"claimName": "fourth"}}}]`)
	s.restart(g.namespace)
	next(nil, "DisksChanged")
	next(nil, "")

	t.Log("the VM is created anew, with its disks")
	s.recreate(g.namespace)
	next(nil, "NoParent")
	next(nil, "")

	t.Log("the VM is stopped")
	s.stop(g.namespace)
	for claim, result := range s.backUp("trap-stopped-"+s.suffix, g.namespace) {
		require.Equal(t, "VMNotRunning", result["vmReason"], claim)
	}
	s.setStrategy(g.namespace, "Always")
	s.running(g.namespace)
	last := next(nil, "", "CheckpointUnknown", "NoParent")
	s.requireEqual(s.restoreDisks(last, g.namespace, "trapped"), g)
}

func (s *scenario) stop(namespace string) {
	s.Helper()
	s.setStrategy(namespace, "Halted")
	require.NoError(s, s.kit.Wait(s.ctx, "VM to stop", time.Minute, func(ctx context.Context) (bool, string, error) {
		status, err := s.kit.Kubectl(ctx, "-n", namespace, "get", "vm", "vm1", "-o", "jsonpath={.status.printableStatus}")
		return status == "Stopped", status, err
	}))
}

// kill kills QEMU, and waits until the VM runs again.
func (s *scenario) kill(g vm) {
	s.Helper()
	pid, err := g.process()
	require.NoError(s, err)
	require.NoError(s, syscall.Kill(pid, syscall.SIGKILL))
	require.NoError(s, s.kit.Wait(s.ctx, "QEMU to be another one", 2*time.Minute, func(context.Context) (bool, string, error) {
		now, err := g.process()
		return err == nil && now != pid, fmt.Sprint(err), nil
	}))
	s.running(g.namespace)
}

// recreate deletes the VM, and makes one of the same name and spec.
func (s *scenario) recreate(namespace string) {
	s.Helper()
	var o map[string]any
	require.NoError(s, s.kit.Get(s.ctx, &o, "-n", namespace, "vm", "vm1"))
	delete(o, "status")
	o["metadata"] = map[string]any{"name": "vm1", "namespace": namespace, "labels": map[string]string{"changedBlockTracking": "true"}}
	text, err := json.Marshal(o)
	require.NoError(s, err)
	s.kubectl("-n", namespace, "delete", "vm", "vm1", "--timeout=60s")
	require.NoError(s, s.kit.Apply(s.ctx, string(text)))
	s.running(namespace)
}

// restart restarts the VM.
func (s *scenario) restart(namespace string) {
	s.Helper()
	instance := func() string {
		return s.kubectl("-n", namespace, "get", "vmi", "-o", "jsonpath={.items[*].metadata.uid}")
	}
	before := instance()
	s.kubectl("-n", namespace, "delete", "vmi", "vm1", "--wait=false")
	require.NoError(s, s.kit.Wait(s.ctx, "VM to restart", 2*time.Minute, func(context.Context) (bool, string, error) {
		now := instance()
		return now != "" && now != before, now, nil
	}))
	s.running(namespace)
}

// waitForBackup waits until the VM has a VirtualMachineBackup, and returns its name.
func (s *scenario) waitForBackup(g vm) string {
	name := ""
	err := s.kit.Wait(s.ctx, "VirtualMachineBackup", time.Minute, func(ctx context.Context) (bool, string, error) {
		var err error
		name, err = s.kit.Kubectl(ctx, "-n", g.namespace, "get", "virtualmachinebackups", "-o", "jsonpath={.items[*].metadata.name}")
		return name != "", name, err
	})
	if err != nil {
		s.Errorf("%v", err)
	}
	return strings.TrimSpace(name)
}

// waitForQEMU waits until QEMU writes the disks of a VM.
func (s *scenario) waitForQEMU(g vm) bool {
	err := s.kit.Wait(s.ctx, "QEMU to write", time.Minute, func(ctx context.Context) (bool, string, error) {
		out, err := s.kit.Kubectl(ctx, "-n", g.namespace, "get", "virtualmachinebackups", "-o", "jsonpath={.items[*].status.type}")
		return strings.TrimSpace(out) != "", out, err
	})
	return assert.NoError(s, err)
}
