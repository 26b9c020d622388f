package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// shownDamage is how many damaged ranges of an image are printed.
const shownDamage = 10

type verifyOptions struct {
	repo      repoFlags
	snapshots []string
	json      bool
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
	cmd.Flags().StringSliceVar(&o.snapshots, "snapshot", nil, "`ID` of the image; several are possible")
	cmd.Flags().BoolVar(&o.json, "json", false, "print an object for each image, one a line")
	cmd.Flags().String("volume", "", "`NAMESPACE/PVC` whose images are read; the default is all images")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "volume")
	return cmd
}

func (o *verifyOptions) run(ctx context.Context, cmd *cobra.Command) error {
	volume, err := volumeOrAll(cmd.Flags())
	if err != nil {
		return err
	}
	if cmd.Flags().Changed("snapshot") && (len(o.snapshots) == 0 || slices.Contains(o.snapshots, "")) {
		return errors.New("verify: --snapshot is empty")
	}
	err = o.repo.use(ctx, func(store repository.Store) error { return o.verify(ctx, cmd, store, volume) })
	if o.json && errors.Is(err, repository.ErrUnusable) {
		// Nothing can be read of any image. Whoever has named them is told so of each.
		for _, id := range o.snapshots {
			err = errors.Join(err, o.printer(cmd.OutOrStdout(), target{id: repository.SnapshotID(id)}).unreadable(err))
		}
	}
	return err
}

// target is an image to read. The volume may be unknown.
type target struct {
	id     repository.SnapshotID
	volume repository.VolumeKey
}

func (o *verifyOptions) printer(out io.Writer, image target) printer {
	if !o.json {
		return &textPrinter{out: out, image: image}
	}
	result := Verification{SnapshotID: image.id}
	if image.volume != (repository.VolumeKey{}) {
		result.Volume = image.volume.String()
	}
	return &jsonPrinter{out: out, result: result}
}

func (o *verifyOptions) verify(ctx context.Context, cmd *cobra.Command, store repository.Store, volume repository.VolumeKey) error {
	images, hidden, err := o.images(ctx, store, volume)
	if err != nil {
		return err
	}
	bad := 0
	for _, image := range images {
		whole, err := verifyImage(ctx, store, image.id, o.printer(cmd.OutOrStdout(), image), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if !whole {
			bad++
		}
	}
	for _, l := range hidden {
		for _, s := range l.Images {
			if err := o.printer(cmd.OutOrStdout(), target{s.ID, s.Volume}).unreadable(l.Cause); err != nil {
				return err
			}
		}
		bad += len(l.Images)
	}
	switch unclear := printUnclear(cmd.ErrOrStderr(), hidden); {
	case bad > 0:
		return fmt.Errorf("verify: %d of %d images are damaged%s: restore others, or put back what is missing", bad, len(images)+countImages(hidden), unclear)
	case unclear != "":
		return errors.New("verify: the images that can be found are whole" + unclear)
	}
	return nil
}

func countImages(losses []repository.Loss) (n int) {
	for _, l := range losses {
		n += len(l.Images)
	}
	return n
}

// printUnclear prints what is lost and hides images that nobody can name. It returns the end of a sentence that says so, or "".
func printUnclear(messages io.Writer, losses []repository.Loss) string {
	end := ""
	for _, l := range losses {
		if len(l.Images) == 0 {
			printLine(messages, "the repository may have more images: %s", OneLine(l.Cause))
			end = ", and there may be images that cannot be found"
		}
	}
	return end
}

// images returns the images to read, and what hides others of them. An image that is asked for by its ID must exist: a
// missing one is an error, not damage.
func (o *verifyOptions) images(ctx context.Context, store repository.Store, volume repository.VolumeKey) ([]target, []repository.Loss, error) {
	if len(o.snapshots) == 0 {
		return imagesOf(ctx, store, volume)
	}
	images := make([]target, 0, len(o.snapshots))
	for _, text := range o.snapshots {
		id := repository.SnapshotID(text)
		s, err := store.Get(ctx, id)
		// With --json, an image that is not there is damage of a backup that names it.
		if err != nil && s.ID == "" && !o.json {
			return nil, nil, fmt.Errorf("verify: %w", err)
		}
		images = append(images, target{id, s.Volume})
	}
	return images, nil, nil
}

// imagesOf returns the images of a volume, or all images, and what hides others. It is an error if there are none.
func imagesOf(ctx context.Context, store repository.Store, volume repository.VolumeKey) ([]target, []repository.Loss, error) {
	found, hidden, err := listImages(ctx, store, volume)
	switch {
	case err != nil:
		return nil, nil, err
	case len(found)+len(hidden) > 0:
	case volume == (repository.VolumeKey{}):
		return nil, nil, errors.New("verify: the repository has no images")
	default:
		return nil, nil, fmt.Errorf("verify: volume %s has no images", volume)
	}
	images := make([]target, 0, len(found))
	for _, s := range found {
		images = append(images, target{s.ID, s.Volume})
	}
	return images, hidden, nil
}

// verifyImage prints what it finds, and reports whether the image is whole. Errors come from
// the context or from printing.
func verifyImage(ctx context.Context, store repository.Store, id repository.SnapshotID, shown printer, messages io.Writer) (bool, error) {
	image, err := store.OpenReader(ctx, id)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return false, shown.unreadable(err)
	}
	defer image.Close() //nolint:errcheck // it was only read
	v := verification{image: image, shown: shown.damaged}
	size := image.Meta().Size
	stop := startMeter(messages, "verify "+string(id), v.done.Load, func() int64 { return size })
	err = v.run(ctx)
	stop()
	if err != nil {
		return false, err
	}
	return v.ranges == 0, shown.end(size, v.bytes, v.ranges)
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
