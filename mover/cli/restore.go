package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/restore"
)

type restoreOptions struct {
	repo      repoFlags
	snapshot  string
	device    string
	verify    bool
	resume    bool
	rateLimit sizeFlag
}

func newRestoreCommand() *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Write an image onto a block device or file",
		Long: `Restore writes an image onto a block device, or onto a file that exists, at
least as large as the volume was. Everything that was there is lost: what lies
past the end of the image is zeroed.

With --resume, it reads the device first and fetches only what is not there yet:
for a device on which a restore was interrupted.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error { return o.run(ctx, cmd) }),
	}
	o.repo.addReading(cmd)
	flags := cmd.Flags()
	flags.StringVar(&o.snapshot, "snapshot", "", "`ID` of the image")
	flags.StringVar(&o.device, "device", "", "`path` of the block device or file")
	flags.BoolVar(&o.verify, "verify", false, "read the device again and compare")
	flags.BoolVar(&o.resume, "resume", false, "keep what an interrupted restore has written")
	addRateLimit(flags, &o.rateLimit)
	required(flags, "snapshot", "device")
	return cmd
}

func (o *restoreOptions) run(ctx context.Context, cmd *cobra.Command) error {
	start := time.Now()
	return o.repo.use(ctx, func(store repository.Store) error {
		progress := &datapath.Progress{}
		stop := func() {}
		result, err := restore.Run(ctx, restore.Job{
			Store:    store,
			Snapshot: repository.SnapshotID(o.snapshot),
			Open: func(int64) (device.Writer, error) {
				dev, err := device.OpenWriter(o.device)
				if err != nil {
					return nil, err
				}
				return device.LimitWriter(ctx, dev, o.rateLimit.bytes), nil
			},
			Begun: func(repository.VolumeReader, device.Writer) error {
				stop = startMeter(cmd.ErrOrStderr(), "restore", progress.Done, progress.Total)
				return nil
			},
			Options: datapath.Options{Verify: o.verify, Resume: o.resume, Progress: progress},
		})
		stop()
		switch {
		case err == nil:
		case errors.Is(err, restore.ErrUntouched):
			return err
		case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrCorrupt):
			return fmt.Errorf("%s is incomplete: do not use it; the image is damaged, so restore another one, or put back what is missing: %w", o.device, err)
		default:
			return fmt.Errorf("%s is incomplete: do not use it before a restore has completed, for example this one with --resume: %w", o.device, err)
		}
		u := currentUsage()
		printLine(cmd.OutOrStdout(), "image %s is on %s\n  wrote %s, found %s, zeroed %s\n  %.1f s, %.1f CPU seconds, peak memory %s",
			o.snapshot, o.device, formatBytes(result.BytesWritten), formatBytes(result.BytesFound), formatBytes(result.ZeroBytes),
			time.Since(start).Seconds(), u.CPUSeconds, formatBytes(u.PeakRSS))
		return nil
	})
}
