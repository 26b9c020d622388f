package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// ours is the command line of blockmover on one repository.
type ours struct {
	binary, repo string
	// memoryLimit, if not 0, is what the garbage collector keeps to.
	memoryLimit int64
	// cores, if not 0, is how many it is told that it has.
	cores int
}

const password = "benchmark"

func (o ours) child(args ...string) child {
	env := []string{"BLOCKMOVER_REPO_PASSWORD=" + password}
	if o.memoryLimit > 0 {
		env = append(env, fmt.Sprintf("GOMEMLIMIT=%d", o.memoryLimit))
	}
	if o.cores > 0 {
		env = append(env, fmt.Sprintf("GOMAXPROCS=%d", o.cores))
	}
	return child{args: append(append([]string{o.binary}, args...), "--repo", o.repo), env: env}
}

// create makes a new repository.
func (o ours) create(ctx context.Context) error { return o.createWith(ctx, hashBLAKE2b) }

// backup has the fields of `image backup --json` that matter here.
type backup struct {
	SnapshotID    string `json:"snapshotID"`
	Kind          string `json:"kind"`
	VolumeSize    int64  `json:"volumeSize"`
	BytesRead     int64  `json:"bytesRead"`
	BytesUploaded int64  `json:"bytesUploaded"`
	MetadataBytes int64  `json:"metadataBytes"`
	PeakRSS       int64  `json:"peakRSS"`
}

func (o ours) backup(ctx context.Context, device, kind string, args ...string) (sample, backup, error) {
	before, err := diskUsage(o.repo)
	if err != nil {
		return sample{}, backup{}, err
	}
	args = append([]string{"image", "backup", "--volume", "bench/volume", "--device", device, "--json"}, args...)
	s, out, err := o.child(args...).run(ctx)
	if err != nil {
		return s, backup{}, err
	}
	var b backup
	if err := json.Unmarshal(out, &b); err != nil {
		return s, b, fmt.Errorf("read result of backup: %w", err)
	}
	if b.Kind != kind {
		return s, b, fmt.Errorf("image %s is %s, want %s", b.SnapshotID, b.Kind, kind)
	}
	after, err := diskUsage(o.repo)
	s.PeakRSS, s.Work, s.Grew = b.PeakRSS, b.BytesRead, after-before
	s.Uploaded, s.Metadata = b.BytesUploaded, b.MetadataBytes
	return s, b, err
}

// stock is the command line of kopia on one repository.
type stock struct {
	binary, dir string
}

func (k stock) child(args ...string) child {
	return child{args: append([]string{k.binary}, args...), env: []string{
		"KOPIA_PASSWORD=" + password,
		"KOPIA_CHECK_FOR_UPDATES=false",
		"KOPIA_CONFIG_PATH=" + filepath.Join(k.dir, "repository.config"),
		"KOPIA_CACHE_DIRECTORY=" + filepath.Join(k.dir, "cache"),
		"KOPIA_LOG_DIR=" + filepath.Join(k.dir, "log"),
	}}
}

func (k stock) repo() string { return filepath.Join(k.dir, "repo") }

// create makes a new repository, as Velero does today.
func (k stock) create(ctx context.Context) error { return k.createWith(ctx, hashBLAKE2b) }

// snapshot backs up a path, or a device that is standard input.
func (k stock) snapshot(ctx context.Context, path, device string, work int64) (sample, string, error) {
	before, err := diskUsage(k.repo())
	if err != nil {
		return sample{}, "", err
	}
	s, out, err := k.snapshotOf(path, device).run(ctx)
	if err != nil {
		return s, "", err
	}
	id, err := snapshotID(out)
	if err != nil {
		return s, "", err
	}
	after, err := diskUsage(k.repo())
	s.Work, s.Grew = work, after-before
	return s, id, err
}

// snapshotOf is the command that backs up a path, or a device that is standard input.
func (k stock) snapshotOf(path, device string) child {
	c := k.child("snapshot", "create", "--json", "--no-progress", path)
	if device != "" {
		c.args = append(c.args, "--stdin-file", "disk.raw")
		c.stdin = device
	}
	return c
}

// snapshotID reads what that command prints.
func snapshotID(out []byte) (string, error) {
	var snapshot struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(out, &snapshot); err != nil {
		return "", fmt.Errorf("read result of kopia: %w", err)
	}
	return snapshot.ID, nil
}

// restore writes a snapshot of a directory into another one, as a client with empty caches.
func (k stock) restore(ctx context.Context, id, target string, work int64) (sample, error) {
	for _, name := range []string{"cache", "repository.config"} {
		if err := os.RemoveAll(filepath.Join(k.dir, name)); err != nil {
			return sample{}, err
		}
	}
	if _, _, err := k.child("repository", "connect", "filesystem", "--path", k.repo()).run(ctx); err != nil {
		return sample{}, err
	}
	s, _, err := k.child("snapshot", "restore", "--no-progress", id, target).run(ctx)
	s.Work = work
	return s, err
}
