package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/parts"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/readcache"
)

// FilesImage is an image whose files are read.
type FilesImage struct {
	readcache.Image
	// Size and ChunkSize are in bytes.
	Size, ChunkSize int64
}

// FilesSource says how the commands `files` find an image.
type FilesSource struct {
	// Usage are the arguments that name the image, with a space at the end, and Arguments is how many they are.
	Usage     string
	Arguments int
	// Add adds flags.
	Add func(cmd *cobra.Command)
	// Use opens the image that the arguments name while work runs.
	Use func(ctx context.Context, cmd *cobra.Command, args []string, work func(FilesImage) error) error
}

// NewFilesCommand returns the command `files`.
func NewFilesCommand(source FilesSource) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "files",
		Short: "List files in an image of a volume, and copy them out",
		Long: `Files reads the file system in an image, and does not restore the volume: ext2,
ext3, ext4, XFS and FAT, also in partitions and in linear volumes of LVM. Then the
first name of a PATH is that of the part: "ls" without a PATH lists them. A PATH
begins at the root of the volume, not where a pod mounts it.

It only reads. The journal of a file system that was in use is replayed in memory.`,
		Args: cobra.NoArgs,
		RunE: help,
	}
	cmd.AddCommand(newFilesList(source), newFilesCat(source), newFilesCopy(source), newFilesTar(source))
	return cmd
}

// filesCommand makes one of the commands. run is called with the arguments after those that name the image.
func filesCommand(source FilesSource, cmd *cobra.Command, least int, run func(ctx context.Context, d *parts.Disk, args []string) error) *cobra.Command {
	cmd.Use = strings.Replace(cmd.Use, " ", " "+source.Usage, 1)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if n := len(args) - source.Arguments; n < least {
			return fmt.Errorf("usage: %s", cmd.UseLine())
		}
		return nil
	}
	cmd.RunE = interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		return source.Use(ctx, cmd, args[:source.Arguments], func(image FilesImage) error {
			d, err := parts.Open(readcache.New(ctx, image, image.Size, image.ChunkSize, readcache.DefaultMemory), image.Size)
			if err != nil {
				return fmt.Errorf("look into image: %w", err)
			}
			return run(ctx, d, args[source.Arguments:])
		})
	})
	source.Add(cmd)
	return cmd
}

// localFiles finds an image by its ID, or the newest one of a volume.
func localFiles() FilesSource {
	var r repoFlags
	var snapshot, volume string
	return FilesSource{
		Add: func(cmd *cobra.Command) {
			r.addReading(cmd)
			cmd.Flags().StringVar(&snapshot, "snapshot", "", "`ID` of the image")
			cmd.Flags().StringVar(&volume, "volume", "", "`NAMESPACE/PVC` whose newest image is read")
			cmd.MarkFlagsMutuallyExclusive("snapshot", "volume")
			cmd.MarkFlagsOneRequired("snapshot", "volume")
		},
		Use: func(ctx context.Context, _ *cobra.Command, _ []string, work func(FilesImage) error) error {
			return r.useImage(ctx, snapshot, volume, work)
		},
	}
}

// useImage opens an image while work runs.
func (r *repoFlags) useImage(ctx context.Context, snapshot, volume string, work func(FilesImage) error) error {
	var key repository.VolumeKey
	if snapshot == "" {
		var err error
		if key, err = ParseVolume(volume); err != nil {
			return err
		}
	}
	return r.use(ctx, func(store repository.Store) error {
		id := repository.SnapshotID(snapshot)
		if id == "" {
			var err error
			if id, err = newestImage(ctx, store, key); err != nil {
				return err
			}
		}
		image, err := store.OpenReader(ctx, id)
		if err != nil {
			return err
		}
		meta := image.Meta()
		return errors.Join(work(FilesImage{image, meta.Size, meta.ChunkSize}), image.Close())
	})
}

// newestImage returns the newest image of a volume that is not damaged.
func newestImage(ctx context.Context, store repository.Store, volume repository.VolumeKey) (repository.SnapshotID, error) {
	images, err := store.List(ctx, volume)
	if err != nil {
		return "", err
	}
	for _, s := range images {
		if s.Damage == nil {
			return s.ID, nil
		}
	}
	return "", fmt.Errorf("volume %s has no images that are not damaged", volume)
}

// found is a file that a path names.
type found struct {
	part parts.Part
	id   filesystem.ID
	info filesystem.Info
	// name is the last name of the path. It is empty for the root of a file system.
	name string
}

// findFile finds a file by its path on the disk.
func findFile(d *parts.Disk, at string, follow bool) (found, error) {
	part, inside, err := d.Resolve(at)
	if err != nil {
		return found{}, err
	}
	id, err := parts.Lookup(part.Files, inside, follow)
	if errors.Is(err, fs.ErrNotExist) {
		return found{}, fmt.Errorf("%w (a PATH begins at the root of the volume, not where a pod mounts it)", err)
	}
	if err != nil {
		return found{}, err
	}
	info, err := part.Files.Stat(id)
	if err != nil {
		return found{}, fmt.Errorf("read %q: %w", at, err)
	}
	f := found{part: part, id: id, info: info}
	if id != part.Files.Root() {
		f.name = strings.TrimPrefix(path.Base(path.Join("/", inside)), "/")
	}
	return f, nil
}
