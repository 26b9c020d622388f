package kubevirt

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// guest is the serial console of a guest, where a shell reads commands.
type guest struct {
	namespace, vm string
}

var answer = regexp.MustCompile(`(?s)GUEST-BEGIN\r?\n(.*?)GUEST-RC (\d+)`)

// run runs a command in the guest, and returns what it prints.
func (g guest) run(ctx context.Context, command string) (string, error) {
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
func (g guest) dial() (net.Conn, error) {
	pid, err := g.qemu()
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

// qemu returns the process of the VM.
func (g guest) qemu() (int, error) {
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
