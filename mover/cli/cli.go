// Package cli has the local commands of blockmover. They make, list, check, compare, restore
// and delete volume images in a kopia repository in a directory. They use the code of mover
// pods and need no cluster.
//
// They also read a repository that a cluster wrote: in its object store, or once its files are in a
// directory. Stock kopia opens it, too.
//
// Lists of ranges (package rangefile) take the place of the storage system that tells a mover
// pod what changed. A volume that was backed up here has the driver "local" and its name as
// the handle. So it is never the parent of a cluster's volume with the same name.
//
// # How commands end
//
// The result goes to standard output, everything else to standard error. Options, files, the
// device and the repository are checked before anything is written. A command that fails
// prints one line, and its exit status is not 0.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
	"github.com/blockmover/blockmover/mover/heap"
	"github.com/blockmover/blockmover/mover/worker"
)

// EnvPassword is the environment variable with the password of the repository.
const EnvPassword = "BLOCKMOVER_REPO_PASSWORD"

// NewCommands returns the commands `repo`, `image` and `files`.
func NewCommands() []*cobra.Command {
	repo := &cobra.Command{
		Use:   "repo",
		Short: "Work with a repository in a directory",
		Args:  cobra.NoArgs,
		RunE:  help,
	}
	repo.AddCommand(newCreateCommand())
	image := &cobra.Command{
		Use:   "image",
		Short: "Work with volume images in a repository in a directory",
		Args:  cobra.NoArgs,
		RunE:  help,
	}
	image.AddCommand(newBackupCommand(), newRestoreCommand(), newListCommand(), newVerifyCommand(), newDeleteCommand(), newDiffCommand())
	files := NewFilesCommand(localFiles())
	files.AddCommand(newFilesServe(), newFilesConnect())
	return []*cobra.Command{repo, image, files}
}

// help runs for a command that has only subcommands. Without it, cobra does not look at Args,
// and an unknown subcommand succeeds.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

func newCreateCommand() *cobra.Command {
	var (
		r    repoFlags
		hash string
	)
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a kopia repository in a directory",
		Args:  cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			password, err := r.password()
			if err != nil {
				return err
			}
			dir, err := r.directory()
			if err != nil {
				return err
			}
			if err := kopia.CreateFilesystemWithHash(ctx, dir, password, hash); err != nil {
				return err
			}
			printLine(cmd.OutOrStdout(), "repository in %s is ready", dir)
			return nil
		}),
	}
	r.add(cmd)
	cmd.Flags().StringVar(&hash, "block-hash", kopia.DefaultBlockHash, "`name` of the hash function that names contents: "+strings.Join(kopia.BlockHashes(), ", "))
	return cmd
}

// repoFlags say which repository is used.
type repoFlags struct {
	// dir is a directory, or the address of a repository in an object store.
	dir          string
	passwordFile string
	credentials  string
}

// addReading adds the flags of a command that only reads.
func (r *repoFlags) addReading(cmd *cobra.Command) {
	r.add(cmd)
	cmd.Flags().Lookup("repo").Usage = "`directory` of the repository, or its address: s3://BUCKET/[PREFIX/]kopia/NAMESPACE?endpoint=URL&region=R, azblob://…, gs://…"
	cmd.Flags().StringVar(&r.credentials, "credentials-file", "", "`file` with the credentials for the object store, as the BackupStorageLocation uses it")
}

func (r *repoFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&r.dir, "repo", "", "`directory` of the repository")
	flags.StringVar(&r.passwordFile, "password-file", "", "`file` with the password of the repository; the default is in $"+EnvPassword)
	required(flags, "repo")
}

// required marks flags as required.
func required(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		if err := cobra.MarkFlagRequired(flags, name); err != nil {
			panic(err) // the flag is not defined
		}
	}
}

func (r *repoFlags) password() (string, error) {
	password := os.Getenv(EnvPassword)
	if r.passwordFile != "" {
		b, err := os.ReadFile(r.passwordFile)
		if err != nil {
			return "", fmt.Errorf("read password: %w", err)
		}
		password = strings.TrimRight(string(b), "\r\n")
	}
	if password == "" {
		return "", fmt.Errorf("no password: set $%s or --password-file", EnvPassword)
	}
	return password, nil
}

// use opens the repository for reading while work runs.
func (r *repoFlags) use(ctx context.Context, work func(repository.Store) error) error {
	return r.with(ctx, kopia.OpenFilesystemReadOnly, work)
}

// with opens the repository while work runs. openDirectory opens one in a directory.
func (r *repoFlags) with(ctx context.Context, openDirectory openDirectory, work func(repository.Store) error) error {
	password, err := r.password()
	if err != nil && !strings.HasPrefix(r.dir, inCluster) {
		return err
	}
	store, err := r.open(ctx, openDirectory, password)
	if err != nil {
		return err
	}
	heap.Limit()
	return errors.Join(work(store), store.Close(context.WithoutCancel(ctx)))
}

type openDirectory func(ctx context.Context, dir, password string) (*kopia.Store, error)

func (r *repoFlags) open(ctx context.Context, openDirectory openDirectory, password string) (repository.Store, error) {
	if dir, err := r.directory(); err == nil {
		if r.credentials != "" {
			return nil, errors.New("--credentials-file is for object stores, and --repo is a directory")
		}
		return asStore(openDirectory(ctx, dir, password))
	}
	if name, ok := strings.CutPrefix(r.dir, inCluster); ok {
		return openInCluster(ctx, name)
	}
	location, err := kopia.ParseLocation(r.dir)
	if err != nil {
		return nil, err
	}
	return asStore(kopia.OpenLocation(ctx, location, r.credentials, password, logr.Discard()))
}

// inCluster is the scheme of the address of a BackupRepository.
const inCluster = "velero://"

// AddressOf returns the address of the repository of a BackupRepository, for --repo in a pod that has its
// Secrets, as a mover pod has.
func AddressOf(namespace, name string) string { return inCluster + namespace + "/" + name }

// openInCluster opens the repository of a BackupRepository. name is NAMESPACE/NAME.
func openInCluster(ctx context.Context, name string) (repository.Store, error) {
	namespace, name, ok := strings.Cut(name, "/")
	if !ok || namespace == "" || name == "" {
		return nil, errors.New("the repository is not " + AddressOf("NAMESPACE", "BACKUPREPOSITORY"))
	}
	c, err := worker.NewClient()
	if err != nil {
		return nil, err
	}
	return asStore(kopia.OpenVelero(ctx, c, kopia.VeleroOptions{
		Namespace: namespace, BackupRepository: name, CredentialsDir: worker.CredentialsPath, ReadOnly: true, Log: logr.Discard(),
	}))
}

// asStore returns nil with an error: a nil *kopia.Store in an interface is not nil.
func asStore(store *kopia.Store, err error) (repository.Store, error) {
	if err != nil {
		return nil, err
	}
	return store, nil
}

// useDirectory is use for a command that writes. Only the cluster's own Velero writes to its object
// store.
func (r *repoFlags) useDirectory(ctx context.Context, work func(repository.Store) error) error {
	if _, err := r.directory(); err != nil {
		return err
	}
	return r.with(ctx, kopia.OpenFilesystem, work)
}

// directory returns the directory of the repository, or an error if it is in an object store.
func (r *repoFlags) directory() (string, error) {
	dir, isFile := strings.CutPrefix(r.dir, "file://")
	if !isFile && kopia.IsLocation(dir) {
		return "", errors.New("the repository is in an object store: this command writes, and works with a repository in a directory only")
	}
	return dir, nil
}

// ParseVolume reads NAMESPACE/PVC.
func ParseVolume(text string) (repository.VolumeKey, error) {
	namespace, pvc, ok := strings.Cut(text, "/")
	if !ok || path.Clean("/"+text) != "/"+text || strings.Count(text, "/") != 1 || namespace == "" || pvc == "" {
		return repository.VolumeKey{}, fmt.Errorf("volume %q is not NAMESPACE/PVC", text)
	}
	return repository.VolumeKey{Namespace: namespace, PVC: pvc}, nil
}

// interruptible returns the run function of a command. Its context ends at SIGINT or SIGTERM.
// A second signal ends the process at once.
func interruptible(run func(ctx context.Context, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop)
		err := run(ctx, cmd, args)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%s: interrupted", cmd.Name())
		}
		return err
	}
}

// OneLine formats an error as one line; joined errors have several.
func OneLine(err error) string {
	return printable(strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}

// printable escapes what a terminal would obey: an error may have names that an image has made up.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}
