package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// rateTime is how long a run of rateTable takes at its limit, and rateWindow over what the limit has to hold.
	rateTime   = 25
	rateWindow = 5 * time.Second
	// rateEvery is how often the counter of the device is read.
	rateEvery = 50 * time.Millisecond
)

// rates are limits, in bytes per second.
var rates = []int64{4 * mib, 20 * mib, 100 * mib}

// rateTable prints what the kernel counts on a device that is read by a backup, and written by a restore, with a rate limit:
// the least and the most over any rateWindow, as a share of the limit.
func rateTable(ctx context.Context, binary, dir string) error {
	fmt.Printf("\nany %s of a backup and of a restore with a rate limit\n%10s %20s %20s\n", rateWindow, "limit", "backup", "restore")
	for _, rate := range rates {
		if err := rateOf(ctx, ours{binary: binary, repo: filepath.Join(dir, "repo")}, filepath.Join(dir, "rate"), rate); err != nil {
			return fmt.Errorf("measure limit of %s: %w", formatBytes(rate), err)
		}
	}
	return nil
}

func rateOf(ctx context.Context, o ours, file string, rate int64) (err error) {
	size := rate * rateTime
	if err := sparseFile(file, size); err != nil {
		return err
	}
	if _, err := change(file, everyMiB(size), mib, rand.Uint64()); err != nil {
		return fmt.Errorf("fill volume: %w", err)
	}
	volume, err := attachLoop(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, volume.close(), os.Remove(file), os.RemoveAll(o.repo)) }()
	if err := o.create(ctx); err != nil {
		return err
	}
	limit := fmt.Sprint(rate)
	var image backup
	read, err := volume.during(countRead, func() error {
		var err error
		_, image, err = o.backup(ctx, volume.path(), "Full", "--rate-limit", limit)
		return err
	})
	if err != nil {
		return err
	}
	written, err := volume.during(countWritten, func() error {
		_, _, err := o.child("image", "restore", "--snapshot", image.SnapshotID, "--device", volume.path(), "--rate-limit", limit).run(ctx)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("%8s/s %20s %20s\n", formatBytes(rate), shareOf(read, rate), shareOf(written, rate))
	return nil
}

// Fields of the statistics of a block device: sectors of 512 bytes. The kernel documents them in block/stat.rst.
const (
	countRead    = 2
	countWritten = 6
)

// count is how many bytes have passed at a time.
type count struct {
	at    time.Time
	bytes int64
}

// during counts what passes through a device while something runs, from the first byte on.
func (d *loopDevice) during(counter int, do func() error) ([]count, error) {
	before, err := d.counted(counter)
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	tick := time.NewTicker(rateEvery)
	defer tick.Stop()
	var counts []count
	for {
		select {
		case err := <-ended:
			return counts, err
		case <-tick.C:
		}
		n, err := d.counted(counter)
		if err != nil {
			return nil, errors.Join(err, <-ended)
		}
		if n > before || len(counts) > 0 {
			counts = append(counts, count{time.Now(), n - before})
		}
	}
}

func (d *loopDevice) counted(counter int) (int64, error) {
	text, err := os.ReadFile("/sys/block/" + filepath.Base(d.path()) + "/stat") //nolint:gosec // of our device
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	if counter >= len(fields) {
		return 0, fmt.Errorf("the statistics of %s have %d fields", d.path(), len(fields))
	}
	var sectors int64
	if _, err := fmt.Sscan(fields[counter], &sectors); err != nil {
		return 0, fmt.Errorf("read statistics of %s: %w", d.path(), err)
	}
	return sectors * 512, nil
}

// shareOf returns the least and the most of a rate over any rateWindow. What comes after the last byte does not count.
func shareOf(counts []count, rate int64) string {
	for len(counts) > 1 && counts[len(counts)-1].bytes == counts[len(counts)-2].bytes {
		counts = counts[:len(counts)-1]
	}
	var shares []float64
	for first, last := 0, 0; last < len(counts); last++ {
		took := counts[last].at.Sub(counts[first].at)
		if took < rateWindow {
			continue
		}
		shares = append(shares, 100*float64(counts[last].bytes-counts[first].bytes)/(float64(rate)*took.Seconds()))
		first++
	}
	if len(shares) == 0 {
		return "too short"
	}
	return fmt.Sprintf("%.0f to %.0f %%", slices.Min(shares), slices.Max(shares))
}
