package cli

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/repository"
)

func newListCommand() *cobra.Command {
	var (
		r      repoFlags
		volume string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images of a volume, newest first",
		Args:  cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			key, err := parseVolume(volume)
			if err != nil {
				return err
			}
			return r.use(ctx, func(store repository.Store) error {
				images, err := store.List(ctx, key)
				if err != nil {
					return err
				}
				return printImages(cmd.OutOrStdout(), images)
			})
		}),
	}
	r.add(cmd)
	cmd.Flags().StringVar(&volume, "volume", "", "`NAMESPACE/PVC` that the images are filed under")
	required(cmd.Flags(), "volume")
	return cmd
}

func printImages(out io.Writer, images []repository.Snapshot) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	printLine(t, "SNAPSHOT\tTIME\tKIND\tSIZE\tPARENT")
	for _, s := range images {
		if s.Damage != nil {
			printLine(t, "%s\t%s\tdamaged: %s", s.ID, formatTime(s.Start), OneLine(s.Damage))
			continue
		}
		printLine(t, "%s\t%s\t%s\t%s\t%s", s.ID, formatTime(s.Meta.SnapshotTime), s.Meta.Kind, formatBytes(s.Meta.Size), orDash(string(s.Meta.Parent)))
	}
	return t.Flush()
}

// printLine prints what is for people. Whether it arrives does not change what a
// command has done.
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
back when the repository's maintenance runs.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			return r.use(ctx, func(store repository.Store) error {
				id := repository.SnapshotID(snapshot)
				// Delete itself is content with an image that is not there.
				if _, err := store.Get(ctx, id); err != nil && !force {
					return fmt.Errorf("delete image, which --force does even if it cannot be read: %w", err)
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
