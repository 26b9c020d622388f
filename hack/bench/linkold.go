package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/blockmover/blockmover/internal/repository"
)

// Repositories that have grown old: a volume with many increments, and many volumes with many nights.
const (
	oldIncrements = 30
	oldVolumes    = 20
	oldNights     = 15
	// oldSize is that of each of the many volumes.
	oldSize = 4 * mib
	// indexBlobs is what the names of blobs of the index begin with.
	indexBlobs = "x"
)

// near is a line on which nothing takes time. What only prepares a measurement goes over it.
var near = line{rate: 1 << 40}

// grow makes increments until there are oldIncrements, and restores the last one. Beside it, a full image of the same volume is
// restored: the random bytes of the increments have made it larger than the first one.
func (r *linkRound) grow(ctx context.Context, made int, seed uint64) error {
	for n := made; n < oldIncrements; n++ {
		if err := r.write(4*kib, seed+uint64(n)); err != nil { //nolint:gosec // a small number
			return err
		}
		_, result, err := r.mover(ctx, near, moverTask{Device: r.volume.path(), Changed: r.path("changed")})
		if err != nil {
			return err
		}
		if result.Kind != repository.Incremental {
			return fmt.Errorf("image %s is %s, want %s", result.SnapshotID, result.Kind, repository.Incremental)
		}
		r.image = result.SnapshotID
	}
	var err error
	if _, r.id, err = r.stockBackup(ctx, near); err != nil {
		return err
	}
	if err := r.restores(ctx, fmt.Sprintf("restore after %d incrementals", oldIncrements)); err != nil {
		return err
	}
	if err := r.create(ctx); err != nil {
		return err
	}
	_, result, err := r.mover(ctx, near, moverTask{Device: r.volume.path()})
	if err != nil {
		return err
	}
	r.image = result.SnapshotID
	return r.restore(ctx, "restore of a full image of the same")
}

// nights backs up many small volumes, one night after the other, in new repositories of both tools, and measures what the next backup and a
// list take. Nothing compacts their indexes meanwhile.
func (l *linkBench) nights(ctx context.Context, t *linkTable, runs int) (err error) {
	if err := l.create(ctx); err != nil {
		return err
	}
	small, err := l.smallVolume()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, small.close(), os.Remove(small.file)) }()
	folder := l.path("folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	backUp := func(k line, n int) (oursSample, kopiaSample linkSample, err error) {
		if err := errors.Join(l.writeSmall(small, n), os.WriteFile(filepath.Join(folder, "file"), fmt.Append(nil, n), 0o600)); err != nil {
			return linkSample{}, linkSample{}, err
		}
		task := moverTask{Device: small.path(), Volume: fmt.Sprintf("volume-%d", n%oldVolumes), Changed: l.path("changed")}
		if oursSample, _, err = l.mover(ctx, k, task); err != nil {
			return linkSample{}, linkSample{}, err
		}
		source := fmt.Sprintf("bench@volume-%d:/data", n%oldVolumes)
		kopiaSample, _, err = l.kopiaOver(ctx, k, l.tool().child("snapshot", "create", "--json", "--no-progress", "--no-auto-maintenance", "--override-source", source, folder))
		return oursSample, kopiaSample, err
	}
	name := fmt.Sprintf("%d small backups of %d volumes: ", oldNights*oldVolumes, oldVolumes)
	for n := range oldNights * oldVolumes {
		if _, _, err := backUp(near, n); err != nil {
			return err
		}
	}
	for _, side := range []string{"kopia/" + linkNamespace, strings.TrimSuffix(stockPrefix, "/")} {
		count, err := l.countIndexBlobs(side)
		if err != nil {
			return err
		}
		t.notes = append(t.notes, fmt.Sprintf("index blobs of each of %d backups in %s: %.2f", oldNights*oldVolumes, side, float64(count)/(oldNights*oldVolumes)))
	}
	for n := range runs {
		s, _, err := l.mover(ctx, t.line, moverTask{})
		if err != nil {
			return err
		}
		t.add(name+"open and list", sideOurs, s)
		if s, _, err = l.kopiaOver(ctx, t.line, l.tool().child("snapshot", "list", "--all")); err != nil {
			return err
		}
		t.add(name+"open and list", sideKopia, s)
		ours, kopia, err := backUp(t.line, n)
		if err != nil {
			return err
		}
		t.add(name+"the next", sideOurs, ours)
		t.add(name+"the next", sideKopia, kopia)
	}
	return nil
}

func (l *linkBench) smallVolume() (*loopDevice, error) {
	file := l.path("small")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, oldSize)); err != nil {
		return nil, err
	}
	return attachLoop(file)
}

// writeSmall changes a block of the small volume.
func (l *linkBench) writeSmall(small *loopDevice, n int) error {
	changed, err := change(small.path(), []int64{int64(n) % (oldSize / (4 * kib))}, 4*kib, uint64(n)) //nolint:gosec // a small number
	if err != nil {
		return err
	}
	return writeList(l.path("changed"), changed)
}

// countIndexBlobs counts the blobs of the index of the repository with a prefix.
func (l *linkBench) countIndexBlobs(prefix string) (count int, err error) {
	entries, err := os.ReadDir(filepath.Join(l.storeDir, linkBucket, prefix))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), indexBlobs) {
			count++
		}
	}
	return count, err
}
