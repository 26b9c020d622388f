package kit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Kopia is a stock kopia command line that is connected, read-only, to the
// repository that Velero keeps for one namespace.
type Kopia struct {
	kit    *Kit
	config string
	env    []string
}

// StockKopia connects to the repository of a namespace, in the default backup
// storage location. dir is scratch space for its configuration and cache.
func (k *Kit) StockKopia(ctx context.Context, namespace, dir string) (*Kopia, error) {
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
		return nil, err
	}
	password, err := k.secret(ctx, "velero-repo-credentials", "repository-password")
	if err != nil {
		return nil, err
	}
	cloud, err := k.secret(ctx, "cloud-credentials", "cloud")
	if err != nil {
		return nil, err
	}
	accessKey, secretKey, err := parseProfile(cloud)
	if err != nil {
		return nil, err
	}
	endpoint, secure := strings.CutPrefix(location.Spec.Config["s3Url"], "https://")
	if !secure {
		endpoint = strings.TrimPrefix(location.Spec.Config["s3Url"], "http://")
	}
	prefix := "kopia/" + namespace + "/"
	if location.Spec.ObjectStorage.Prefix != "" {
		prefix = location.Spec.ObjectStorage.Prefix + "/" + prefix
	}
	kopia := &Kopia{kit: k, config: filepath.Join(dir, "kopia.config"), env: []string{
		"KOPIA_PASSWORD=" + password,
		"KOPIA_CHECK_FOR_UPDATES=false",
		"KOPIA_CACHE_DIRECTORY=" + filepath.Join(dir, "cache"),
		"KOPIA_LOG_DIR=" + filepath.Join(dir, "log"),
	}}
	args := []string{
		"repository", "connect", "s3",
		"--bucket", location.Spec.ObjectStorage.Bucket, "--prefix", prefix, "--endpoint", endpoint,
		"--region", location.Spec.Config["region"],
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
}

// Snapshots lists all repo snapshots.
func (c *Kopia) Snapshots(ctx context.Context) ([]KopiaSnapshot, error) {
	out, err := c.Run(ctx, "snapshot", "list", "--all", "--json", "--incomplete", "--max-results", "1000")
	if err != nil {
		return nil, err
	}
	var list []KopiaSnapshot
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("decode kopia snapshot list: %w", err)
	}
	return list, nil
}

// Verify reads back every byte of every repo snapshot.
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
