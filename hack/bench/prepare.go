package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// prefix names the directories in memory; the process ID follows.
const prefix = "blockmover-bench-"

// prepare makes the volumes.
func (b *bench) prepare(memory string) error {
	if err := removeStale(memory); err != nil {
		return err
	}
	// The volume, the target or the growth of the repository by scattered writes, and the
	// repository, which a hot spot doubles: three and a half times the size at most, and room
	// for processes.
	need := b.size*4 + gib
	if free := availableMemory(); free < need {
		return fmt.Errorf("%s of memory are available and %s are needed: set BENCH_SIZE to less than %s", formatBytes(free), formatBytes(need), formatBytes(b.size))
	}
	b.dir = filepath.Join(memory, prefix+strconv.Itoa(os.Getpid()))
	for _, dir := range []string{b.path("volume"), b.path("target")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	b.say("taking %s of memory", formatBytes(need))
	if err := heat(b.path("heat"), need); err != nil {
		return fmt.Errorf("take memory: %w", err)
	}
	var err error
	if b.volume, err = b.device("volume"); err != nil {
		return err
	}
	b.target, err = b.device("target")
	return err
}

func (b *bench) path(names ...string) string {
	return filepath.Join(append([]string{b.dir}, names...)...)
}

// device makes a file in a directory of its own, which kopia backs up, and a loop device for
// it.
func (b *bench) device(name string) (*loopDevice, error) {
	file := b.path(name, "disk.raw")
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(b.size), f.Close()); err != nil {
		return nil, err
	}
	return attachLoop(file)
}

// heat uses memory and frees it in pieces, of which it keeps the first pages in the file
// until that is removed. On a virtual machine, the first use of a page costs several times as
// much as writing it. A guest may return free memory to its host within seconds, in large
// pieces. Which step would pay for that, and how often, would be chance. Memory that is free
// in small pieces stays.
func heat(file string, size int64) error {
	const piece, kept = 256 * kib, 4 * kib
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // memory does not fail late
	buf := make([]byte, mib)
	for n := int64(0); n < size; n += mib {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	for n := int64(0); n < size; n += piece {
		if err := punch(f, n+kept, piece-kept); err != nil {
			return err
		}
	}
	return nil
}

// removeStale removes what a killed bench has left.
func removeStale(memory string) error {
	dirs, err := filepath.Glob(filepath.Join(memory, prefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), prefix))
		if err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func availableMemory() int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}

func (b *bench) cleanUp() error {
	var errs []error
	for _, d := range []*loopDevice{b.volume, b.target} {
		if d != nil {
			errs = append(errs, d.close())
		}
	}
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}
