package kopia

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"github.com/kopia/kopia/repo"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerokopia "github.com/vmware-tanzu/velero/pkg/kopia"
	velerorepo "github.com/vmware-tanzu/velero/pkg/repository"
	"github.com/vmware-tanzu/velero/pkg/repository/keys"
	repomanager "github.com/vmware-tanzu/velero/pkg/repository/manager"
	"github.com/vmware-tanzu/velero/pkg/repository/udmrepo"
	"github.com/vmware-tanzu/velero/pkg/repository/udmrepo/kopialib/backend"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// writeDataCacheBytes is small: an upload reads the metadata of its parent, and data only
	// for the audit. Without a data cache kopia keeps no index on disk.
	writeDataCacheBytes = 16 << 20
	// writeMetadataCacheBytes has room for the segments of a parent of 4 TiB: one entry of
	// about 60 bytes for each chunk of 1 MiB.
	writeMetadataCacheBytes = 256 << 20
)

// VeleroOptions says which of Velero's repositories to open, and for what.
type VeleroOptions struct {
	// Namespace is Velero's.
	Namespace string
	// BackupRepository is the name of the object.
	BackupRepository string
	// CredentialsDir is where Secrets are mounted: repository/repository-password,
	// location/<Secret>/<key>. Credentials that the cloud's libraries find in the environment
	// are not looked up here.
	CredentialsDir string
	// ReadOnly opens the repository for reading only.
	ReadOnly bool
	// OnFatal is called when kopia must not continue with an open repository, for example
	// because its format is being upgraded.
	OnFatal func(error)
	Log     logr.Logger
}

// OpenVelero opens the kopia repository of a BackupRepository with Velero's own code. So
// storage, credentials and the user name of the repository are Velero's. It needs the right
// to get the BackupRepository and its BackupStorageLocation.
//
// Velero keeps the connection in a file below $HOME/udmrepo, and kopia its caches below the
// user's cache directory. Both must be writable.
//
// A repository that is opened for reading has no cache on disk, which would cost a restore a
// hash and a write of every byte. Its index is in memory.
func OpenVelero(ctx context.Context, c client.Client, o VeleroOptions) (*Store, error) {
	rep, err := connectVelero(ctx, c, o)
	if err != nil {
		return nil, fmt.Errorf("open backup repository %s/%s: %w", o.Namespace, o.BackupRepository, mark(explain(err)))
	}
	return New(rep), nil
}

func connectVelero(ctx context.Context, c client.Client, o VeleroOptions) (repo.Repository, error) {
	object, err := checkVelero(ctx, c, o)
	if err != nil {
		return nil, err
	}
	log := newLogrus(o.Log)
	mounted := mountedCredentials{o.CredentialsDir}
	m := repomanager.NewManager(o.Namespace, c, velerorepo.NewRepoLocker(), mounted, mounted, log)

	// Velero's manager takes no context. A caller whose context is over must not wait for a
	// storage that does not answer.
	connected := make(chan error, 1)
	go func() { connected <- m.ConnectToRepo(object) }()
	select {
	case err = <-connected:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return openConnected(velerokopia.SetupKopiaLog(ctx, log), object, mounted, o, log)
}

// checkVelero reads the objects, and fails if the repository cannot be opened for this
// purpose.
func checkVelero(ctx context.Context, c client.Client, o VeleroOptions) (*velerov1.BackupRepository, error) {
	object := &velerov1.BackupRepository{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: o.BackupRepository}, object); err != nil {
		return nil, fmt.Errorf("get BackupRepository: %w", err)
	}
	if t := object.Spec.RepositoryType; t != velerov1.BackupRepositoryTypeKopia {
		return nil, fmt.Errorf("repository type is %q, want %q", t, velerov1.BackupRepositoryTypeKopia)
	}
	location := &velerov1.BackupStorageLocation{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: object.Spec.BackupStorageLocation}, location); err != nil {
		return nil, fmt.Errorf("get BackupStorageLocation: %w", err)
	}
	if !o.ReadOnly && location.Spec.AccessMode == velerov1.BackupStorageLocationAccessModeReadOnly {
		return nil, fmt.Errorf("backup storage location %s is read-only", location.Name)
	}
	return object, nil
}

// openConnected opens what Velero has connected, with cache sizes of our own.
func openConnected(
	ctx context.Context, object *velerov1.BackupRepository, mounted mountedCredentials, o VeleroOptions, log logrus.FieldLogger,
) (repo.Repository, error) {
	options, err := udmrepo.NewRepoOptions(udmrepo.WithConfigFile("", string(object.UID)))
	if err != nil {
		return nil, fmt.Errorf("find connection file: %w", err)
	}
	if err := configure(ctx, options.ConfigFilePath, o.ReadOnly); err != nil {
		return nil, err
	}
	password, err := mounted.Get(keys.RepoKeySelector())
	if err != nil {
		return nil, err
	}
	return repo.Open(ctx, options.ConfigFilePath, strings.TrimSpace(password), &repo.Options{
		ContentLogWriter: velerokopia.RepositoryLogger(log),
		// The log has a line for each content, which is 8 % of the CPU time of a backup. It
		// also needs a repository that can be written.
		DisableRepositoryLog: true,
		OnFatalError:         o.OnFatal,
	})
}

// configure changes the connection file that Velero wrote.
func configure(ctx context.Context, file string, readOnly bool) error {
	local, err := repo.LoadConfigFromFile(file)
	if err != nil {
		return fmt.Errorf("read connection file: %w", err)
	}
	clientOptions := local.ClientOptions
	clientOptions.ReadOnly = readOnly
	if err := repo.SetClientOptions(ctx, file, clientOptions); err != nil {
		return fmt.Errorf("configure access: %w", err)
	}
	if readOnly {
		return withoutCache(file)
	}
	caching := *local.Caching.CloneOrDefault()
	caching.ContentCacheSizeBytes, caching.ContentCacheSizeLimitBytes = writeDataCacheBytes, writeDataCacheBytes
	caching.MetadataCacheSizeBytes, caching.MetadataCacheSizeLimitBytes = writeMetadataCacheBytes, writeMetadataCacheBytes
	if err := repo.SetCachingOptions(ctx, file, &caching); err != nil {
		return fmt.Errorf("configure caches: %w", err)
	}
	return nil
}

// explain adds what a person can do about an error of kopia.
func explain(err error) error {
	switch {
	case errors.Is(err, repo.ErrInvalidPassword):
		return fmt.Errorf("the password in Secret %s is not this repository's: %w", keys.RepoKeySelector().Name, err)
	case errors.Is(err, repo.ErrRepositoryNotInitialized), errors.Is(err, backend.ErrStoreNotExist):
		return fmt.Errorf("there is no repository in the storage, Velero initializes it before the first backup: %w", err)
	}
	return err
}

// mountedCredentials gives Velero's code the Secrets that are mounted in the pod, so that it
// does not read them through the API. It implements both of Velero's stores: of files and of
// Secrets.
type mountedCredentials struct{ dir string }

// Path returns the file that holds a key of a Secret.
func (m mountedCredentials) Path(selector *corev1.SecretKeySelector) (string, error) {
	path := filepath.Join(m.dir, "location", selector.Name, selector.Key)
	if own := keys.RepoKeySelector(); selector.Name == own.Name && selector.Key == own.Key {
		path = filepath.Join(m.dir, "repository", selector.Key)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find key %s of Secret %s in the pod: %w", selector.Key, selector.Name, err)
	}
	return path, nil
}

// Get returns the value of a key of a Secret.
func (m mountedCredentials) Get(selector *corev1.SecretKeySelector) (string, error) {
	path, err := m.Path(selector)
	if err != nil {
		return "", err
	}
	value, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read key %s of Secret %s: %w", selector.Key, selector.Name, err)
	}
	return string(value), nil
}

// newLogrus is a logger for Velero's code whose lines go to log.
func newLogrus(log logr.Logger) *logrus.Logger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	if log.V(1).Enabled() {
		l.SetLevel(logrus.DebugLevel)
	}
	l.AddHook(logrusHook{log})
	return l
}

type logrusHook struct{ log logr.Logger }

// Levels returns all levels: the level of the logger decides.
func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire writes one line. logr has no warnings, so a warning is marked.
func (h logrusHook) Fire(e *logrus.Entry) error {
	fields := make([]string, 0, len(e.Data))
	for k := range e.Data {
		if k != logrus.ErrorKey {
			fields = append(fields, k)
		}
	}
	slices.Sort(fields)
	values := make([]any, 0, 2*len(e.Data)+2)
	for _, k := range fields {
		values = append(values, k, e.Data[k])
	}
	err, _ := e.Data[logrus.ErrorKey].(error)
	switch {
	case e.Level <= logrus.ErrorLevel:
		h.log.Error(err, e.Message, values...)
		return nil
	case e.Level == logrus.WarnLevel:
		values = append(values, "severity", "warning")
	}
	if err != nil {
		values = append(values, "error", err.Error())
	}
	log := h.log
	if e.Level >= logrus.DebugLevel {
		log = log.V(1)
	}
	log.Info(e.Message, values...)
	return nil
}
