package kubevirt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockmover/blockmover/e2e/kit"
)

// realWorld is KubeVirt as build.sh has made it.
type realWorld struct{ directory string }

func (w realWorld) install(ctx context.Context, k *kit.Kit) (func() error, error) {
	for _, image := range []string{"components.tar", "guest.tar", "plugin.tar"} {
		if _, err := k.Run(ctx, "", "ctr", "images", "import", filepath.Join(w.directory, "images", image)); err != nil {
			return nil, err
		}
	}
	if _, err := k.Kubectl(ctx, "label", "node", "--all", "--overwrite", "node-role.kubernetes.io/control-plane="); err != nil {
		return nil, err
	}
	if _, err := k.Kubectl(ctx, "apply", "--server-side", "-f", filepath.Join(w.directory, "operator.yaml")); err != nil {
		return nil, err
	}
	if _, err := k.Kubectl(ctx, "wait", "crd/kubevirts.kubevirt.io", "--for=condition=Established", "--timeout=60s"); err != nil {
		return nil, err
	}
	settings, err := os.ReadFile(filepath.Join(os.Getenv("BLOCKMOVER_E2E"), "kubevirt", "kubevirt.yaml"))
	if err != nil {
		return nil, err
	}
	version, err := os.ReadFile(filepath.Join(w.directory, "version"))
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(string(version), "v1.9.") {
		settings = bytes.ReplaceAll(settings, []byte("#1.9 "), nil)
	}
	if err := k.Apply(ctx, string(settings)); err != nil {
		return nil, err
	}
	return func() error { return nil }, k.Wait(ctx, "KubeVirt to be deployed", 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		phase, err := k.Kubectl(ctx, "-n", "kubevirt", "get", "kubevirt", "kubevirt", "-o", "jsonpath={.status.phase}")
		return strings.TrimSpace(phase) == "Deployed", phase, err
	})
}

func (realWorld) guest(k *kit.Kit, namespace string) guest { return realGuest{k, namespace, "vm1"} }

func (realWorld) restart(ctx context.Context, k *kit.Kit) error {
	_, err := k.Kubectl(ctx, "-n", "kubevirt", "delete", "pod", "-l", "kubevirt.io=virt-controller", "--wait=false")
	return err
}

func (realWorld) rounds() int { return 3 }

// realGuest has a serial console, where a shell reads commands.
type realGuest struct {
	kit           *kit.Kit
	namespace, vm string
}

// device is that of the disk of a PVC. A disk that a test has added comes after the others.
func device(claim string) string {
	i := slices.IndexFunc(disks, func(d disk) bool { return d.claim == claim })
	return "/dev/vd" + string(rune('a'+i))
}

func (g realGuest) fill(ctx context.Context, claim string, kib, blocks, first int) error {
	_, err := g.run(ctx, fmt.Sprintf("dd if=/dev/urandom of=%s bs=%dk count=%d seek=%d conv=fsync 2>/dev/null", device(claim), kib, blocks, first))
	return err
}

func (g realGuest) sum(ctx context.Context, claim string) (string, error) {
	out, err := g.run(ctx, "md5sum "+device(claim))
	sum, _, _ := strings.Cut(out, " ")
	return sum, err
}

func (g realGuest) count(ctx context.Context) error {
	_, err := g.run(ctx, `(i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); for d in a b c; do printf %016d $i | dd of=/dev/vd$d bs=16 seek=65536 conv=notrunc,fsync 2>/dev/null; done; done) >/dev/null 2>&1 &`)
	return err
}

func (g realGuest) stopCounting(ctx context.Context) error {
	_, err := g.run(ctx, "touch /tmp/stop")
	return err
}

// virsh runs a command of libvirt in the VM's pod.
func (g realGuest) virsh(ctx context.Context, args ...string) (string, error) {
	launcher, err := g.kit.Kubectl(ctx, "-n", g.namespace, "get", "pods", "-l", "vm.kubevirt.io/name="+g.vm, "--field-selector", "status.phase=Running", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return "", err
	}
	return g.kit.Kubectl(ctx, append([]string{"-n", g.namespace, "exec", launcher, "-c", "compute", "--", "virsh", "-c", "qemu+unix:///session?socket=/var/run/libvirt/virtqemud-sock"}, args...)...)
}

func (g realGuest) forget(ctx context.Context) error {
	out, err := g.virsh(ctx, "checkpoint-list", g.namespace+"_"+g.vm, "--name")
	checkpoints := strings.Fields(out)
	if err != nil || len(checkpoints) == 0 {
		return fmt.Errorf("list checkpoints: %q: %w", out, err)
	}
	slices.Sort(checkpoints)
	for _, checkpoint := range checkpoints {
		if _, err := g.virsh(ctx, "checkpoint-delete", g.namespace+"_"+g.vm, checkpoint); err != nil {
			return err
		}
	}
	return nil
}

// monitor runs a command of QEMU's monitor.
func (g realGuest) monitor(ctx context.Context, command string, arguments any) (string, error) {
	text, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return "", err
	}
	out, err := g.virsh(ctx, "qemu-monitor-command", g.namespace+"_"+g.vm, string(text))
	if err == nil && strings.Contains(out, `"error"`) && !strings.Contains(out, "already") {
		err = fmt.Errorf("%s: %s", text, out)
	}
	return out, err
}

func (g realGuest) nbd(ctx context.Context, claim string) (string, error) {
	const port = "10809"
	out, err := g.monitor(ctx, "query-block", struct{}{})
	if err != nil {
		return "", err
	}
	var found struct {
		Return []struct {
			Qdev     string
			Inserted struct {
				Node string `json:"node-name"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		return "", fmt.Errorf("decode query-block: %w", err)
	}
	i := slices.IndexFunc(disks, func(d disk) bool { return d.claim == claim })
	for _, b := range found.Return {
		if !strings.Contains(b.Qdev, "/ua-"+disks[i].volume+"/") {
			continue
		}
		if _, err := g.monitor(ctx, "nbd-server-start", map[string]any{"addr": map[string]any{"type": "inet", "data": map[string]any{"host": "0.0.0.0", "port": port}}}); err != nil {
			return "", err
		}
		export := map[string]any{"type": "nbd", "id": "e2e-" + disks[i].volume, "node-name": b.Inserted.Node, "name": disks[i].volume}
		if _, err := g.monitor(ctx, "block-export-add", export); err != nil {
			return "", err
		}
		address, err := g.kit.Kubectl(ctx, "-n", g.namespace, "get", "vmi", g.vm, "-o", "jsonpath={.status.interfaces[0].ipAddress}")
		if err == nil && address == "" {
			address, err = g.kit.Kubectl(ctx, "-n", g.namespace, "get", "pods", "-l", "vm.kubevirt.io/name="+g.vm, "--field-selector", "status.phase=Running", "-o", "jsonpath={.items[0].status.podIP}")
		}
		return fmt.Sprintf("nbd://%s:%s/%s", address, port, disks[i].volume), err
	}
	return "", fmt.Errorf("QEMU has no disk %s: %s", disks[i].volume, out)
}

var answer = regexp.MustCompile(`(?s)GUEST-BEGIN\r?\n(.*?)GUEST-RC (\d+)`)

// run runs a command in the guest, and returns what it prints.
func (g realGuest) run(ctx context.Context, command string) (string, error) {
	conn, err := g.dial()
	if err != nil {
		return "", fmt.Errorf("connect to guest %s/%s: %w", g.namespace, g.vm, err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "echo GUEST-BEGIN; %s\n", command); err != nil {
		return "", err
	}
	var got bytes.Buffer
	buffer := make([]byte, 4096)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(buffer)
		got.Write(buffer[:n])
		if found := answer.FindSubmatch(got.Bytes()); found != nil {
			text := strings.ReplaceAll(string(found[1]), "\r", "")
			if code, _ := strconv.Atoi(string(found[2])); code != 0 {
				return text, fmt.Errorf("run %q in guest %s/%s: exit status %d: %s", command, g.namespace, g.vm, code, text)
			}
			return text, nil
		}
		switch {
		case ctx.Err() != nil:
			return "", fmt.Errorf("run %q in guest %s/%s: %w: %s", command, g.namespace, g.vm, ctx.Err(), got.String())
		case err != nil && !os.IsTimeout(err):
			return "", fmt.Errorf("run %q in guest %s/%s: %w: %s", command, g.namespace, g.vm, err, got.String())
		}
	}
}

// dial connects to the socket of the console. It is in the mount namespace of the VM's pod, and its
// path there is longer than that of a socket may be.
func (g realGuest) dial() (net.Conn, error) {
	pid, err := g.process()
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/kubevirt-private/*/virt-serial0", pid))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("%d sockets of the console, want 1 (%w)", len(found), err)
	}
	dir, err := os.Open(filepath.Dir(found[0]))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/virt-serial0", dir.Fd()))
}

// process returns the process of the VM.
func (g realGuest) process() (int, error) {
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, file := range processes {
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		program, _, _ := bytes.Cut(line, []byte{0})
		if bytes.Contains(program, []byte("qemu-system-x86_64")) && bytes.Contains(line, []byte("guest="+g.namespace+"_"+g.vm+",")) {
			return strconv.Atoi(filepath.Base(filepath.Dir(file)))
		}
	}
	return 0, fmt.Errorf("no process of QEMU runs the VM")
}
