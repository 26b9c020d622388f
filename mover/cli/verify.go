package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// shownDamage is how many damaged ranges of an image are printed.
const shownDamage = 10

type verifyOptions struct {
	repo     repoFlags
	snapshot string
}

func newVerifyCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Read every byte of an image, of all images of a volume, or of all",
		Long: `Verify reads images the way a restore does, and says which ranges cannot be
restored. The repository authenticates what it stores: what can be read is what
was written.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error { return o.run(ctx, cmd) }),
	}
	o.repo.addReading(cmd)
	cmd.Flags().StringVar(&o.snapshot, "snapshot", "", "`ID` of the image")
	cmd.Flags().String("volume", "", "`NAMESPACE/PVC` whose images are read; the default is all images")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "volume")
	return cmd
}

func (o *verifyOptions) run(ctx context.Context, cmd *cobra.Command) error {
	volume, err := volumeOrAll(cmd.Flags())
	if err != nil {
		return err
	}
	if cmd.Flags().Changed("snapshot") && o.snapshot == "" {
		return errors.New("verify: --snapshot is empty")
	}
	return o.repo.use(ctx, func(store repository.Store) error {
		ids, err := o.images(ctx, store, volume)
		if err != nil {
			return err
		}
		bad := 0
		for _, id := range ids {
			whole, err := verifyImage(ctx, store, id, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if !whole {
				bad++
			}
		}
		if bad > 0 {
			return fmt.Errorf("verify: %d of %d images are damaged", bad, len(ids))
		}
		return nil
	})
}

// images returns the images to read. An image that is asked for by its ID must exist: a
// missing one is an error, not damage.
func (o *verifyOptions) images(ctx context.Context, store repository.Store, volume repository.VolumeKey) ([]repository.SnapshotID, error) {
	if o.snapshot == "" {
		return imagesOf(ctx, store, volume)
	}
	id := repository.SnapshotID(o.snapshot)
	if _, err := store.Get(ctx, id); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return []repository.SnapshotID{id}, nil
}

// imagesOf returns the images of a volume, or all images. It is an error if there are none.
func imagesOf(ctx context.Context, store repository.Store, volume repository.VolumeKey) ([]repository.SnapshotID, error) {
	images, err := listImages(ctx, store, volume)
	switch {
	case err != nil:
		return nil, err
	case len(images) == 0 && volume == (repository.VolumeKey{}):
		return nil, errors.New("verify: the repository has no images")
	case len(images) == 0:
		return nil, fmt.Errorf("verify: volume %s has no images", volume)
	}
	ids := make([]repository.SnapshotID, 0, len(images))
	for _, s := range images {
		ids = append(ids, s.ID)
	}
	return ids, nil
}

// verifyImage prints what it finds, and reports whether the image is whole. Errors come from
// the context or from printing.
func verifyImage(ctx context.Context, store repository.Store, id repository.SnapshotID, out, messages io.Writer) (bool, error) {
	image, err := store.OpenReader(ctx, id)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		_, err := fmt.Fprintf(out, "%s  damaged: %s\n", id, OneLine(err))
		return false, err
	}
	defer image.Close() //nolint:errcheck // it was only read
	v := verification{image: image, shown: func(d damage) error {
		_, err := fmt.Fprintf(out, "%s  damaged in %s: %s\n", id, d.Extent, OneLine(d.cause))
		return err
	}}
	size := image.Meta().Size
	stop := startMeter(messages, "verify "+string(id), v.done.Load, func() int64 { return size })
	err = v.run(ctx)
	stop()
	switch {
	case err != nil:
		return false, err
	case v.ranges > 0:
		_, err = fmt.Fprintf(out, "%s  damaged: %s of %s cannot be read, in %d ranges\n", id, formatBytes(v.bytes), formatBytes(size), v.ranges)
		return false, err
	}
	_, err = fmt.Fprintf(out, "%s  ok, %s\n", id, formatBytes(size))
	return true, err
}

// damage is a range that cannot be read, with the cause.
type damage struct {
	block.Extent
	cause error
}

// verification reads one image.
type verification struct {
	image repository.VolumeReader
	// shown is called for the first damaged ranges.
	shown func(damage) error

	done atomic.Int64
	// ranges and bytes count what cannot be read.
	ranges int
	bytes  int64
	// last is the damaged range that may still grow.
	last damage
}

func (v *verification) run(ctx context.Context) error {
	meta := v.image.Meta()
	var buffers [scanWorkers][]byte
	err := scan(ctx, whole(meta.Size), func(ctx context.Context, worker int, e block.Extent) ([]damage, error) {
		if buffers[worker] == nil {
			buffers[worker] = make([]byte, meta.ChunkSize)
		}
		return v.read(ctx, e, buffers[worker])
	}, v.note)
	if err != nil {
		return err
	}
	// The image must end where its document says.
	if n, err := v.image.ReadAt(make([]byte, 1), meta.Size); n != 0 || !errors.Is(err, io.EOF) {
		end := damage{block.Extent{Offset: meta.Size, Length: 1}, fmt.Errorf("%w: image goes on after its end", repository.ErrCorrupt)}
		if err := v.note([]damage{end}); err != nil {
			return err
		}
	}
	return v.flush()
}

// read reads a range chunk by chunk, and continues after damaged chunks.
func (v *verification) read(ctx context.Context, e block.Extent, buf []byte) ([]damage, error) {
	var bad []damage
	for off := e.Offset; off < e.End(); {
		part := block.Extent{Offset: off, Length: min(int64(len(buf)), e.End()-off)}
		zero, err := isZero(ctx, v.image, part)
		if err == nil && !zero {
			var n int
			if n, err = v.image.ReadAt(buf[:part.Length], part.Offset); int64(n) == part.Length {
				err = nil
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			bad = append(bad, damage{part, err})
		}
		v.done.Add(part.Length)
		off = part.End()
	}
	return bad, nil
}

// note joins neighbouring ranges. The cause is that of the first.
func (v *verification) note(found []damage) error {
	for _, d := range found {
		v.bytes += d.Length
		if v.last.Length > 0 && v.last.End() == d.Offset {
			v.last.Length += d.Length
			continue
		}
		if err := v.flush(); err != nil {
			return err
		}
		v.ranges++
		v.last = d
	}
	return nil
}

func (v *verification) flush() error {
	if v.last.Length == 0 || v.ranges > shownDamage {
		return nil
	}
	d := v.last
	v.last = damage{}
	return v.shown(d)
}
