// Command fscheck checks the file system on a block device, and prints a report: see package
// internal/fscheck. It is in an image of its own, with the programs that it runs. The device is a scratch
// copy: a journal is replayed on it.
//
//	fscheck [-timeout 1h] DEVICE
//
// It exits with 0 whatever it finds, and with another code if it cannot print the report.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/blockmover/blockmover/internal/fscheck"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "fscheck:", err)
		os.Exit(1)
	}
}

func run() error {
	timeout := flag.Duration("timeout", time.Hour, "`time` for all programs together")
	flag.Parse()
	if flag.NArg() != 1 {
		return errors.New("usage: fscheck [-timeout 1h] DEVICE")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	path := flag.Arg(0)
	volume, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	defer func() { _ = volume.Close() }()
	return fscheck.Check(ctx, volume, path, runProgram).Write(os.Stdout)
}

// maxOutput bounds what is kept of the output of a program.
const maxOutput = 1 << 20

// runProgram implements fscheck.Run. What the program prints is shown, too.
func runProgram(ctx context.Context, program string, args ...string) (string, int, error) {
	fmt.Println("$", program, args)
	kept := &head{}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdout = io.MultiWriter(os.Stdout, kept)
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return kept.String(), 0, fmt.Errorf("%s did not end in time: %w", program, ctx.Err())
	case errors.As(err, &exit) && exit.Exited():
		return kept.String(), exit.ExitCode(), nil
	}
	return kept.String(), 0, err
}

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if room := maxOutput - h.Len(); room > 0 {
		_, _ = h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
