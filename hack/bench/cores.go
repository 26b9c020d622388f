package main

import (
	"context"
	"fmt"
)

// coresSeen are the cores that a process is told that it has, by GOMAXPROCS. More cores mean more workers, each with its buffers. On a
// machine with fewer cores, it shows what they cost.
var coresSeen = []int{2, 8, 16}

func stepFullOn(cores int) string    { return fmt.Sprintf("full, as on %d cores", cores) }
func stepRestoreOn(cores int) string { return fmt.Sprintf("restore, as on %d cores", cores) }

// cores backs the volume up and restores it as on machines with more cores.
func (b *bench) cores(ctx context.Context, o ours) error {
	for _, n := range coresSeen {
		o.cores = n
		if err := o.create(ctx); err != nil {
			return err
		}
		s, image, err := o.backup(ctx, b.volume.path(), "Full", "--allocated", b.path("allocated"))
		if err != nil {
			return err
		}
		b.report.add(stepFullOn(n), s)
		if err := b.restored(ctx, o, stepRestoreOn(n), image.SnapshotID); err != nil {
			return err
		}
	}
	return nil
}

// concludeCores compares the CPU time. What works for more cores must not cost more of it.
func (r *report) concludeCores() {
	few := coresSeen[0]
	for _, n := range coresSeen[1:] {
		for _, what := range []struct {
			name string
			step func(int) string
		}{{"full", stepFullOn}, {"restore", stepRestoreOn}} {
			cpu := func(cores int) float64 { return r.step(what.step(cores)).Median.CPUSeconds }
			r.atMost(fmt.Sprintf("%s: CPU, as on %d / %d cores", what.name, n, few), divide(cpu(n), cpu(few)), 1.15, "")
		}
	}
}
