package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
)

// sparse is a volume with almost nothing on it.
type sparse struct {
	name string
	size int64
}

// sparsePlaces is in how many places a sparse volume changes.
const sparsePlaces = 100

// holes restores a volume of which a tenth is not zero, onto a target with other bytes.
func (b *bench) holes(ctx context.Context, seed uint64) error {
	o := ours{binary: b.binary, repo: b.path("ours")}
	if err := o.create(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(b.volume.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(punch(f, 0, b.size), f.Close(), b.volume.forget()); err != nil {
		return err
	}
	const length = 4 * mib
	places := scattered(rand.New(rand.NewPCG(seed, 'z')), b.size/length, b.size/length/10)
	if _, err := change(b.volume.path(), places, length, seed); err != nil {
		return fmt.Errorf("change volume: %w", err)
	}
	if _, err := rawAccess(ctx, b.target.path(), b.size, true); err != nil {
		return fmt.Errorf("write device: %w", err)
	}
	_, image, err := o.backup(ctx, b.volume.path(), "Full")
	if err != nil {
		return err
	}
	s, _, err := o.child("image", "restore", "--snapshot", image.SnapshotID, "--device", b.target.path()).run(ctx)
	if err != nil {
		return err
	}
	s.Work = b.size
	b.report.add(stepRestoreHoles, s)
	if err := sameBytes(ctx, b.volume.path(), b.target.path(), b.size); err != nil {
		return fmt.Errorf("check restore: %w", err)
	}
	return errors.Join(b.clear(), os.RemoveAll(o.repo))
}

// sparse backs up an empty volume, and then a quarter of the benchmark's size (1 GiB of 4),
// in 100 places.
func (b *bench) sparse(ctx context.Context, s sparse) error {
	o := ours{binary: b.binary, repo: b.path("ours")}
	if err := o.create(ctx); err != nil {
		return err
	}
	file := b.path("sparse")
	defer os.Remove(file) //nolint:errcheck // the directory goes anyway
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(s.size), f.Close(), writeList(b.path("allocated"), nil)); err != nil {
		return err
	}
	first, _, err := o.backup(ctx, file, "Full", "--allocated", b.path("allocated"))
	if err != nil {
		return err
	}
	b.report.add(s.name+", empty", first)
	length := max(mib, b.size/4/sparsePlaces/mib*mib)
	places := scattered(rand.New(rand.NewPCG(uint64(s.size), 's')), s.size/length, sparsePlaces)
	changed, err := change(file, places, length, uint64(s.size))
	if err != nil {
		return fmt.Errorf("change sparse volume: %w", err)
	}
	if err := writeList(b.path("changed"), changed); err != nil {
		return err
	}
	second, _, err := o.backup(ctx, file, "Incremental", "--changed", b.path("changed"))
	if err != nil {
		return err
	}
	second.Changed = total(changed)
	b.report.add(s.name, second)
	return os.RemoveAll(o.repo)
}
