package kopia

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/repository/keys"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Location is where a repository of Velero is in an object store.
type Location struct {
	// Provider is that of a BackupStorageLocation: aws, azure or gcp.
	Provider string
	Bucket   string
	// Prefix is that of the BackupStorageLocation, or "".
	Prefix string
	// Namespace is that of the volumes: Velero has a repository for each.
	Namespace string
	// Config is that of the BackupStorageLocation.
	Config map[string]string
	// CAFile is a file with the CA of the object store, or "".
	CAFile string
}

// store is how the address of an object store is written.
type store struct {
	provider string
	// settings are the parameters of the address, and the keys of the BackupStorageLocation's config
	// that they stand for.
	settings map[string]string
}

// paramCA is the parameter with the file of the CA.
const paramCA = "ca"

var stores = map[string]store{
	"s3": {"aws", map[string]string{
		"endpoint": "s3Url", "s3Url": "s3Url", "region": "region", "profile": "profile", "insecureSkipTLSVerify": "insecureSkipTLSVerify",
	}},
	"azblob": {"azure", map[string]string{
		"storageAccount": "storageAccount", "resourceGroup": "resourceGroup", "subscriptionId": "subscriptionId", "storageAccountURI": "storageAccountURI",
		"storageAccountKeyEnvVar": "storageAccountKeyEnvVar", "activeDirectoryAuthorityURI": "activeDirectoryAuthorityURI", "useAAD": "useAAD",
	}},
	"gs": {"gcp", map[string]string{}},
}

// IsLocation reports whether a text is the address of a repository in an object store, and no directory.
func IsLocation(text string) bool { return strings.Contains(text, "://") }

// ParseLocation reads an address such as
//
//	s3://bucket/prefix/kopia/NAMESPACE?endpoint=https://host:9000&region=eu
//
// with the parts of a BackupStorageLocation. The schemes are s3, azblob and gs.
func ParseLocation(text string) (Location, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Location{}, fmt.Errorf("read address of repository: %w", err)
	}
	fail := func(format string, args ...any) (Location, error) {
		return Location{}, fmt.Errorf("read address of repository %s: %w", u.Redacted(), fmt.Errorf(format, args...))
	}
	s, ok := stores[u.Scheme]
	if !ok {
		return fail("the scheme is %q, want one of file, %s", u.Scheme, strings.Join(slices.Sorted(maps.Keys(stores)), ", "))
	}
	if u.Host == "" || u.User != nil || u.Fragment != "" {
		return fail("want %s://BUCKET/[PREFIX/]kopia/NAMESPACE", u.Scheme)
	}
	rest, namespace := path.Split(strings.Trim(u.Path, "/"))
	prefix, kind := path.Split(strings.Trim(rest, "/"))
	if namespace == "" || kind != "kopia" {
		return fail("its path is %q, want [PREFIX/]kopia/NAMESPACE", strings.Trim(u.Path, "/"))
	}
	l := Location{Provider: s.provider, Bucket: u.Host, Prefix: strings.Trim(prefix, "/"), Namespace: namespace, Config: map[string]string{}}
	for name, values := range u.Query() {
		key, known := s.settings[name]
		switch {
		case len(values) != 1 || values[0] == "":
			return fail("parameter %s needs one value", name)
		case name == paramCA:
			l.CAFile = values[0]
		case !known:
			return fail("parameter %s is unknown, want one of %s", name, strings.Join(slices.Sorted(maps.Keys(s.settings)), ", ")+", "+paramCA)
		default:
			l.Config[key] = values[0]
		}
	}
	if address := l.Config["s3Url"]; address != "" && !strings.Contains(address, "://") {
		l.Config["s3Url"] = "https://" + address
	}
	return l, nil
}

// OpenLocation opens a repository that Velero made, for reading. It takes Velero's own way, so what
// Velero can reach, it can reach. credentials is a file as the BackupStorageLocation's provider uses it;
// with "", the libraries of the provider look where they usually do. Nothing stays on the disk.
func OpenLocation(ctx context.Context, l Location, credentials, password string, log logr.Logger) (*Store, error) {
	const namespace, name = "local", "repository"
	dir, err := os.MkdirTemp("", "blockmover-")
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	location := &velerov1.BackupStorageLocation{}
	location.Namespace, location.Name = namespace, name
	location.Spec.Provider, location.Spec.Config = l.Provider, maps.Clone(l.Config)
	location.Spec.ObjectStorage = &velerov1.ObjectStorageLocation{Bucket: l.Bucket, Prefix: l.Prefix}
	if l.CAFile != "" {
		if location.Spec.ObjectStorage.CACert, err = os.ReadFile(l.CAFile); err != nil {
			return nil, fmt.Errorf("read CA of the object store: %w", err)
		}
	}
	own := keys.RepoKeySelector()
	files := map[string]string{filepath.Join("repository", own.Key): password}
	if credentials != "" {
		text, err := os.ReadFile(credentials)
		if err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		files[filepath.Join("location", name, "cloud")] = string(text)
		location.Spec.Credential = &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: "cloud"}
	}
	for file, text := range files {
		file = filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			return nil, fmt.Errorf("open repository: %w", err)
		}
	}
	repository := &velerov1.BackupRepository{}
	repository.Namespace, repository.Name, repository.UID = namespace, name, name
	repository.Spec = velerov1.BackupRepositorySpec{
		VolumeNamespace: l.Namespace, BackupStorageLocation: name, RepositoryType: velerov1.BackupRepositoryTypeKopia,
	}
	back, err := moveHome(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	defer back()
	store, err := connectVelero(ctx, twoObjects{location: location, repository: repository}, VeleroOptions{
		Namespace: namespace, BackupRepository: name, CredentialsDir: dir, ReadOnly: true, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("open repository of namespace %s in bucket %s: %w", l.Namespace, l.Bucket, explainLocal(ctx, err))
	}
	return store, nil
}

// moveHome sets HOME, below which Velero writes the connection with its secrets. The credentials that
// the library of AWS finds below HOME stay where they are.
func moveHome(dir string) (func(), error) {
	home := os.Getenv("HOME")
	set := map[string]string{"HOME": dir}
	for key, file := range map[string]string{"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"} {
		file = filepath.Join(home, ".aws", file)
		if _, err := os.Stat(file); err == nil && os.Getenv(key) == "" {
			set[key] = file
		}
	}
	before := map[string]string{}
	for key, value := range set {
		before[key] = os.Getenv(key)
		if err := os.Setenv(key, value); err != nil {
			return nil, err
		}
	}
	return func() {
		for key, value := range before {
			_ = os.Setenv(key, value) // it was set before
		}
	}, nil
}

// twoObjects is a cluster with the two objects that Velero reads to find a repository.
type twoObjects struct {
	client.Client
	location   *velerov1.BackupStorageLocation
	repository *velerov1.BackupRepository
}

// Get implements client.Client.
func (o twoObjects) Get(_ context.Context, _ client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	switch into := into.(type) {
	case *velerov1.BackupStorageLocation:
		o.location.DeepCopyInto(into)
	case *velerov1.BackupRepository:
		o.repository.DeepCopyInto(into)
	default:
		return &meta.NoKindMatchError{GroupKind: schema.GroupKind{Kind: fmt.Sprintf("%T", into)}}
	}
	return nil
}
