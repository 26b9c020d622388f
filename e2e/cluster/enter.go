package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exec runs a command inside the cluster's namespaces, in the current directory, and returns
// its exit code. It passes signals on. If this process is killed, the command is killed, too.
func (c *Cluster) Exec(argv []string) (int, error) {
	inits, err := c.inits()
	if err != nil {
		return 0, err
	}
	if len(inits) != 1 {
		return 0, fmt.Errorf("cluster %s is not running: cluster up --name %s starts it", c.Name, c.Name)
	}
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)

	// Namespaces belong to threads, and a parent-death signal to the thread that forked. So
	// this thread must be ours until the end.
	runtime.LockOSThread()
	if err := enter(inits[0]); err != nil {
		return 0, fmt.Errorf("enter cluster %s: %w", c.Name, err)
	}
	cmd := &exec.Cmd{
		Path: self, Args: append([]string{self, "become", "--"}, argv...), Env: c.Environ(os.Environ()), Dir: dir,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil // as shells report it
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// enter moves this thread into the namespaces of a process. Its children will be in the PID
// namespace, too.
func enter(pid int) error {
	// All are opened before the first is entered, because /proc changes on the way.
	namespaces := []struct {
		name string
		flag int
		file *os.File
	}{
		{name: "pid", flag: unix.CLONE_NEWPID},
		{name: "net", flag: unix.CLONE_NEWNET},
		{name: "uts", flag: unix.CLONE_NEWUTS},
		{name: "mnt", flag: unix.CLONE_NEWNS},
	}
	for i, ns := range namespaces {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.name))
		if err != nil {
			return err
		}
		namespaces[i].file = file
	}
	// A thread that shares its root and directory may not change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for _, ns := range namespaces {
		if err := unix.Setns(int(ns.file.Fd()), ns.flag); err != nil {
			return fmt.Errorf("namespace %s: %w", ns.name, err)
		}
		if err := ns.file.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Become replaces this process, started by Exec inside the namespaces, by the command. It
// asks by itself to die with its parent. SysProcAttr.Pdeathsig cannot: it compares parent
// IDs, and a parent outside the PID namespace has none.
func Become(argv []string) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}
