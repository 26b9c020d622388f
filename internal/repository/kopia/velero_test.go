package kopia

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerorepo "github.com/vmware-tanzu/velero/pkg/repository"
	repomanager "github.com/vmware-tanzu/velero/pkg/repository/manager"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/repository"
)

// veleroFixture is a cluster with one BackupRepository in a directory, and a
// pod's home and credentials.
type veleroFixture struct {
	client   client.Client
	object   *velerov1.BackupRepository
	location *velerov1.BackupStorageLocation
	options  VeleroOptions
}

func newVeleroFixture(t *testing.T) *veleroFixture {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", filepath.Join(dir, "home"))
	t.Setenv("XDG_CACHE_HOME", "")
	f := &veleroFixture{
		object: &velerov1.BackupRepository{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "app-default-kopia", UID: types.UID("0F0F")},
			Spec: velerov1.BackupRepositorySpec{
				VolumeNamespace: "app", BackupStorageLocation: "default", RepositoryType: velerov1.BackupRepositoryTypeKopia,
			},
		},
		location: &velerov1.BackupStorageLocation{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "default"},
			Spec:       velerov1.BackupStorageLocationSpec{Provider: "velero.io/fs", Config: map[string]string{"fspath": filepath.Join(dir, "storage")}},
		},
		options: VeleroOptions{
			Namespace: "velero", BackupRepository: "app-default-kopia",
			CredentialsDir: filepath.Join(dir, "credentials"),
			Log:            logr.Discard(),
		},
	}
	f.mount(t, "repository/repository-password", "correct horse\n")
	f.build(t)
	return f
}

func (f *veleroFixture) build(t *testing.T) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := velerov1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	f.client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(f.object.DeepCopy(), f.location.DeepCopy()).Build()
}

func (f *veleroFixture) mount(t *testing.T, name, value string) {
	t.Helper()
	path := filepath.Join(f.options.CredentialsDir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

// initialize does what the Velero server does before the first backup.
func (f *veleroFixture) initialize(t *testing.T) {
	t.Helper()
	mounted := mountedCredentials{f.options.CredentialsDir}
	m := repomanager.NewManager("velero", f.client, velerorepo.NewRepoLocker(), mounted, mounted, newLogrus(logr.Discard()))
	if err := m.InitRepo(f.object); err != nil {
		t.Fatal(err)
	}
}

func (f *veleroFixture) open(t *testing.T) repo.Repository {
	t.Helper()
	store, err := OpenVelero(t.Context(), f.client, f.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return store.rep
}

func TestOpenVelero(t *testing.T) {
	f := newVeleroFixture(t)
	f.initialize(t)
	rep := f.open(t)
	if got := rep.ClientOptions().UsernameAtHost(); got != "default@default" {
		t.Errorf("user is %s, want Velero's default@default", got)
	}
	var id manifest.ID
	err := repo.WriteSession(t.Context(), rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) (err error) {
		id, err = w.PutManifest(ctx, map[string]string{"type": "test"}, "payload")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	// For reading, the same repository opens even if backups are refused.
	f.location.Spec.AccessMode = velerov1.BackupStorageLocationAccessModeReadOnly
	f.build(t)
	if _, err := OpenVelero(t.Context(), f.client, f.options); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("error is %v, want that the location is read-only", err)
	}
	f.options.ReadOnly = true
	reader := f.open(t)
	var payload string
	if _, err := reader.GetManifest(t.Context(), id, &payload); err != nil || payload != "payload" {
		t.Errorf("manifest is %q, %v", payload, err)
	}
	err = repo.WriteSession(t.Context(), reader, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		_, err := w.PutManifest(ctx, map[string]string{"type": "test"}, "payload")
		return err
	})
	if err == nil {
		t.Error("no error of a write to a repository that was opened for reading")
	}
}

func TestOpenVeleroCaches(t *testing.T) {
	f := newVeleroFixture(t)
	f.initialize(t)
	f.open(t)
	file := filepath.Join(os.Getenv("HOME"), "udmrepo", "repo-0f0f.conf")
	local, err := repo.LoadConfigFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := local.Caching
	if c.ContentCacheSizeLimitBytes != writeDataCacheBytes || c.MetadataCacheSizeLimitBytes != writeMetadataCacheBytes {
		t.Errorf("cache limits are %d and %d bytes", c.ContentCacheSizeLimitBytes, c.MetadataCacheSizeLimitBytes)
	}
	if !strings.HasPrefix(c.CacheDirectory, os.Getenv("HOME")+"/") {
		t.Errorf("cache directory is %s, want one in the home", c.CacheDirectory)
	}
	f.options.ReadOnly = true
	t.Setenv("KOPIA_CACHE_DIRECTORY", t.TempDir())
	f.open(t)
	if local, err = repo.LoadConfigFromFile(file); err != nil {
		t.Fatal(err)
	}
	if local.Caching != nil || !local.ReadOnly {
		t.Errorf("for reading: caching %+v, read-only %v", local.Caching, local.ReadOnly)
	}
}

// damage overwrites the blobs with a prefix, of which there must be some.
func (f *veleroFixture) damage(t *testing.T, blobs string) {
	t.Helper()
	store, err := OpenVelero(t.Context(), f.client, f.options)
	require.NoError(t, err)
	require.NoError(t, repo.WriteSession(t.Context(), store.rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		_, err := w.PutManifest(ctx, map[string]string{"type": "test"}, "payload")
		return err
	}))
	require.NoError(t, store.Close(t.Context()))
	require.NoError(t, os.RemoveAll(os.Getenv("HOME"))) // with kopia's caches
	f.damageFiles(t, blobs)
}

// storage is the directory of the repository.
func (f *veleroFixture) storage() string {
	return filepath.Join(f.location.Spec.Config["fspath"], "kopia", "app")
}

func (f *veleroFixture) damageFiles(t *testing.T, blobs string) {
	t.Helper()
	files := blobFiles(t, f.storage(), blobs)
	require.NotEmpty(t, files)
	for _, file := range files {
		require.NoError(t, os.WriteFile(file, []byte("no blob of kopia's"), 0o600))
	}
}

func TestOpenVeleroErrors(t *testing.T) {
	isUnusable := func(err error) bool { return errors.Is(err, repository.ErrUnusable) }
	isUsable := func(err error) bool { return !errors.Is(err, repository.ErrUnusable) }
	// For writing, kopia needs all of them.
	overwrite := func(blobs string) func(*testing.T, *veleroFixture) {
		return func(t *testing.T, f *veleroFixture) {
			t.Helper()
			f.damage(t, blobs)
		}
	}
	for _, test := range []struct {
		name       string
		initialize bool
		spoil      func(*testing.T, *veleroFixture)
		want       string
		is         func(error) bool
	}{
		{"damaged index", true, overwrite("xn"), "put the index blob back", isUnusable},
		{"damaged format", true, overwrite("kopia.repository"), "put back the blob kopia.repository", isUnusable},
		{"damaged configuration", true, overwrite("kopia.blobcfg"), "put back the blob kopia.blobcfg", isUnusable},
		{"password of another repository", true, func(t *testing.T, f *veleroFixture) {
			t.Helper()
			f.mount(t, "repository/repository-password", "wrong")
		}, "or the blob kopia.repository is damaged", isUnusable},
		{"no password", true, func(t *testing.T, f *veleroFixture) {
			t.Helper()
			f.options.CredentialsDir += "-elsewhere"
		}, "key repository-password", isUsable},
		{"not initialized", false, func(*testing.T, *veleroFixture) {}, "there is no repository in the storage", isUsable},
		{"empty storage", false, func(t *testing.T, f *veleroFixture) {
			t.Helper()
			if err := os.MkdirAll(filepath.Join(f.location.Spec.Config["fspath"], "kopia", "app"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "there is no repository in the storage", isUnusable},
		{"wrong password", true, func(t *testing.T, f *veleroFixture) {
			t.Helper()
			f.mount(t, "repository/repository-password", "wrong")
		}, "password in Secret velero-repo-credentials is not this repository's", func(err error) bool { return errors.Is(err, repo.ErrInvalidPassword) }},
		{"password not mounted", true, func(t *testing.T, f *veleroFixture) {
			t.Helper()
			f.options.CredentialsDir += "-elsewhere"
		}, "key repository-password of Secret velero-repo-credentials", func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{"restic", true, func(t *testing.T, f *veleroFixture) {
			t.Helper()
			f.object.Spec.RepositoryType = "restic"
			f.build(t)
		}, `repository type is "restic", want "kopia"`, nil},
		{"no object", true, func(_ *testing.T, f *veleroFixture) { f.options.BackupRepository = "other" }, "get BackupRepository", apierrors.IsNotFound},
		{"no location", true, func(t *testing.T, f *veleroFixture) {
			t.Helper()
			f.object.Spec.BackupStorageLocation = "gone"
			f.build(t)
		}, "get BackupStorageLocation", apierrors.IsNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newVeleroFixture(t)
			if test.initialize {
				f.initialize(t)
			}
			test.spoil(t, f)
			_, err := OpenVelero(t.Context(), f.client, f.options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
			if test.is != nil && !test.is(err) {
				t.Errorf("error %v does not wrap its cause", err)
			}
		})
	}
}

// TestConnectIsVeleros compares the connection file with what Velero's own code writes.
func TestConnectIsVeleros(t *testing.T) {
	f := newVeleroFixture(t)
	f.initialize(t)
	mounted := mountedCredentials{f.options.CredentialsDir}
	m := repomanager.NewManager("velero", f.client, velerorepo.NewRepoLocker(), mounted, mounted, newLogrus(logr.Discard()))
	require.NoError(t, m.ConnectToRepo(f.object))
	file := filepath.Join(os.Getenv("HOME"), "udmrepo", "repo-0f0f.conf")
	want, err := repo.LoadConfigFromFile(file)
	require.NoError(t, err)
	require.NoError(t, os.Remove(file))
	f.open(t)
	got, err := repo.LoadConfigFromFile(file)
	require.NoError(t, err)
	inner, ok := got.Storage.Config.(*blob.ConnectionInfo)
	require.True(t, ok)
	handed, ok := inner.Config.(*handedOver)
	require.True(t, ok)
	require.Equal(t, *want.Storage, handed.Inner)
	require.Equal(t, putting(blob.ConnectionInfo{Type: handedOverType, Config: handed}), got.Storage)
	_, left := handedOverStorages.Load(handed.Handle)
	require.False(t, left, "kopia has taken it")
	require.Equal(t, want.ClientOptions, got.ApplyDefaults(t.Context(), want.Description))
	require.Equal(t, want.Caching.MaxListCacheDuration, got.Caching.MaxListCacheDuration)
}

// TestOpenVeleroIsCanceled has a password that takes for ever to read: Velero's code takes no context.
// TestOpenVeleroBesideDamage: for reading, a repository opens without a part of its index and without its configuration.
func TestOpenVeleroBesideDamage(t *testing.T) {
	f := newVeleroFixture(t)
	f.initialize(t)
	f.damage(t, "xn")
	f.damageFiles(t, "kopia.blobcfg")
	f.options.ReadOnly = true
	store, err := OpenVelero(t.Context(), f.client, f.options)
	require.NoError(t, err)
	losses, err := store.Losses(t.Context())
	require.NoError(t, err)
	require.Len(t, losses, len(blobFiles(t, f.storage(), "xn")))
	for _, l := range losses {
		require.ErrorContains(t, l.Cause, "index blob xn0_")
	}
	require.NoError(t, store.Close(t.Context()))
}

func TestOpenVeleroIsCanceled(t *testing.T) {
	f := newVeleroFixture(t)
	password := filepath.Join(f.options.CredentialsDir, "repository", "repository-password")
	require.NoError(t, os.Remove(password))
	require.NoError(t, unix.Mkfifo(password, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := OpenVelero(ctx, f.client, f.options)
		done <- err
	}()
	select {
	case err := <-done:
		require.ErrorIs(t, err, context.DeadlineExceeded)
	case <-time.After(10 * time.Second):
		t.Fatal("canceled, but still connecting after 10 s")
	}
	released, err := os.OpenFile(password, os.O_WRONLY, 0)
	require.NoError(t, err)
	require.NoError(t, released.Close())
}

func TestMountedCredentials(t *testing.T) {
	f := newVeleroFixture(t)
	f.mount(t, "location/bsl-secret/cloud", "key of the location")
	m := mountedCredentials{f.options.CredentialsDir}
	selector := &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "bsl-secret"}, Key: "cloud"}
	path, err := m.Path(selector)
	if want := filepath.Join(f.options.CredentialsDir, "location/bsl-secret/cloud"); err != nil || path != want {
		t.Errorf("path is %q, %v, want %q", path, err, want)
	}
	if value, err := m.Get(selector); err != nil || value != "key of the location" {
		t.Errorf("value is %q, %v", value, err)
	}
	selector.Key = "other"
	if _, err := m.Path(selector); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want that the file does not exist", err)
	}
}

func TestLogrusLinesGoToLogr(t *testing.T) {
	var lines []string
	sink := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{Verbosity: 1})
	log := newLogrus(sink)
	log.WithFields(logrus.Fields{"b": 2, "a": 1}).Debug("details")
	log.WithError(errors.New("slow")).Warn("retrying")
	log.WithError(errors.New("broken")).Error("giving up")
	log.Info("done")
	want := []string{
		`"level"=1 "msg"="details" "a"=1 "b"=2`,
		`"level"=0 "msg"="retrying" "severity"="warning" "error"="slow"`,
		`"msg"="giving up" "error"="broken"`,
		`"level"=0 "msg"="done"`,
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("lines:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	lines = nil
	newLogrus(logr.Discard()).Debug("details")
	if len(lines) != 0 {
		t.Errorf("debug lines although nobody asked: %q", lines)
	}
}
