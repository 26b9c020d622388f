package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/qcow2"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
	"github.com/blockmover/blockmover/internal/restore"
)

const password = "benchvm"

// keepImages is the way of the images.
func (b *bench) keepImages(ctx context.Context) (outcome, error) {
	way := outcome{name: "images"}
	dir := b.path("repository")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return way, err
	}
	if err := kopia.CreateFilesystem(ctx, dir, password); err != nil {
		return way, err
	}
	store, err := kopia.OpenFilesystem(ctx, dir, password)
	if err != nil {
		return way, err
	}
	defer store.Close(ctx) //nolint:errcheck // everything is flushed
	ids := make([]repository.SnapshotID, len(b.files))
	for n := range b.files {
		if ids[n], err = b.fold(ctx, store, n); err != nil {
			return way, err
		}
	}
	if way.stored, err = usage(dir); err != nil {
		return way, err
	}
	for _, last := range []int{0, len(b.files) - 1} {
		began := time.Now()
		if err := b.restore(ctx, store, ids[last]); err != nil {
			return way, err
		}
		way.full, way.last = way.last, time.Since(began)
		if err := b.compare(ctx, last); err != nil {
			return way, err
		}
	}
	return way, nil
}

// fold backs one file up.
func (b *bench) fold(ctx context.Context, store repository.Store, n int) (id repository.SnapshotID, err error) {
	since := ""
	if n > 0 {
		since = fmt.Sprint(n - 1)
	}
	file, err := device.Open(b.files[n])
	if err != nil {
		return "", err
	}
	disk, err := qcow2.OpenStack(ctx, cbt.ChangeID(since), file)
	if err != nil {
		return "", err
	}
	closeBase := func() error { return nil }
	defer func() { err = errors.Join(err, disk.Close(), closeBase()) }()
	volume := repository.VolumeKey{Namespace: "bench", PVC: "disk"}
	result, err := backup.Run(ctx, backup.Job{
		Store: store, Volume: volume, Operation: fmt.Sprint("operation-", n),
		Open: func() (device.Reader, error) { return disk, nil },
		Plan: func(ctx context.Context, _ device.Reader, history []repository.Snapshot) (chain.Input, error) {
			in := chain.Input{Volume: volume, Request: chain.Request{
				Now: time.Now(),
				Target: repository.Meta{
					Size: disk.Size(), Driver: "bench", VolumeHandle: "disk", SnapshotHandle: fmt.Sprint(n), ChangeID: fmt.Sprint(n),
					SnapshotTime: time.Now(), Mover: "bench",
				},
			}}
			if n == 0 {
				in.Full = []chain.Step{{Reason: chain.NoParent, Detail: "the first file"}}
			}
			var err error
			in, closeBase, err = backup.Fold(ctx, disk, in, store, history)
			return in, err
		},
		Now: time.Now,
	})
	return result.SnapshotID, err
}

// restore writes an image into a new file.
func (b *bench) restore(ctx context.Context, store restore.Store, id repository.SnapshotID) error {
	path := b.path("restored")
	_, err := restore.Run(ctx, restore.Job{
		Store: store, Snapshot: id,
		Open: func(size int64) (device.Writer, error) { return device.CreateWriter(path, size) },
	})
	return err
}
