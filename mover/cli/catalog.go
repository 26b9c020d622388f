package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/blockmover/blockmover/internal/repository"
)

func newListCommand() *cobra.Command {
	var r repoFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images of a volume, or of all, newest first",
		Args:  cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			key, err := volumeOrAll(cmd.Flags())
			if err != nil {
				return err
			}
			return r.use(ctx, func(store repository.Store) error {
				images, hidden, err := listImages(ctx, store, key)
				if err != nil {
					return err
				}
				for _, l := range hidden {
					for _, s := range l.Images {
						s.Damage = l.Cause
						images = append(images, s)
					}
				}
				if err := printImages(cmd.OutOrStdout(), images); err != nil {
					return err
				}
				unclear := printUnclear(cmd.ErrOrStderr(), hidden)
				if len(hidden) > 0 {
					return fmt.Errorf("list: the repository has lost a part of its index or of its manifests; %d images are known to be hit%s", countImages(hidden), unclear)
				}
				return nil
			})
		}),
	}
	r.addReading(cmd)
	cmd.Flags().String("volume", "", "`NAMESPACE/PVC` that the images are filed under; the default is all volumes")
	return cmd
}

// volumeOrAll reads the flag "volume". Without it, the result is no volume, which means all.
func volumeOrAll(flags *pflag.FlagSet) (repository.VolumeKey, error) {
	if f := flags.Lookup("volume"); f.Changed {
		return ParseVolume(f.Value.String())
	}
	return repository.VolumeKey{}, nil
}

// listImages lists the images of a volume, newest first, or those of all volumes. The losses are what hides others of them.
func listImages(ctx context.Context, store repository.Store, volume repository.VolumeKey) (all []repository.Snapshot, hidden []repository.Loss, err error) {
	volumes := []repository.VolumeKey{volume}
	if volume == (repository.VolumeKey{}) {
		if volumes, err = store.Volumes(ctx); err != nil {
			return nil, nil, err
		}
	}
	for _, v := range volumes {
		images, err := store.List(ctx, v)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, images...)
	}
	hidden, err = lossesOf(ctx, store, volume)
	return all, hidden, err
}

// lossesOf returns what hides images of a volume, or of all volumes, and what hides images that cannot be told.
func lossesOf(ctx context.Context, store repository.Store, volume repository.VolumeKey) (hidden []repository.Loss, err error) {
	losses, err := store.Losses(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range losses {
		unclear := len(l.Images) == 0
		if volume != (repository.VolumeKey{}) {
			l.Images = slices.DeleteFunc(l.Images, func(s repository.Snapshot) bool { return s.Volume != volume })
		}
		if unclear || len(l.Images) > 0 {
			hidden = append(hidden, l)
		}
	}
	return hidden, nil
}

func printImages(out io.Writer, images []repository.Snapshot) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	printLine(t, "SNAPSHOT\tVOLUME\tTIME\tKIND\tSIZE\tPARENT")
	for _, s := range images {
		if s.Damage != nil {
			printLine(t, "%s\t%s\t%s\tdamaged: %s", s.ID, s.Volume, formatTime(s.Start), OneLine(s.Damage))
			continue
		}
		printLine(t, "%s\t%s\t%s\t%s\t%s\t%s", s.ID, s.Volume, formatTime(s.Meta.SnapshotTime), s.Meta.Kind, formatBytes(s.Meta.Size), orDash(string(s.Meta.Parent)))
	}
	return t.Flush()
}

// printLine prints for people. An error of printing does not change the result of a command.
func printLine(out io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(out, format+"\n", args...)
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newDeleteCommand() *cobra.Command {
	var (
		r        repoFlags
		snapshot string
		force    bool
	)
	cmd := &cobra.Command{
		Use:   "delete",
		Short: "Delete an image",
		Long: `Delete forgets an image. Others that are based on it stay whole. The space comes
back when the repository's maintenance runs. What is no image of these commands is
never deleted.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			return r.useDirectory(ctx, func(store repository.Store) error {
				id := repository.SnapshotID(snapshot)
				if !force {
					// Delete itself accepts an image that does not exist.
					image, err := store.OpenReader(ctx, id)
					if err != nil {
						return fmt.Errorf("delete image, which --force does even if it cannot be read: %w", err)
					}
					defer image.Close() //nolint:errcheck // it was only opened
				}
				if err := store.Delete(ctx, id); err != nil {
					return err
				}
				printLine(cmd.OutOrStdout(), "image %s is deleted", id)
				return nil
			})
		}),
	}
	r.add(cmd)
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "`ID` of the image")
	cmd.Flags().BoolVar(&force, "force", false, "delete it even if it is damaged, and do not mind if it is not there")
	required(cmd.Flags(), "snapshot")
	return cmd
}
