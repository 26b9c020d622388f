package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
)

// pattern is a way to change 1 % of a volume. The limit is the issue's.
type pattern struct {
	name   string
	length int64 // of one write; 0 is all in one place
	limit  float64
}

// hotspot is a workload of hotspotSteps incremental backups.
type hotspot struct {
	name   string
	length int64
	limit  float64
}

// incremental changes 1 % of the volume and backs it up.
func (b *bench) incremental(ctx context.Context, o ours, p pattern, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 'i'))
	length, count := p.length, int64(1)
	if length == 0 {
		length = b.size / 100 / mib * mib
		length = max(length, mib)
	} else {
		count = max(1, b.size/100/length)
	}
	_, err := b.increment(ctx, o, p.name, scattered(rnd, b.size/length, count), length, seed)
	return err
}

func (b *bench) increment(ctx context.Context, o ours, name string, places []int64, length int64, seed uint64) (backup, error) {
	// Seeds of the mix come first.
	changed, err := change(b.volume.path(), places, length, seed+1000)
	if err != nil {
		return backup{}, fmt.Errorf("change volume: %w", err)
	}
	if err := writeList(b.path("changed"), changed); err != nil {
		return backup{}, err
	}
	s, image, err := o.backup(ctx, b.volume.path(), "Incremental", "--changed", b.path("changed"))
	if err != nil {
		return backup{}, err
	}
	s.Changed = total(changed)
	b.report.add(name, s)
	return image, nil
}

// hotspot backs up a volume repeatedly that is mostly written in the same places, and
// restores the last image.
func (b *bench) hotspot(ctx context.Context, h hotspot) error {
	o := ours{binary: b.binary, repo: b.path("ours")}
	if err := o.create(ctx); err != nil {
		return err
	}
	if _, err := b.fill(ctx, 0); err != nil {
		return err
	}
	if _, _, err := o.backup(ctx, b.volume.path(), "Full", "--allocated", b.path("allocated")); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(h.length), 'h'))
	var last backup
	for i := range uint64(hotspotSteps) {
		var err error
		places := hot(rnd, b.size/h.length, b.size/hotspotShare/h.length)
		if last, err = b.increment(ctx, o, h.name, places, h.length, uint64(h.length)+i); err != nil {
			return err
		}
	}
	if _, _, err := o.child("image", "restore", "--snapshot", last.SnapshotID, "--device", b.target.path()).run(ctx); err != nil {
		return err
	}
	if err := sameBytes(ctx, b.volume.path(), b.target.path(), b.size); err != nil {
		return fmt.Errorf("check restore: %w", err)
	}
	return errors.Join(b.clear(), os.RemoveAll(o.repo))
}
