package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/rangefile"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
)

// What CSI would call a volume that is backed up here.
const (
	localDriver       = "local"
	localHandlePrefix = "local:"
)

// stdin is the name of standard input as a file.
const stdin = "-"

type backupOptions struct {
	repo      repoFlags
	volume    string
	device    string
	changed   string
	allocated string
	parent    string
	json      bool
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
	volume, err := o.check()
	if err != nil {
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
	return o.repo.use(ctx, func(store repository.Store) error {
		b := backup{store: store, dev: dev, source: source, volume: volume, start: start, messages: cmd.ErrOrStderr()}
		s, err := b.run(ctx, o.parent)
		if err != nil {
			return err
		}
		return o.print(cmd.OutOrStdout(), s)
	})
}

// check looks at the options alone.
func (o *backupOptions) check() (repository.VolumeKey, error) {
	switch {
	case o.parent == "":
		return repository.VolumeKey{}, errors.New("--parent is empty: want auto, none or an ID")
	case o.parent == identity.ParentNone && o.changed != "":
		return repository.VolumeKey{}, errors.New("--changed is relative to a parent: it does not go with --parent none")
	case o.changed == stdin && o.allocated == stdin:
		return repository.VolumeKey{}, errors.New("--changed and --allocated cannot both be standard input")
	}
	return parseVolume(o.volume)
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

// backup is one run.
type backup struct {
	store    repository.Store
	dev      device.Reader
	source   rangefile.Source
	volume   repository.VolumeKey
	start    time.Time
	messages io.Writer
}

func (b *backup) run(ctx context.Context, asked string) (summary, error) {
	history, err := b.store.List(ctx, b.volume)
	if err != nil {
		return summary{}, err
	}
	parent, base, err := b.resolve(ctx, asked, history)
	if err != nil {
		return summary{}, err
	}
	b.source.Base = base
	// One name for the operation and for the instant: nothing else has made either.
	id := "local-" + rand.Text()
	run, err := chain.Begin(ctx, chain.Input{
		Request:   chain.Request{Parent: parent, Now: b.start, Target: b.meta(id)},
		Volume:    b.volume,
		History:   history,
		Operation: id,
		Store:     b.store,
		Source:    b.source,
	})
	if err != nil {
		return summary{}, err
	}
	defer run.Writer.Abort()
	if run.Detail != "" {
		printLine(b.messages, "%s image: %s", run.Kind, run.Detail)
	}

	progress := &datapath.Progress{}
	stop := startMeter(b.messages, "backup", progress.Done, progress.Total)
	read, err := datapath.Backup(ctx, b.dev, run.Read, run.Writer, datapath.Options{Progress: progress})
	stop()
	if err != nil {
		return summary{}, err
	}
	image, written, err := run.Writer.Commit(ctx)
	if err != nil {
		return summary{}, err
	}
	saved, err := b.store.Save(ctx, repository.Snapshot{
		Volume: b.volume,
		Tags:   map[string]string{repository.TagOperation: id},
		Start:  b.start,
		End:    time.Now(),
	}, image)
	if err != nil {
		return summary{}, err
	}
	return summary{
		SnapshotID: saved,
		Kind:       run.Kind,
		Reason:     run.Reason,
		Parent:     run.Parent,
		VolumeSize: b.dev.Size(),
		BytesRead:  read.BytesRead,
		// Zeros are recognised without being hashed, everything else is hashed.
		BytesHashed:     read.BytesRead - written.ZeroBytes,
		BytesUploaded:   written.BytesUploaded,
		MetadataBytes:   written.MetadataBytes,
		ChunksWritten:   written.ChunksWritten,
		ChunksInherited: written.ChunksInherited,
		ZeroBytes:       written.ZeroBytes,
		Seconds:         time.Since(b.start).Seconds(),
		usage:           currentUsage(),
	}, nil
}

// meta describes the device as it is now.
func (b *backup) meta(changeID string) repository.Meta {
	return repository.Meta{
		Size:         b.dev.Size(),
		Driver:       localDriver,
		VolumeHandle: localHandlePrefix + b.volume.String(),
		ChangeID:     changeID,
		SnapshotTime: b.start.UTC(),
		Mover:        identity.DataMover,
	}
}

// resolve finds the one image that may be the parent, and its change ID. It
// returns "auto" where the volume has no image yet.
//
// A list of changes is true for one parent only. So "auto" is the newest image
// even where that is damaged: an older one in its place would make an image that
// lacks what changed between both.
func (b *backup) resolve(ctx context.Context, asked string, history []repository.Snapshot) (string, cbt.ChangeID, error) {
	switch asked {
	case identity.ParentNone:
		return asked, "", nil
	case identity.ParentAuto:
		if len(history) == 0 {
			return asked, "", nil
		}
		newest := slices.MaxFunc(history, func(a, b repository.Snapshot) int { return a.Start.Compare(b.Start) })
		return string(newest.ID), cbt.ChangeID(newest.Meta.ChangeID), nil
	}
	s, err := b.store.Get(ctx, repository.SnapshotID(asked))
	if err != nil {
		return "", "", fmt.Errorf("use parent: %w", err)
	}
	target := b.meta("")
	switch {
	case s.Volume != b.volume:
		return "", "", fmt.Errorf("use parent: image %s is of volume %s, not of %s", s.ID, s.Volume, b.volume)
	case s.Meta.Driver != target.Driver || s.Meta.VolumeHandle != target.VolumeHandle:
		return "", "", fmt.Errorf("use parent: image %s is of volume %q of driver %q, not of %q of driver %q",
			s.ID, s.Meta.VolumeHandle, s.Meta.Driver, target.VolumeHandle, target.Driver)
	}
	return asked, cbt.ChangeID(s.Meta.ChangeID), nil
}
