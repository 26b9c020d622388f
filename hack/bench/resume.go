package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// resumeSize is the size of the volume of resumeTable, all of it random bytes.
	resumeSize = 2 * gib
	// resumeInterval is after how much an upload records what is finished: the least that is allowed, so that there are
	// checkpoints on the way. A mover pod does so after 4 GiB.
	resumeInterval = 384 * mib
	// resumeRate leaves time to kill at the right moment.
	resumeRate = "256Mi"
)

// resumeTable kills a backup and a restore at 10, 50 and 90 %, and prints how much the next run did again.
func resumeTable(ctx context.Context, binary, dir string) error {
	o := ours{binary: binary, repo: filepath.Join(dir, "repo")}
	volume, target := filepath.Join(dir, "volume"), filepath.Join(dir, "target")
	if err := sparseFile(volume, resumeSize); err != nil {
		return err
	}
	places := everyMiB(resumeSize)
	fmt.Printf("\nof %s, killed with SIGKILL; a checkpoint each %s\n%10s %22s %24s\n", formatBytes(resumeSize), formatBytes(resumeInterval),
		"killed at", "backup: read again", "restore: fetched again")
	for n, percent := range []int64{10, 50, 90} {
		if _, err := change(volume, places, mib, uint64(n)); err != nil { //nolint:gosec // it is a small index
			return fmt.Errorf("fill volume: %w", err)
		}
		if err := o.create(ctx); err != nil {
			return err
		}
		read, id, err := o.resumedBackup(ctx, volume, percent)
		if err != nil {
			return err
		}
		if err := sparseFile(target, resumeSize); err != nil {
			return err
		}
		fetched, err := o.resumedRestore(ctx, id, target, percent)
		if err != nil {
			return err
		}
		if err := sameBytes(ctx, volume, target, resumeSize); err != nil {
			return fmt.Errorf("check restore: %w", err)
		}
		fmt.Printf("%8d %% %22s %24s\n", percent, formatBytes(read), formatBytes(fetched))
	}
	return nil
}

// resumedBackup kills a backup, and returns how much of the volume the next run has read again.
func (o ours) resumedBackup(ctx context.Context, volume string, percent int64) (again int64, id string, err error) {
	args := []string{
		"image", "backup", "--volume", "bench/volume", "--device", volume, "--json", "--operation", "resumed",
		"--checkpoint-interval", fmt.Sprint(int64(resumeInterval)), "--rate-limit", resumeRate,
	}
	first, _, err := o.child(args...).watched(ctx, "rchar", resumeSize*percent/100)
	if err != nil {
		return 0, "", err
	}
	_, out, err := o.child(args...).run(ctx)
	if err != nil {
		return 0, "", err
	}
	var b backup
	if err := json.Unmarshal(out, &b); err != nil {
		return 0, "", fmt.Errorf("read result of backup: %w", err)
	}
	return max(0, first+b.BytesRead-resumeSize), b.SnapshotID, nil
}

// resumedRestore kills a restore, and returns how much the next run has fetched again from the repository.
func (o ours) resumedRestore(ctx context.Context, id, target string, percent int64) (again int64, err error) {
	args := []string{"image", "restore", "--snapshot", id, "--device", target, "--rate-limit", resumeRate}
	if _, _, err := o.child(args...).watched(ctx, "wchar", resumeSize*percent/100); err != nil {
		return 0, err
	}
	written, err := allocatedBytes(target)
	if err != nil {
		return 0, err
	}
	_, fetched, err := o.child(append(args, "--resume")...).watched(ctx, "rchar", 0)
	if err != nil {
		return 0, err
	}
	// The next run reads the target to compare it. What it reads beyond that is of the repository.
	return max(0, fetched-resumeSize-(resumeSize-written)), nil
}

// watched runs a child until it ends, or kills it when a counter of /proc/PID/io is large enough. It returns the last value of the
// counter before it was killed, and before it ended. A child that is to be killed and ends is an error.
func (c child) watched(ctx context.Context, counter string, until int64) (killedAt, last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Env = append(os.Environ(), c.env...)
	var messages strings.Builder
	cmd.Stderr = &messages
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		n := bytesOf(cmd.Process.Pid, counter)
		last = max(last, n)
		if until > 0 && n >= until {
			err := cmd.Process.Kill()
			<-ended
			return n, last, err
		}
		select {
		case err := <-ended:
			if err == nil && until > 0 {
				err = errors.New("it ended before it was killed")
			}
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", strings.Join(c.args, " "), err, messages.String())
			}
			return 0, last, err
		case <-time.After(time.Millisecond):
		}
	}
}

// bytesOf reads a counter of /proc/PID/io.
func bytesOf(pid int, counter string) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)) //nolint:gosec // of our child
	for line := range strings.Lines(string(text)) {
		var n int64
		if _, err := fmt.Sscanf(line, counter+": %d", &n); err == nil {
			return n
		}
	}
	return 0
}

// allocatedBytes is how much of a file was written.
func allocatedBytes(path string) (int64, error) {
	var stat syscall.Stat_t
	err := syscall.Stat(path, &stat)
	return stat.Blocks * 512, err
}
