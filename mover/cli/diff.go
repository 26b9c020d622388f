package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt/rangefile"
	"github.com/blockmover/blockmover/internal/repository"
)

// diffUnit is the granularity of a comparison: what most file systems and
// databases write at once.
const diffUnit = 4 << 10

func newDiffCommand() *cobra.Command {
	var r repoFlags
	cmd := &cobra.Command{
		Use:   "diff ID ID",
		Short: "Print the ranges that differ between two images",
		Long: `Diff prints the ranges of the second image that differ from the first, in units
of 4 KiB, as JSON lines {"offset":N,"length":N}: what "image backup --changed"
takes when the first image is the parent of a volume that equals the second. It
reads both images.`,
		Args: cobra.ExactArgs(2),
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			return r.use(ctx, func(store repository.Store) error {
				first, err := store.OpenReader(ctx, repository.SnapshotID(args[0]))
				if err != nil {
					return err
				}
				defer first.Close() //nolint:errcheck // it was only read
				second, err := store.OpenReader(ctx, repository.SnapshotID(args[1]))
				if err != nil {
					return err
				}
				defer second.Close() //nolint:errcheck // it was only read
				return printDiff(ctx, first, second, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		}),
	}
	r.add(cmd)
	return cmd
}

func printDiff(ctx context.Context, a, b repository.VolumeReader, out, messages io.Writer) error {
	sizeA, sizeB := a.Meta().Size, b.Meta().Size
	if sizeA != sizeB {
		printLine(messages, "the first image has %d bytes, the second %d", sizeA, sizeB)
	}
	w := bufio.NewWriter(out)
	d := differ{a: a, b: b}
	stop := startMeter(messages, "diff", d.done.Load, func() int64 { return sizeB })
	err := d.run(ctx, func(e block.Extent) error {
		_, err := w.Write(rangefile.Append(w.AvailableBuffer(), e))
		return err
	})
	stop()
	if err != nil {
		return fmt.Errorf("compare images: %w", err)
	}
	return w.Flush()
}

// differ compares two images over the length of the second one. What the first
// one does not have differs.
type differ struct {
	a, b    repository.VolumeReader
	done    atomic.Int64
	buffers [scanWorkers][2][]byte
}

func (d *differ) run(ctx context.Context, emit func(block.Extent) error) error {
	var last block.Extent
	flush := func() error {
		if last.Length == 0 {
			return nil
		}
		return emit(last)
	}
	err := scan(ctx, d.b.Meta().Size, d.compare, func(found []block.Extent) error {
		for _, e := range found {
			if e.Offset == last.End() && last.Length > 0 {
				last.Length += e.Length
				continue
			}
			if err := flush(); err != nil {
				return err
			}
			last = e
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// compare finds what differs in one range.
func (d *differ) compare(ctx context.Context, worker int, e block.Extent) ([]block.Extent, error) {
	defer d.done.Add(e.Length)
	common := max(0, min(d.a.Meta().Size-e.Offset, e.Length))
	var found []block.Extent
	if common > 0 {
		var err error
		if found, err = d.compareCommon(ctx, worker, block.Extent{Offset: e.Offset, Length: common}); err != nil {
			return nil, err
		}
	}
	if common < e.Length {
		found = append(found, block.Extent{Offset: e.Offset + common, Length: e.Length - common})
	}
	return found, nil
}

// compareCommon compares a range that both images have.
func (d *differ) compareCommon(ctx context.Context, worker int, e block.Extent) ([]block.Extent, error) {
	zeroA, err := isZero(ctx, d.a, e)
	if err != nil {
		return nil, err
	}
	zeroB, err := isZero(ctx, d.b, e)
	if err != nil || zeroA && zeroB {
		return nil, err
	}
	buf := &d.buffers[worker]
	for i, image := range []repository.VolumeReader{d.a, d.b} {
		if buf[i] == nil {
			buf[i] = make([]byte, scanStep)
		}
		if n, err := image.ReadAt(buf[i][:e.Length], e.Offset); int64(n) < e.Length {
			return nil, err
		}
	}
	var found []block.Extent
	for off := int64(0); off < e.Length; off += diffUnit {
		end := min(off+diffUnit, e.Length)
		if !bytes.Equal(buf[0][off:end], buf[1][off:end]) {
			found = append(found, block.Extent{Offset: e.Offset + off, Length: end - off})
		}
	}
	return found, nil
}
