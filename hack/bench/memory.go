package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/blockmover/blockmover/mover/heap"
)

const (
	// memoryData is what a volume of memoryTable holds, and memoryPlaces in how many places. Its size is what differs.
	memoryData   = 256 * mib
	memoryPlaces = 256
	// memoryChanges is in how many places of 4 KiB it changes.
	memoryChanges = 4096
	// podMemory is the memory limit of a mover pod that the table is made for. As in the pod, garbage is collected
	// before a tenth of it is left.
	podMemory = 512 * mib
)

var memorySizes = []int64{gib, 100 * gib, tib, 10 * tib}

// memoryTable prints the peak memory of a full and of an incremental backup, and of a restore, of volumes of any size. It
// fails if one of them needs more than a mover pod of podMemory has.
func memoryTable(ctx context.Context, binary, dir string) error {
	fmt.Printf("peak memory, GOMEMLIMIT of a pod with %s\n%10s %12s %12s %12s\n", formatBytes(podMemory), "volume", "full", "incremental", "restore")
	for _, size := range memorySizes {
		peaks, err := memoryOf(ctx, binary, dir, size)
		if err != nil {
			return err
		}
		fmt.Printf("%10s", formatBytes(size))
		for _, peak := range peaks {
			fmt.Printf(" %12s", formatBytes(peak))
		}
		fmt.Println()
		for _, peak := range peaks {
			if peak > podMemory {
				return fmt.Errorf("a volume of %s needs %s, and a pod has %s", formatBytes(size), formatBytes(peak), formatBytes(podMemory))
			}
		}
	}
	return nil
}

func memoryOf(ctx context.Context, binary, dir string, size int64) (peaks [3]int64, err error) {
	volume, target, list := filepath.Join(dir, "volume"), filepath.Join(dir, "target"), filepath.Join(dir, "list")
	o := ours{binary: binary, repo: filepath.Join(dir, "repo"), memoryLimit: heap.Below(podMemory)}
	defer func() {
		for _, path := range []string{volume, target, list, o.repo} {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}()
	for _, file := range []string{volume, target} {
		if err := sparseFile(file, size); err != nil {
			return peaks, err
		}
	}
	if err := o.create(ctx); err != nil {
		return peaks, err
	}
	random := rand.New(rand.NewPCG(uint64(size), 'm'))
	var id string
	for n, step := range []struct {
		kind, flag string
		length     int64
		places     int64
	}{
		{"Full", "--allocated", memoryData / memoryPlaces, memoryPlaces},
		{"Incremental", "--changed", 4 * kib, memoryChanges},
	} {
		written, err := change(volume, scattered(random, size/step.length, step.places), step.length, uint64(n))
		if err != nil {
			return peaks, fmt.Errorf("change volume: %w", err)
		}
		if err := writeList(list, written); err != nil {
			return peaks, err
		}
		s, image, err := o.backup(ctx, volume, step.kind, step.flag, list)
		if err != nil {
			return peaks, err
		}
		peaks[n], id = s.PeakRSS, image.SnapshotID
	}
	s, _, err := o.child("image", "restore", "--snapshot", id, "--device", target).run(ctx)
	peaks[2] = s.PeakRSS
	return peaks, err
}

// sparseFile makes a file that takes no space.
func sparseFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// limits makes the tables of memory, of resuming and of rate limits, in a directory in memory.
func limits(ctx context.Context, binary, memory string) error {
	if err := removeStale(memory); err != nil {
		return err
	}
	dir := filepath.Join(memory, prefix+fmt.Sprint(os.Getpid()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	err := memoryTable(ctx, binary, dir)
	if err == nil {
		err = resumeTable(ctx, binary, dir)
	}
	if err == nil {
		err = rateTable(ctx, binary, dir)
	}
	err = errors.Join(err, os.RemoveAll(dir))
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}
