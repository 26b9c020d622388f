package kopia

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/hashing"
	"github.com/kopia/kopia/repo/maintenance"
	"golang.org/x/sys/unix"
)

// CreateFilesystem makes a repository in a directory, with the hash function that Velero
// uses. It creates the directory if there is none.
func CreateFilesystem(ctx context.Context, dir, password string) error {
	return CreateFilesystemWithHash(ctx, dir, password, DefaultBlockHash)
}

// DefaultBlockHash is the hash function of repositories that Velero 1.18 makes.
const DefaultBlockHash = "BLAKE2B-256-128"

// BlockHashes are the names of the hash functions that a repository can have.
func BlockHashes() []string { return hashing.SupportedAlgorithms() }

// CreateFilesystemWithHash is CreateFilesystem with one of BlockHashes.
func CreateFilesystemWithHash(ctx context.Context, dir, password, blockHash string) error {
	if password == "" {
		return errors.New("create repository: the password is empty")
	}
	if !slices.Contains(BlockHashes(), blockHash) {
		return fmt.Errorf("create repository: the block hash is %q, want one of %s", blockHash, strings.Join(BlockHashes(), ", "))
	}
	st, err := openDirectory(ctx, dir, true)
	if err != nil {
		return fmt.Errorf("create repository: %w", err)
	}
	defer st.Close(ctx) //nolint:errcheck // nothing is buffered in it
	options := &repo.NewRepositoryOptions{}
	options.BlockFormat.Hash = blockHash
	if err := repo.Initialize(ctx, st, options, password); err != nil {
		return fmt.Errorf("create repository in %s: %w", dir, err)
	}
	if err := claimMaintenance(ctx, dir, password); err != nil {
		return fmt.Errorf("create repository in %s: %w", dir, err)
	}
	return nil
}

// claimMaintenance makes the user that this package connects as the one who
// may run maintenance: kopia refuses it to everyone while there is none.
func claimMaintenance(ctx context.Context, dir, password string) error {
	s, err := OpenFilesystem(ctx, dir, password)
	if err != nil {
		return err
	}
	err = repo.WriteSession(ctx, s.rep, repo.WriteSessionOptions{Purpose: "Blockmover create"},
		func(ctx context.Context, w repo.RepositoryWriter) error {
			params := maintenance.DefaultParams()
			params.Owner = s.rep.ClientOptions().UsernameAtHost()
			return maintenance.SetParams(ctx, w, &params)
		})
	return errors.Join(err, s.Close(ctx))
}

// OpenFilesystem opens a repository in a directory, without any cache.
func OpenFilesystem(ctx context.Context, dir, password string) (*Store, error) {
	return openFilesystem(ctx, dir, password, false)
}

// OpenFilesystemReadOnly is OpenFilesystem for reading: nothing changes in the directory. kopia would merge manifests, for example.
func OpenFilesystemReadOnly(ctx context.Context, dir, password string) (*Store, error) {
	return openFilesystem(ctx, dir, password, true)
}

func openFilesystem(ctx context.Context, dir, password string, readOnly bool) (*Store, error) {
	st, err := openDirectory(ctx, dir, false)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	defer st.Close(ctx) //nolint:errcheck // nothing is buffered in it
	if _, err := st.GetMetadata(ctx, format.KopiaRepositoryBlobID); errors.Is(err, blob.ErrBlobNotFound) {
		return nil, fmt.Errorf("open repository in %s: %w", dir, explainLocal(ctx, repo.ErrRepositoryNotInitialized))
	}

	// kopia opens a repository by a connection file only. It is written here
	// because kopia's own way opens the repository twice, and that is 64 MiB and 150
	// ms of deriving the key from the password each time. It is in memory, and so
	// does not stay behind when the process is killed.
	const name = "repository.config"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open repository: create connection file: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close() //nolint:errcheck // it is in memory
	config := fmt.Sprintf("/proc/self/fd/%d", fd)
	storage := st.ConnectionInfo()
	connection := repo.LocalConfig{Storage: &storage, ClientOptions: repo.ClientOptions{Username: snapshotUser, Hostname: snapshotHost, ReadOnly: readOnly}}
	if err := writeConnection(config, connection); err != nil {
		return nil, fmt.Errorf("open repository in %s: %w", dir, err)
	}
	store, err := open(ctx, config, connection, password, &repo.Options{DisableRepositoryLog: true})
	if err != nil {
		return nil, fmt.Errorf("open repository in %s: %w", dir, explainLocal(ctx, err))
	}
	return store, nil
}

func openDirectory(ctx context.Context, dir string, create bool) (blob.Storage, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", path) // of which kopia tries to read for half a minute
	}
	return filesystem.New(ctx, &filesystem.Options{Path: path}, create)
}
