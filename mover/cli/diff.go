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

// diffUnit is the granularity of a comparison: the block size of most file systems and
// databases.
const diffUnit = 4 << 10

func newDiffCommand() *cobra.Command {
	var r repoFlags
	cmd := &cobra.Command{
		Use:   "diff ID ID",
		Short: "Print the ranges that differ between two images",
		Long: `Diff prints the ranges of the second image that differ from the first, in units
of 4 KiB, as JSON lines {"offset":N,"length":N}: what "image backup --changed"
takes when the first image is the parent of a volume that equals the second. What
both have in common by reference is not read.`,
		Args: cobra.ExactArgs(2),
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			return r.use(ctx, func(store repository.Store) error {
				return printDiff(ctx, store, repository.SnapshotID(args[0]), repository.SnapshotID(args[1]), cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		}),
	}
	r.addReading(cmd)
	return cmd
}

func printDiff(ctx context.Context, store repository.Store, first, second repository.SnapshotID, out, messages io.Writer) error {
	a, err := store.OpenReader(ctx, first)
	if err != nil {
		return err
	}
	defer a.Close() //nolint:errcheck // it was only read
	b, err := store.OpenReader(ctx, second)
	if err != nil {
		return err
	}
	defer b.Close() //nolint:errcheck // it was only read
	sizeA, sizeB := a.Meta().Size, b.Meta().Size
	if sizeA != sizeB {
		printLine(messages, "the first image has %d bytes, the second %d", sizeA, sizeB)
	}
	w := bufio.NewWriter(out)
	d := differ{a: a, b: b, may: func(emit func(block.Extent) error) error { return store.Compare(ctx, first, second, emit) }}
	stop := startMeter(messages, "diff", d.done.Load, func() int64 { return sizeB })
	err = d.run(ctx, func(e block.Extent) error {
		_, err := w.Write(rangefile.Append(w.AvailableBuffer(), e))
		return err
	})
	stop()
	if err != nil {
		return fmt.Errorf("compare images: %w", err)
	}
	return w.Flush()
}

// differ compares two images over the length of the second one. What the first one does not
// have differs.
type differ struct {
	a, b repository.VolumeReader
	// may are the ranges in which the two may differ.
	may ranges
	// done is the offset before which they are compared.
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
	add := func(found []block.Extent) error {
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
	}
	if err := scan(ctx, d.may, d.compare, add); err != nil {
		return err
	}
	if common, size := min(d.a.Meta().Size, d.b.Meta().Size), d.b.Meta().Size; common < size {
		if err := add([]block.Extent{{Offset: common, Length: size - common}}); err != nil {
			return err
		}
	}
	return flush()
}

// compare finds the differences in a range that both images have.
func (d *differ) compare(_ context.Context, worker int, e block.Extent) ([]block.Extent, error) {
	defer d.reached(e.End())
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

// reached advances done. Steps may end in any order.
func (d *differ) reached(end int64) {
	for {
		old := d.done.Load()
		if end <= old || d.done.CompareAndSwap(old, end) {
			return
		}
	}
}
