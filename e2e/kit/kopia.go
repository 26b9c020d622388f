package kit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Kopia is a stock kopia command line with a read-only connection to the repository of one
// namespace.
type Kopia struct {
	kit    *Kit
	config string
	env    []string
	// folder is the path of the repository in the object storage, with the bucket first.
	folder string
}

// access is how the repository of a namespace is reached.
type access struct {
	bucket, prefix, url, region string
	// password is that of the repository, and cloud the credentials file of the object store.
	password, cloud string
}

// access reads the default backup storage location. prefix is that of the repository.
func (k *Kit) access(ctx context.Context, namespace string) (access, error) {
	var location struct {
		Spec struct {
			Config        map[string]string `json:"config"`
			ObjectStorage struct {
				Bucket string `json:"bucket"`
				Prefix string `json:"prefix"`
			} `json:"objectStorage"`
		} `json:"spec"`
	}
	if err := k.Get(ctx, &location, "-n", k.VeleroNamespace, "backupstoragelocations.velero.io", "default"); err != nil {
		return access{}, err
	}
	a := access{
		bucket: location.Spec.ObjectStorage.Bucket, prefix: path.Join(location.Spec.ObjectStorage.Prefix, "kopia", namespace),
		url: location.Spec.Config["s3Url"], region: location.Spec.Config["region"],
	}
	var err error
	if a.password, err = k.secret(ctx, "velero-repo-credentials", "repository-password"); err != nil {
		return access{}, err
	}
	a.cloud, err = k.secret(ctx, "cloud-credentials", "cloud")
	return a, err
}

// Local runs a local command of blockmover that reads the repository of a namespace in the object
// store. dir is scratch space.
func (k *Kit) Local(ctx context.Context, namespace, dir string, args ...string) (string, error) {
	a, err := k.access(ctx, namespace)
	if err != nil {
		return "", err
	}
	credentials := filepath.Join(dir, "cloud")
	if err := os.WriteFile(credentials, []byte(a.cloud), 0o600); err != nil {
		return "", fmt.Errorf("write credentials: %w", err)
	}
	address := fmt.Sprintf("s3://%s/%s?endpoint=%s&region=%s", a.bucket, a.prefix, url.QueryEscape(a.url), a.region)
	return k.run(ctx, []string{"BLOCKMOVER_REPO_PASSWORD=" + a.password}, "", "blockmover",
		append(args, "--repo", address, "--credentials-file", credentials)...)
}

// StockKopia connects to the repository of a namespace, in the default backup
// storage location. dir is scratch space for its configuration and cache.
func (k *Kit) StockKopia(ctx context.Context, namespace, dir string) (*Kopia, error) {
	a, err := k.access(ctx, namespace)
	if err != nil {
		return nil, err
	}
	accessKey, secretKey, err := parseProfile(a.cloud)
	if err != nil {
		return nil, err
	}
	endpoint, secure := strings.CutPrefix(a.url, "https://")
	if !secure {
		endpoint = strings.TrimPrefix(a.url, "http://")
	}
	kopia := &Kopia{kit: k, config: filepath.Join(dir, "kopia.config"), folder: a.bucket + "/" + a.prefix + "/", env: []string{
		"KOPIA_PASSWORD=" + a.password,
		"KOPIA_CHECK_FOR_UPDATES=false",
		"KOPIA_CACHE_DIRECTORY=" + filepath.Join(dir, "cache"),
		"KOPIA_LOG_DIR=" + filepath.Join(dir, "log"),
	}}
	args := []string{
		"repository", "connect", "s3",
		"--bucket", a.bucket, "--prefix", a.prefix + "/", "--endpoint", endpoint,
		"--region", a.region,
		"--access-key", accessKey,
		"--secret-access-key", secretKey,
		"--readonly", "--override-username", "default", "--override-hostname", "default",
	}
	if !secure {
		args = append(args, "--disable-tls")
	}
	_, err = kopia.Run(ctx, args...)
	return kopia, err
}

// parseProfile reads an AWS shared credentials file with one profile.
func parseProfile(file string) (accessKey, secretKey string, err error) {
	for line := range strings.Lines(file) {
		name, value, _ := strings.Cut(line, "=")
		switch strings.TrimSpace(name) {
		case "aws_access_key_id":
			accessKey = strings.TrimSpace(value)
		case "aws_secret_access_key":
			secretKey = strings.TrimSpace(value)
		}
	}
	if accessKey == "" || secretKey == "" {
		return "", "", errors.New("parse cloud credentials: access key or secret key is missing")
	}
	return accessKey, secretKey, nil
}

func (k *Kit) secret(ctx context.Context, name, key string) (string, error) {
	encoded, err := k.Kubectl(ctx, "-n", k.VeleroNamespace, "get", "secret", name, "-o", "jsonpath={.data."+key+"}")
	if err != nil {
		return "", err
	}
	value, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", fmt.Errorf("decode secret %s: %w", name, err)
	}
	return string(value), nil
}

// Run executes kopia against the repository.
func (c *Kopia) Run(ctx context.Context, args ...string) (string, error) {
	return c.kit.run(ctx, c.env, "", "kopia", append([]string{"--config-file", c.config}, args...)...)
}

// KopiaSnapshot is one line of `kopia snapshot list`.
type KopiaSnapshot struct {
	ID     string `json:"id"`
	Source struct {
		Path string `json:"path"`
	} `json:"source"`
	IncompleteReason string            `json:"incomplete"`
	Tags             map[string]string `json:"tags"`
	RootEntry        struct {
		Object string `json:"obj"`
	} `json:"rootEntry"`
}

// Snapshots lists all repo snapshots.
func (c *Kopia) Snapshots(ctx context.Context) ([]KopiaSnapshot, error) {
	var list []KopiaSnapshot
	err := c.decode(ctx, &list, "snapshot", "list", "--all", "--json", "--incomplete", "--max-results", "1000")
	return list, err
}

// SnapshotDirectory makes a repo snapshot of a directory under the name of a source, as any
// program with the password can. Afterwards the connection is not read-only any more.
func (c *Kopia) SnapshotDirectory(ctx context.Context, source, dir string) error {
	if _, err := c.Run(ctx, "repository", "set-client", "--read-write"); err != nil {
		return err
	}
	// The pin protects it from kopia's retention.
	_, err := c.Run(ctx, "snapshot", "create", "--override-source", source, "--pin", "velero-pin", "--no-auto-maintenance", dir)
	return err
}

// KopiaContent says where a content is.
type KopiaContent struct {
	// Object is the path of the object that has it: bucket and key.
	Object string
	Offset int64
	Length int64
}

// ContentOf finds the content of a small file of a repo snapshot. The file has only one.
func (c *Kopia) ContentOf(ctx context.Context, snapshot KopiaSnapshot, name string) (KopiaContent, error) {
	var directory struct {
		Entries []struct {
			Name   string `json:"name"`
			Object string `json:"obj"`
		} `json:"entries"`
	}
	if err := c.decode(ctx, &directory, "show", snapshot.RootEntry.Object); err != nil {
		return KopiaContent{}, err
	}
	for _, entry := range directory.Entries {
		if entry.Name != name {
			continue
		}
		var found []struct {
			Pack   string `json:"packFile"`
			Offset int64  `json:"packOffset"`
			Length int64  `json:"length"`
		}
		if err := c.decode(ctx, &found, "content", "list", "--json", "--prefix", entry.Object); err != nil {
			return KopiaContent{}, err
		}
		if len(found) != 1 {
			return KopiaContent{}, fmt.Errorf("find content %s of %s: there are %d, want 1", entry.Object, name, len(found))
		}
		return KopiaContent{Object: c.folder + found[0].Pack, Offset: found[0].Offset, Length: found[0].Length}, nil
	}
	return KopiaContent{}, fmt.Errorf("find %s in repo snapshot %s: it is not there", name, snapshot.ID)
}

// decode reads the JSON that kopia prints.
func (c *Kopia) decode(ctx context.Context, into any, args ...string) error {
	out, err := c.Run(ctx, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("decode kopia %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Verify reads every byte of every repo snapshot.
func (c *Kopia) Verify(ctx context.Context) error {
	_, err := c.Run(ctx, "snapshot", "verify", "--verify-files-percent=100")
	return err
}

// RestoreDisk restores disk.raw of a repo snapshot below dir and returns its
// path.
func (c *Kopia) RestoreDisk(ctx context.Context, id, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("create restore directory: %w", err)
	}
	_, err := c.Run(ctx, "snapshot", "restore", id, dir)
	return filepath.Join(dir, "disk.raw"), err
}
