package kopia

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	kopiaformat "github.com/kopia/kopia/repo/format"
	"github.com/sirupsen/logrus"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerokopia "github.com/vmware-tanzu/velero/pkg/kopia"
	"github.com/vmware-tanzu/velero/pkg/repository/keys"
	"github.com/vmware-tanzu/velero/pkg/repository/provider"
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
	store, err := connectVelero(ctx, c, o)
	if err != nil {
		return nil, fmt.Errorf("open backup repository %s/%s: %w", o.Namespace, o.BackupRepository, explain(ctx, err))
	}
	return store, nil
}

func connectVelero(ctx context.Context, c client.Client, o VeleroOptions) (*Store, error) {
	object, location, err := checkVelero(ctx, c, o)
	if err != nil {
		return nil, err
	}
	log := newLogrus(o.Log)
	ctx = velerokopia.SetupKopiaLog(ctx, log)
	options, err := optionsOf(ctx, object, location, mountedCredentials{o.CredentialsDir}, log)
	if err != nil {
		return nil, err
	}
	connection, done, err := connect(ctx, options, o.ReadOnly, log)
	if err != nil {
		return nil, err
	}
	defer done()
	store, err := open(ctx, options.ConfigFilePath, connection, options.RepoPassword, &repo.Options{
		ContentLogWriter: velerokopia.RepositoryLogger(log),
		// The log has a line for each content, which is 8 % of the CPU time of a backup. It
		// also needs a repository that can be written.
		DisableRepositoryLog: true,
		OnFatalError:         o.OnFatal,
	})
	if err != nil {
		return nil, err
	}
	store.rep = remembering(store.rep)
	return store, nil
}

// checkVelero reads the objects, and fails if the repository cannot be opened for this
// purpose.
func checkVelero(ctx context.Context, c client.Client, o VeleroOptions) (*velerov1.BackupRepository, *velerov1.BackupStorageLocation, error) {
	object := &velerov1.BackupRepository{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: o.BackupRepository}, object); err != nil {
		return nil, nil, fmt.Errorf("get BackupRepository: %w", err)
	}
	if t := object.Spec.RepositoryType; t != velerov1.BackupRepositoryTypeKopia {
		return nil, nil, fmt.Errorf("repository type is %q, want %q", t, velerov1.BackupRepositoryTypeKopia)
	}
	location := &velerov1.BackupStorageLocation{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: object.Spec.BackupStorageLocation}, location); err != nil {
		return nil, nil, fmt.Errorf("get BackupStorageLocation: %w", err)
	}
	if !o.ReadOnly && location.Spec.AccessMode == velerov1.BackupStorageLocationAccessModeReadOnly {
		return nil, nil, fmt.Errorf("backup storage location %s is read-only", location.Name)
	}
	return object, location, nil
}

// optionsOf asks Velero's code how it connects to a repository.
func optionsOf(
	ctx context.Context, object *velerov1.BackupRepository, location *velerov1.BackupStorageLocation, mounted mountedCredentials, log logrus.FieldLogger,
) (*udmrepo.RepoOptions, error) {
	getter, err := getterOf(provider.NewUnifiedRepoProvider, mounted, log)
	if err != nil {
		return nil, err
	}
	param := provider.RepoParam{BackupLocation: location, BackupRepo: object}
	// Velero's code takes no context, and may ask the cloud. A caller whose context is over must not wait for
	// a storage that does not answer.
	type result struct {
		options *udmrepo.RepoOptions
		err     error
	}
	found := make(chan result, 1)
	go func() {
		options, err := udmrepo.NewRepoOptions(
			udmrepo.WithPassword(getter, param),
			udmrepo.WithConfigFile("", string(object.UID)),
			udmrepo.WithGenOptions(map[string]string{udmrepo.GenOptionOwnerName: udmrepo.GetRepoUser(), udmrepo.GenOptionOwnerDomain: udmrepo.GetRepoDomain()}),
			udmrepo.WithStoreOptions(getter, param),
		)
		found <- result{options, err}
	}()
	select {
	case r := <-found:
		return r.options, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type optionsGetter interface {
	udmrepo.PasswordGetter
	udmrepo.StoreOptionsGetter
}

// getterOf returns Velero's provider of repositories with credentials. Their type is internal to Velero: a struct with a store of
// files and one of Secrets.
func getterOf[C any](newProvider func(C, string, logrus.FieldLogger) provider.Provider, mounted mountedCredentials, log logrus.FieldLogger) (optionsGetter, error) {
	var c C
	store := reflect.ValueOf(mounted)
	for _, name := range []string{"FromFile", "FromSecret"} {
		field := reflect.ValueOf(&c).Elem().FieldByName(name)
		if !field.IsValid() || !store.Type().AssignableTo(field.Type()) {
			return nil, fmt.Errorf("connect to storage: credentials of Velero are a %T, want one with a field %s", c, name)
		}
		field.Set(store)
	}
	velero := newProvider(c, velerov1.BackupRepositoryTypeKopia, log)
	getter, ok := velero.(optionsGetter)
	if !ok {
		return nil, fmt.Errorf("connect to storage: %T of Velero does not tell how", velero)
	}
	return getter, nil
}

// backends are the storages that Velero knows.
var backends = map[string]func() backend.Store{
	udmrepo.StorageTypeS3:    func() backend.Store { return &backend.S3Backend{} },
	udmrepo.StorageTypeAzure: func() backend.Store { return &backend.AzureBackend{} },
	udmrepo.StorageTypeGcs:   func() backend.Store { return &backend.GCSBackend{} },
	udmrepo.StorageTypeFs:    func() backend.Store { return &backend.FsBackend{} },
}

// connect writes the connection file, as repo.Connect does, with cache sizes of our own. repo.Connect opens the repository
// once to see whether that works, which takes as long as the work of a small increment: half a second of CPU time for the key,
// and everything that the index needs. done is called when the repository is open, or cannot be opened.
func connect(ctx context.Context, options *udmrepo.RepoOptions, readOnly bool, log logrus.FieldLogger) (connection repo.LocalConfig, done func(), err error) {
	newStore := backends[options.StorageType]
	if newStore == nil {
		return connection, nil, fmt.Errorf("connect to storage: its type is %q, want one of %s", options.StorageType, strings.Join(slices.Sorted(maps.Keys(backends)), ", "))
	}
	keepConnections()
	store := newStore()
	if err := store.Setup(ctx, options.StorageOptions, log); err != nil {
		return connection, nil, fmt.Errorf("connect to storage: %w", err)
	}
	st, err := store.Connect(ctx, false, log)
	if err != nil {
		return connection, nil, fmt.Errorf("connect to storage: %w", err)
	}
	var format rangeBuffer
	err = st.GetBlob(ctx, kopiaformat.KopiaRepositoryBlobID, 0, -1, &format)
	if err != nil {
		_ = st.Close(ctx) // the other error counts
	}
	switch {
	case errors.Is(err, blob.ErrBlobNotFound):
		return connection, nil, repo.ErrRepositoryNotInitialized
	case err != nil:
		return connection, nil, fmt.Errorf("read format blob: %w", err)
	}
	ahead, stop := askAhead(ctx, st, format)
	storage, drop := handOver(ctx, ahead)
	done = func() {
		stop()
		drop()
	}
	connection, err = configure(ctx, options, storage, readOnly)
	if err != nil {
		done()
	}
	return connection, done, err
}

// configure writes the connection file of a storage.
func configure(ctx context.Context, options *udmrepo.RepoOptions, storage blob.ConnectionInfo, readOnly bool) (connection repo.LocalConfig, err error) {
	velero := backend.SetupConnectOptions(ctx, *options)
	connection = repo.LocalConfig{Storage: &storage, ClientOptions: velero.ClientOptions}
	connection.ReadOnly = readOnly
	if err := os.MkdirAll(filepath.Dir(options.ConfigFilePath), 0o700); err != nil {
		return connection, fmt.Errorf("write connection file: %w", err)
	}
	if readOnly {
		return connection, writeConnection(options.ConfigFilePath, connection)
	}
	connection.Storage = putting(storage)
	if err := writeFile(options.ConfigFilePath, connection); err != nil {
		return connection, err
	}
	caching := velero.CachingOptions
	caching.ContentCacheSizeBytes, caching.ContentCacheSizeLimitBytes = writeDataCacheBytes, writeDataCacheBytes
	caching.MetadataCacheSizeBytes, caching.MetadataCacheSizeLimitBytes = writeMetadataCacheBytes, writeMetadataCacheBytes
	if err := repo.SetCachingOptions(ctx, options.ConfigFilePath, &caching); err != nil {
		return connection, fmt.Errorf("configure caches: %w", err)
	}
	return connection, nil
}

// explain adds what a person can do about an error of kopia.
func explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, repo.ErrInvalidPassword):
		err = fmt.Errorf("the password in Secret %s is not this repository's, or %s: %w", keys.RepoKeySelector().Name, adviseFormat, err)
	case errors.Is(err, backend.ErrStoreNotExist):
		return fmt.Errorf("there is no repository in the storage, Velero initializes it before the first backup: %w", err)
	case errors.Is(err, repo.ErrRepositoryNotInitialized):
		err = fmt.Errorf("there is no repository in the storage, Velero initializes it before the first backup; if there was a backup, put back the blob %s: %w",
			kopiaformat.KopiaRepositoryBlobID, err)
	}
	return explainOpen(ctx, err)
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
