package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// ErrRunning is returned by Up if the cluster is running.
var ErrRunning = errors.New("cluster is running")

// Up starts the cluster and returns when the node is Ready and CSI is registered. The cache
// must have been built. If ctx ends or something fails, nothing stays; after a failure the
// logs stay until Down.
func (c *Cluster) Up(ctx context.Context, report func(format string, args ...any)) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if status, err := c.Status(); err == nil {
		if err := status.Err(); err != nil {
			return fmt.Errorf("cluster %s is there, but: %w; run cluster down first", c.Name, err)
		}
		return ErrRunning
	}
	// A killed run may have left something.
	if err := c.clean(ctx, false); err != nil {
		return err
	}
	if err := os.MkdirAll(c.path("logs"), 0o755); err != nil {
		return err
	}
	err = c.startInit(ctx, report)
	if err == nil {
		return nil
	}
	keepLogs := ctx.Err() == nil
	if cleanErr := c.clean(ctx, keepLogs); cleanErr != nil {
		err = errors.Join(err, cleanErr)
	}
	return err
}

// identity is the beginning of the arguments of PID 1. Down finds it by them.
func (c *Cluster) identity() []string {
	return []string{"supervise", "--name", c.Name, "--state", c.State}
}

func (c *Cluster) superviseArgs() []string { return append(c.identity(), "--cache", c.Cache) }

func (c *Cluster) startInit(ctx context.Context, report func(string, ...any)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(c.log("supervisor"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = reader.Close() }()
	cmd := exec.Command(self, c.superviseArgs()...)
	cmd.Args[0] = "blockmover-cluster"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{writer}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID,
	}
	if err := errors.Join(cmd.Start(), writer.Close()); err != nil {
		return fmt.Errorf("start the cluster's PID 1 (root is needed): %w", err)
	}
	// On success nobody waits for it: it outlives this process.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	for lines := bufio.NewScanner(reader); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("supervisor says %q: %w", lines.Text(), err)
		}
		switch {
		case e.Done:
			if !stop() {
				return ctx.Err()
			}
			return nil
		case e.Error != "":
			return errors.New(e.Error)
		default:
			report("%s", e.Step)
		}
	}
	if ctx.Err() != nil {
		_, _ = cmd.Process.Wait()
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}
	return fmt.Errorf("supervisor died; see %s", c.log("supervisor"))
}

// Status reads the status that the supervisor wrote. An error means that no cluster of this
// name runs.
func (c *Cluster) Status() (Status, error) {
	var status Status
	inits, err := c.inits()
	if err != nil {
		return status, err
	}
	if len(inits) == 0 {
		return status, fmt.Errorf("no cluster %s is running: cluster up starts one", c.Name)
	}
	status, err = ReadStatus(c.State)
	if errors.Is(err, fs.ErrNotExist) {
		return Status{Phase: PhaseStarting}, nil
	}
	return status, err
}

// lock makes up and down of one cluster exclude each other. The file goes with the last
// unlock, so nothing stays behind.
func (c *Cluster) lock(ctx context.Context) (unlock func(), err error) {
	path := c.State + ".lock"
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the last unlock removed the directory
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			mine, err1 := f.Stat()
			there, err2 := os.Stat(path)
			if err1 == nil && err2 == nil && os.SameFile(mine, there) {
				return func() {
					_ = os.Remove(path)
					_ = os.Remove(filepath.Dir(path)) // when empty
					_ = f.Close()
				}, nil
			}
		}
		_ = f.Close()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another up or down of cluster %s holds %s: %w", c.Name, path, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
