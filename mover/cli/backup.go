package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/rangefile"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

// CSI's names for a volume that is backed up here.
const (
	localDriver       = "local"
	localHandlePrefix = "local:"
)

// stdin is the file name of standard input.
const stdin = "-"

type backupOptions struct {
	repo        repoFlags
	volume      string
	device      string
	changed     string
	allocated   string
	parent      string
	operation   string
	interval    sizeFlag
	compression string
	rateLimit   sizeFlag
	json        bool
}

func newBackupCommand() *cobra.Command {
	var o backupOptions
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Make an image of a block device or file",
		Long: `Backup makes an image of a block device or file, which must not change meanwhile.

With --changed and a parent, it reads those ranges and takes everything else from
the parent. They must cover every byte that differs from the parent: what they
leave out is not looked at. "auto" is the newest image of the volume; where other
hands delete images, name the parent by its ID. Without --changed, or without a
usable parent, it reads the --allocated ranges, or everything.

With --operation, a backup that was interrupted goes on where it was when the same
command is run again: the device, which must not have changed, and all options are
those of before. An operation that is complete says again what it has saved.

Ranges are JSON lines {"offset":N,"length":N}, in ascending order.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error { return o.run(ctx, cmd) }),
	}
	o.repo.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&o.volume, "volume", "", "`NAMESPACE/PVC` that the image is filed under")
	flags.StringVar(&o.device, "device", "", "`path` of the block device or file")
	flags.StringVar(&o.changed, "changed", "", "`file` with the ranges that differ from the parent; - is standard input")
	flags.StringVar(&o.allocated, "allocated", "", "`file` with the ranges that hold data; - is standard input")
	flags.StringVar(&o.parent, "parent", identity.ParentAuto, "`image` that this one is based on: auto, none or an ID")
	flags.StringVar(&o.operation, "operation", "", "`name` of this backup, by which it goes on when it is run again")
	o.interval.least = repository.MinCheckpointInterval
	flags.Var(&o.interval, "checkpoint-interval", "record what is finished after each `size` that was read; the default is "+resource.NewQuantity(repository.DefaultCheckpointInterval, resource.BinarySI).String())
	flags.StringVar(&o.compression, "compression", string(repository.DefaultCompression), "`method`: s2, zstd for less space and more CPU time, or none")
	addRateLimit(flags, &o.rateLimit)
	flags.BoolVar(&o.json, "json", false, "print the result as a JSON object")
	required(flags, "volume", "device")
	return cmd
}

// summary is the result that --json prints. Sizes are bytes.
type summary struct {
	SnapshotID      repository.SnapshotID `json:"snapshotID"`
	Kind            repository.Kind       `json:"kind"`
	Reason          chain.Reason          `json:"reason"`
	Parent          repository.SnapshotID `json:"parent"`
	VolumeSize      int64                 `json:"volumeSize"`
	ResumedBytes    int64                 `json:"resumedBytes"`
	BytesRead       int64                 `json:"bytesRead"`
	BytesHashed     int64                 `json:"bytesHashed"`
	BytesUploaded   int64                 `json:"bytesUploaded"`
	MetadataBytes   int64                 `json:"metadataBytes"`
	ChunksWritten   int64                 `json:"chunksWritten"`
	ChunksInherited int64                 `json:"chunksInherited"`
	ZeroBytes       int64                 `json:"zeroBytes"`
	Seconds         float64               `json:"seconds"`
	usage
}

func (o *backupOptions) run(ctx context.Context, cmd *cobra.Command) error {
	start := time.Now()
	volume, err := o.check(cmd.Flags().Changed("operation"))
	if err != nil {
		return err
	}
	if _, err := o.repo.directory(); err != nil {
		return err
	}
	dev, err := device.Open(o.device)
	if err != nil {
		return err
	}
	defer dev.Close() //nolint:errcheck // it was only read
	source, err := o.source(cmd.InOrStdin(), dev.Size())
	if err != nil {
		return err
	}
	return o.repo.useDirectory(ctx, func(store repository.Store) error {
		s, err := o.backUp(ctx, cmd.ErrOrStderr(), store, device.LimitReader(ctx, dev, o.rateLimit.bytes), volume, source)
		if err != nil {
			return err
		}
		s.Seconds = time.Since(start).Seconds()
		return o.print(cmd.OutOrStdout(), s)
	})
}

// backUp makes the image.
func (o *backupOptions) backUp(ctx context.Context, messages io.Writer, store repository.Store,
	dev device.Reader, volume repository.VolumeKey, source rangefile.Source,
) (summary, error) {
	// One name for the operation and the instant: a file has neither.
	id := o.operation
	if id == "" {
		id = "local-" + rand.Text()
	}
	target := repository.Meta{
		Size:         dev.Size(),
		Driver:       localDriver,
		VolumeHandle: localHandlePrefix + volume.String(),
		ChangeID:     id,
		SnapshotTime: time.Now().UTC(),
		Mover:        identity.DataMover,
	}
	if o.operation != "" {
		target.SnapshotHandle = id // the user who repeats an operation says that the device has not changed
	}
	progress := &datapath.Progress{}
	stop := func() {}
	result, err := backup.Run(ctx, backup.Job{
		Store:     store,
		Volume:    volume,
		Operation: id,
		Size:      dev.Size(),
		Open:      func() (device.Reader, error) { return dev, nil },
		Plan: func(ctx context.Context, _ device.Reader, history []repository.Snapshot) (chain.Input, error) {
			parent, base, err := resolve(ctx, store, o.parent, volume, target, history)
			source.Base = base
			return chain.Input{
				Request:            chain.Request{Parent: parent, Now: target.SnapshotTime, Target: target},
				Source:             source,
				Compression:        repository.Compression(o.compression),
				CheckpointInterval: o.interval.bytes,
			}, err
		},
		Begun: func(b backup.Result) error {
			if b.Detail != "" {
				printLine(messages, "%s image: %s", b.Kind, b.Detail)
			}
			if b.Resumed > 0 {
				printLine(messages, "an earlier run of %s has finished %s", id, formatBytes(b.Resumed))
			}
			stop = startMeter(messages, "backup", progress.Done, progress.Total)
			return nil
		},
		Options: datapath.Options{Progress: progress},
		Now:     time.Now,
	})
	stop()
	if err != nil {
		return summary{}, err
	}
	if result.SavedBefore {
		printLine(messages, "an earlier run of %s has saved the image", id)
	}
	return summarize(result), nil
}

// summarize renders a result. Only ResumedBytes includes what earlier runs have finished.
func summarize(b backup.Result) summary {
	return summary{
		SnapshotID:   b.SnapshotID,
		Kind:         b.Kind,
		Reason:       b.Reason,
		Parent:       b.Parent,
		VolumeSize:   b.Size,
		ResumedBytes: b.Resumed,
		BytesRead:    b.Read.BytesRead,
		// Zeros are recognised without being hashed, everything else is hashed.
		BytesHashed:     b.Read.BytesRead - b.Written.ZeroBytes,
		BytesUploaded:   b.Written.BytesUploaded,
		MetadataBytes:   b.Written.MetadataBytes,
		ChunksWritten:   b.Written.ChunksWritten,
		ChunksInherited: b.Written.ChunksInherited,
		ZeroBytes:       b.Written.ZeroBytes,
		usage:           currentUsage(),
	}
}

// operationPattern matches the IDs of operations. An ID becomes a label in the repository.
var operationPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)

// check checks the options, without looking at anything else.
func (o *backupOptions) check(named bool) (repository.VolumeKey, error) {
	switch {
	case o.parent == "":
		return repository.VolumeKey{}, errors.New("--parent is empty: want auto, none or an ID")
	case o.parent == identity.ParentNone && o.changed != "":
		return repository.VolumeKey{}, errors.New("--changed is relative to a parent: it does not go with --parent none")
	case o.changed == stdin && o.allocated == stdin:
		return repository.VolumeKey{}, errors.New("--changed and --allocated cannot both be standard input")
	case !slices.Contains(repository.Compressions, repository.Compression(o.compression)):
		return repository.VolumeKey{}, fmt.Errorf("--compression is %q: want s2, zstd or none", o.compression)
	case named && !operationPattern.MatchString(o.operation):
		return repository.VolumeKey{}, fmt.Errorf("--operation %q: want up to 128 letters, digits, or any of . _ : - after the first", o.operation)
	}
	return ParseVolume(o.volume)
}

// source reads the lists of ranges of a device of size bytes.
func (o *backupOptions) source(in io.Reader, size int64) (rangefile.Source, error) {
	s := rangefile.Source{Capacity: size}
	var err error
	if s.AllocatedRanges, err = readList(in, o.allocated, size); err != nil {
		return s, fmt.Errorf("read --allocated: %w", err)
	}
	if s.ChangedRanges, err = readList(in, o.changed, size); err != nil {
		return s, fmt.Errorf("read --changed: %w", err)
	}
	return s, nil
}

func readList(in io.Reader, name string, size int64) (*rangefile.List, error) {
	switch name {
	case "":
		return nil, nil //nolint:nilnil // no list is not an error
	case stdin:
		return rangefile.Parse(in, size)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	list, err := rangefile.Parse(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

func (o *backupOptions) print(out io.Writer, s summary) error {
	if o.json {
		return json.NewEncoder(out).Encode(s)
	}
	_, err := fmt.Fprintf(out, "%s image %s\n  volume %s, read %s, zero %s, uploaded %s, metadata %s\n  %.1f s, %.1f CPU seconds, peak memory %s\n",
		s.Kind, s.SnapshotID,
		formatBytes(s.VolumeSize), formatBytes(s.BytesRead), formatBytes(s.ZeroBytes), formatBytes(s.BytesUploaded), formatBytes(s.MetadataBytes),
		s.Seconds, s.CPUSeconds, formatBytes(s.PeakRSS))
	return err
}

// resolve finds the one image that can be the parent, and its change ID. It returns "auto" if
// the volume has no image.
//
// A list of changes belongs to one parent only. So "auto" is the newest image, even if that
// is damaged, or lost from the index. With an older parent, the image would lack what changed
// between the two.
func resolve(ctx context.Context, store repository.Store, asked string, volume repository.VolumeKey,
	target repository.Meta, history []repository.Snapshot,
) (string, cbt.ChangeID, error) {
	switch asked {
	case identity.ParentNone:
		return asked, "", nil
	case identity.ParentAuto:
		hidden, err := hiddenImages(ctx, store, volume)
		history = append(hidden, history...)
		if err != nil || len(history) == 0 {
			return asked, "", err
		}
		newest := slices.MaxFunc(history, func(a, b repository.Snapshot) int { return a.Start.Compare(b.Start) })
		return string(newest.ID), cbt.ChangeID(newest.Meta.ChangeID), nil
	}
	s, err := store.Get(ctx, repository.SnapshotID(asked))
	if err != nil {
		return "", "", fmt.Errorf("use parent: %w", err)
	}
	switch {
	case s.Volume != volume:
		return "", "", fmt.Errorf("use parent: image %s is of volume %s, not of %s", s.ID, s.Volume, volume)
	case s.Meta.Driver != target.Driver || s.Meta.VolumeHandle != target.VolumeHandle:
		return "", "", fmt.Errorf("use parent: image %s is of volume %q of driver %q, not of %q of driver %q",
			s.ID, s.Meta.VolumeHandle, s.Meta.Driver, target.VolumeHandle, target.Driver)
	}
	return asked, cbt.ChangeID(s.Meta.ChangeID), nil
}

// hiddenImages returns the images of a volume that the repository has lost from its index. It is an error if it cannot tell of which
// volumes it has lost images.
func hiddenImages(ctx context.Context, store repository.Store, volume repository.VolumeKey) ([]repository.Snapshot, error) {
	losses, err := lossesOf(ctx, store, volume)
	if err != nil {
		return nil, err
	}
	var hidden []repository.Snapshot
	for _, l := range losses {
		if len(l.Images) == 0 {
			return nil, fmt.Errorf("the newest image may be lost, so name the parent, or use --parent none: %w", l.Cause)
		}
		hidden = append(hidden, l.Images...)
	}
	return hidden, nil
}
