package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// machine is the storage daemon of a VM, and what stays of it when it does not run.
type machine struct {
	namespace, name, directory string
	volumes                    []volume
	// instance is the VirtualMachineInstance that it runs for.
	instance types.UID
	process  *exec.Cmd
	exited   chan struct{}
	started  time.Time
}

// volume is a disk of a VM. Its node in the storage daemon is named after it.
type volume struct{ name, claim, path string }

func (m *machine) path(name string) string { return filepath.Join(m.directory, name) }

func (m *machine) isRunning() bool {
	if m == nil || m.process == nil {
		return false
	}
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

// start starts the storage daemon with the disks.
func (m *machine) start(instance types.UID, volumes []volume) error {
	m.instance, m.volumes = instance, volumes
	if err := os.MkdirAll(m.directory, 0o700); err != nil {
		return err
	}
	args := []string{
		"--chardev", "socket,id=monitor,server=on,wait=off,path=" + m.path("qmp"), "--monitor", "chardev=monitor",
		"--nbd-server", "addr.type=unix,addr.path=" + m.path("nbd"),
	}
	for _, v := range volumes {
		overlay := m.path(v.name + ".qcow2")
		size, driver, err := sizeOf(v.path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(overlay); errors.Is(err, os.ErrNotExist) {
			// The data file is given when the overlay is opened: qemu-img would truncate it.
			if err := run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+m.path(v.name+".raw")+",data_file_raw=on", overlay, strconv.FormatInt(size, 10)); err != nil {
				return err
			}
		}
		args = append(args,
			"--blockdev", fmt.Sprintf("driver=%s,node-name=raw-%s,filename=%s,discard=unmap", driver, v.name, v.path),
			"--blockdev", fmt.Sprintf("driver=file,node-name=overlay-%s,filename=%s", v.name, overlay),
			"--blockdev", fmt.Sprintf("driver=qcow2,node-name=%[1]s,file=overlay-%[1]s,data-file=raw-%[1]s,discard=unmap", v.name),
			"--export", fmt.Sprintf("type=nbd,id=export-%[1]s,node-name=%[1]s,name=%[1]s,writable=on", v.name))
	}
	for _, socket := range []string{"qmp", "nbd"} {
		if err := os.Remove(m.path(socket)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	log, err := os.Create(m.path("log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	m.process = exec.Command("qemu-storage-daemon", args...)
	m.process.Stdout, m.process.Stderr = log, log
	if err := m.process.Start(); err != nil {
		return fmt.Errorf("start qemu-storage-daemon: %w", err)
	}
	exited := make(chan struct{})
	m.exited, m.started = exited, time.Now()
	go func() {
		_ = m.process.Wait() // it is killed on purpose
		close(exited)
	}()
	return m.waitForMonitor()
}

func (m *machine) waitForMonitor() error {
	for range 100 {
		if _, err := os.Stat(m.path("nbd")); err == nil {
			if monitor, err := dialMonitor(m.path("qmp")); err == nil {
				return monitor.conn.Close()
			}
		}
		if !m.isRunning() {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := os.ReadFile(m.path("log"))
	return fmt.Errorf("qemu-storage-daemon does not answer: %s", text)
}

// command runs a command of the monitor.
func (m *machine) command(name string, arguments, into any) error {
	monitor, err := dialMonitor(m.path("qmp"))
	if err != nil {
		return err
	}
	defer func() { _ = monitor.conn.Close() }()
	return monitor.execute(name, arguments, into)
}

// quit stops the storage daemon as a guest that shuts down does: the bitmaps are written.
func (m *machine) quit() error {
	if !m.isRunning() {
		return nil
	}
	err := m.command("quit", nil, nil)
	select {
	case <-m.exited:
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("qemu-storage-daemon does not quit"), err, m.process.Process.Kill())
	}
}

// bitmap is what a disk knows of a checkpoint.
type bitmap struct {
	Name         string
	Inconsistent bool
	volume       string
}

func (m *machine) bitmaps() ([]bitmap, error) {
	var nodes []struct {
		Name    string   `json:"node-name"`
		Bitmaps []bitmap `json:"dirty-bitmaps"`
	}
	if err := m.command("query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	var all []bitmap
	for _, v := range m.volumes {
		for _, node := range nodes {
			for _, b := range node.Bitmaps {
				if node.Name == v.name {
					b.volume = v.name
					all = append(all, b)
				}
			}
		}
	}
	return all, nil
}

func (m *machine) removeBitmaps(which func(bitmap) bool) error {
	all, err := m.bitmaps()
	if err != nil {
		return err
	}
	for _, b := range all {
		if which(b) {
			if err := m.command("block-dirty-bitmap-remove", map[string]any{"node": b.volume, "name": b.Name}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// lacks names a disk that does not have a checkpoint.
func (m *machine) lacks(checkpoint string) (string, error) {
	all, err := m.bitmaps()
	if err != nil {
		return "", err
	}
	has := map[string]bool{}
	for _, b := range all {
		if b.Name == checkpoint {
			has[b.volume] = true
		}
	}
	for _, v := range m.volumes {
		if !has[v.name] {
			return v.name, nil
		}
	}
	return "", nil
}

// run runs a program.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s %v: %w: %s", name, args, err, out)
	}
	return nil
}

// sizeOf returns the size of a device or file, and QEMU's driver for it.
func sizeOf(path string) (int64, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	driver := "host_device"
	if info.Mode().IsRegular() {
		driver = "file"
	}
	size, err := f.Seek(0, 2)
	return size, driver, err
}

// volumesOf returns the disks of a VM or of its instance that PVCs hold.
func volumesOf(o *unstructured.Unstructured, fields ...string) []volume {
	list, _, _ := unstructured.NestedSlice(o.Object, append(fields, "volumes")...)
	var found []volume
	for _, item := range list {
		fields, _ := item.(map[string]any)
		name, _, _ := unstructured.NestedString(fields, "name")
		claim, _, _ := unstructured.NestedString(fields, "persistentVolumeClaim", "claimName")
		if claim != "" {
			found = append(found, volume{name: name, claim: claim})
		}
	}
	return found
}

func (s *Standin) reconcileVM(ctx context.Context, vm *unstructured.Unstructured) error {
	vmi, err := s.get(ctx, vmis, vm.GetNamespace(), vm.GetName())
	if err != nil {
		return err
	}
	if vm.GetDeletionTimestamp() != nil {
		if vmi == nil {
			delete(s.machines, vm.GetUID()) // also what its disks know of checkpoints
			_, err = s.setFinalizer(ctx, vms, vm, false)
			return err
		}
		return s.remove(ctx, vmi)
	}
	if ok, err := s.setFinalizer(ctx, vms, vm, true); !ok {
		return err
	}
	status, err := s.drive(ctx, vm, vmi)
	state := map[string]any{"printableStatus": status, "changedBlockTracking": map[string]any{"state": "Enabled"}}
	if status == "Running" {
		state["created"], state["ready"] = true, true
		state["conditions"] = []any{map[string]any{"type": "AgentConnected", "status": "True"}}
	}
	return errors.Join(err, s.setStatus(ctx, vms, vm, state))
}

// drive brings the instance of a VM to what its run strategy asks for, and returns the VM's status.
func (s *Standin) drive(ctx context.Context, vm, vmi *unstructured.Unstructured) (string, error) {
	strategy, _, _ := unstructured.NestedString(vm.Object, "spec", "runStrategy")
	m := s.machines[vm.GetUID()]
	switch {
	case vmi == nil && strategy == "Halted":
		return "Stopped", nil
	case vmi == nil:
		return "Starting", s.createInstance(ctx, vm)
	case strategy == "Halted" || m != nil && m.instance == vmi.GetUID() && !m.isRunning():
		return "Stopping", s.remove(ctx, vmi)
	case m.isRunning() && vmi.GetDeletionTimestamp() == nil:
		return "Running", nil
	}
	return "Starting", nil
}

func (s *Standin) createInstance(ctx context.Context, vm *unstructured.Unstructured) error {
	spec, _, _ := unstructured.NestedMap(vm.Object, "spec", "template", "spec")
	vmi := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "spec": spec}}
	vmi.SetNamespace(vm.GetNamespace())
	vmi.SetName(vm.GetName())
	vmi.SetFinalizers([]string{finalizer})
	owner := metav1.NewControllerRef(vm, vm.GroupVersionKind())
	vmi.SetOwnerReferences([]metav1.OwnerReference{*owner})
	_, err := s.client.Resource(vmis).Namespace(vm.GetNamespace()).Create(ctx, vmi, metav1.CreateOptions{})
	return err
}

func (s *Standin) remove(ctx context.Context, vmi *unstructured.Unstructured) error {
	if vmi.GetDeletionTimestamp() != nil {
		return nil
	}
	return s.client.Resource(vmis).Namespace(vmi.GetNamespace()).Delete(ctx, vmi.GetName(), metav1.DeleteOptions{})
}

// reconcileVMI runs the pod and the storage daemon of a VM.
func (s *Standin) reconcileVMI(ctx context.Context, vmi *unstructured.Unstructured) error {
	owner := metav1.GetControllerOf(vmi)
	if owner == nil {
		return errors.New("it has no VM")
	}
	launcher := fmt.Sprintf("virt-launcher-%s-%.8s", vmi.GetName(), vmi.GetUID())
	m := s.machines[owner.UID]
	if vmi.GetDeletionTimestamp() != nil {
		if err := m.quitFor(vmi.GetUID()); err != nil {
			return err
		}
		gone, err := s.removePod(ctx, vmi.GetNamespace(), launcher)
		if err != nil || !gone {
			return err
		}
		_, err = s.setFinalizer(ctx, vmis, vmi, false)
		return err
	}
	volumes := volumesOf(vmi, "spec")
	var held []string
	for _, v := range volumes {
		held = append(held, v.claim)
	}
	labels := map[string]any{"kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": vmi.GetName()}
	pod, err := s.ensurePod(ctx, launcher, vmi, labels, held)
	if err != nil || pod == "" {
		return err
	}
	if m != nil && m.instance == vmi.GetUID() {
		return nil // it runs, or has crashed
	}
	if m == nil {
		m = &machine{namespace: vmi.GetNamespace(), name: vmi.GetName(), directory: filepath.Join(s.Directory, string(owner.UID))}
		s.machines[owner.UID] = m
	}
	for i, v := range volumes {
		path, block, err := s.hostPath(ctx, vmi.GetNamespace(), v.claim, pod)
		if err != nil {
			return err
		}
		if volumes[i].path = path; !block {
			volumes[i].path = filepath.Join(path, "disk.img")
		}
	}
	if err := m.start(vmi.GetUID(), volumes); err != nil {
		return err
	}
	return s.setStatus(ctx, vmis, vmi, map[string]any{"phase": "Running", "changedBlockTracking": map[string]any{"state": "Enabled"}})
}

// quitFor quits the storage daemon of an instance.
func (m *machine) quitFor(instance types.UID) error {
	if m == nil || m.instance != instance {
		return nil
	}
	return m.quit()
}

// equalStatus compares statuses apart from the times of their conditions.
func equalStatus(a, b map[string]any) bool {
	plain := func(status map[string]any) string {
		u := (&unstructured.Unstructured{Object: map[string]any{"status": status}}).DeepCopy()
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, c := range conditions {
			if fields, ok := c.(map[string]any); ok {
				delete(fields, "lastTransitionTime")
			}
		}
		_ = unstructured.SetNestedSlice(u.Object, conditions, "status", "conditions")
		text, _ := json.Marshal(u.Object)
		return string(text)
	}
	return plain(a) == plain(b)
}
