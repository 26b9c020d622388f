package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// What tests do to the components of a cluster that runs. They know it by its state directory, and are in
// its PID namespace.

// ReadStatus reads what the supervisor of a cluster says. The error wraps fs.ErrNotExist if it has said nothing so far.
func ReadStatus(state string) (Status, error) {
	var status Status
	data, err := os.ReadFile(filepath.Join(state, "status.json"))
	if err == nil {
		err = json.Unmarshal(data, &status)
	}
	if err != nil {
		return Status{}, fmt.Errorf("read status of the cluster: %w", err)
	}
	return status, nil
}

// PID returns the process of a component: 0 if it has exited, and an error if there is no such component.
func PID(state, component string) (int, error) {
	status, err := ReadStatus(state)
	if err != nil {
		return 0, err
	}
	for _, c := range status.Components {
		switch {
		case c.Name != component:
		case c.Exited != "":
			return 0, nil
		default:
			return c.PID, nil
		}
	}
	return 0, fmt.Errorf("there is no component %s", component)
}

// Hold kills a component. It starts again after Release.
func Hold(state, component string) error {
	if err := os.WriteFile(filepath.Join(state, "hold", component), nil, 0o600); err != nil {
		return fmt.Errorf("hold %s: %w", component, err)
	}
	pid, err := PID(state, component)
	if err != nil || pid == 0 {
		return err
	}
	return Signal(pid, syscall.SIGKILL)
}

// Release lets a component start again.
func Release(state, component string) error {
	if err := os.Remove(filepath.Join(state, "hold", component)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release %s: %w", component, err)
	}
	return nil
}

// Signal sends a signal. It is no error if the process has ended.
func Signal(pid int, signal syscall.Signal) error {
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", signal, pid, err)
	}
	return nil
}
