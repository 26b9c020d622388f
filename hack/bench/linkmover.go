package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-logr/logr"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	job "github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/rangefile"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
	"github.com/blockmover/blockmover/internal/restore"
	"github.com/blockmover/blockmover/mover/heap"
)

// moverCommand makes this program do the work of a mover pod, in a process of its own: the command line of blockmover writes only
// into directories. Its argument is a moverTask as JSON.
const moverCommand = "mover"

// moverTask is what a mover is to do: a backup, a restore of an image, or a list of the images.
type moverTask struct {
	// Address of the object store.
	Address string
	Volume  string
	// Device is read, or written if Restore is set. Without it, the images are listed.
	Device  string
	Restore repository.SnapshotID
	// Changed and Allocated are files with ranges, or "".
	Changed, Allocated string
	// Dir is for what the process writes besides.
	Dir string
}

// moverResult is what it prints.
type moverResult struct {
	SnapshotID repository.SnapshotID
	Kind       repository.Kind
	PeakRSS    int64
}

const (
	linkBucket    = "bench"
	linkNamespace = "app"
	linkRegion    = "us-east-1"
	linkAccess    = "benchmark"
	linkSecret    = "benchmark-secret"
)

func runMover(ctx context.Context, argument string) error {
	var t moverTask
	if err := json.Unmarshal([]byte(argument), &t); err != nil {
		return fmt.Errorf("read task: %w", err)
	}
	store, err := openLinked(ctx, t)
	if err != nil {
		return err
	}
	heap.Limit()
	var r moverResult
	switch {
	case t.Device == "":
		_, err = store.List(ctx, repository.VolumeKey{Namespace: linkNamespace, PVC: t.Volume})
	case t.Restore != "":
		_, err = restore.Run(ctx, restore.Job{
			Store: store, Snapshot: t.Restore,
			Open: func(int64) (device.Writer, error) { return device.OpenWriter(t.Device) },
		})
	default:
		r.SnapshotID, r.Kind, err = t.backUp(ctx, store)
	}
	if err := errors.Join(err, store.Close(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	if r.PeakRSS, err = heap.Peak(os.Getpid()); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func (t moverTask) backUp(ctx context.Context, store *kopia.Store) (repository.SnapshotID, repository.Kind, error) {
	dev, err := device.Open(t.Device)
	if err != nil {
		return "", "", err
	}
	defer dev.Close() //nolint:errcheck // it was only read
	source := rangefile.Source{Capacity: dev.Size()}
	if source.ChangedRanges, err = readRanges(t.Changed, dev.Size()); err != nil {
		return "", "", err
	}
	if source.AllocatedRanges, err = readRanges(t.Allocated, dev.Size()); err != nil {
		return "", "", err
	}
	now := time.Now().UTC()
	id := now.Format("20060102T150405.000000000")
	target := repository.Meta{Size: dev.Size(), Driver: "bench", VolumeHandle: t.Volume, ChangeID: id, SnapshotTime: now, Mover: identity.DataMover}
	result, err := job.Run(ctx, job.Job{
		Store: store, Volume: repository.VolumeKey{Namespace: linkNamespace, PVC: t.Volume}, Operation: id, Size: dev.Size(),
		Open: func() (device.Reader, error) { return dev, nil },
		Plan: func(_ context.Context, _ device.Reader, history []repository.Snapshot) (chain.Input, error) {
			parent := identity.ParentNone
			if len(history) > 0 && t.Changed != "" {
				newest := slices.MaxFunc(history, func(a, b repository.Snapshot) int { return a.Start.Compare(b.Start) })
				parent, source.Base = string(newest.ID), cbt.ChangeID(newest.Meta.ChangeID)
			}
			return chain.Input{Request: chain.Request{Parent: parent, Now: now, Target: target}, Source: source, Compression: repository.DefaultCompression}, nil
		},
		Now: time.Now,
	})
	return result.SnapshotID, result.Kind, err
}

func readRanges(file string, size int64) (*rangefile.List, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // no list is not an error
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return rangefile.Parse(f, size)
}

// openLinked opens the repository as a mover pod does.
func openLinked(ctx context.Context, t moverTask) (*kopia.Store, error) {
	for file, text := range map[string]string{
		"repository/repository-password": password,
		"location/cloud/cloud":           fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", linkAccess, linkSecret),
	} {
		file = filepath.Join(t.Dir, "credentials", file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			return nil, err
		}
	}
	return kopia.OpenVelero(ctx, linkObjects{address: t.Address}, kopia.VeleroOptions{
		Namespace: "velero", BackupRepository: "repository", CredentialsDir: filepath.Join(t.Dir, "credentials"),
		ReadOnly: t.Device == "" || t.Restore != "", Log: logr.Discard(),
	})
}

// linkObjects is a cluster with the two objects that lead to the repository.
type linkObjects struct {
	client.Client
	address string
}

// Get implements client.Client.
func (o linkObjects) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	switch into := into.(type) {
	case *velerov1.BackupStorageLocation:
		into.Name, into.Namespace = key.Name, key.Namespace
		into.Spec.Provider = "velero.io/aws"
		into.Spec.Config = map[string]string{"region": linkRegion, "s3Url": "http://" + o.address, "s3ForcePathStyle": "true"}
		into.Spec.ObjectStorage = &velerov1.ObjectStorageLocation{Bucket: linkBucket}
		into.Spec.Credential = &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cloud"}, Key: "cloud"}
	case *velerov1.BackupRepository:
		into.Name, into.Namespace, into.UID = key.Name, key.Namespace, "repository"
		into.Spec = velerov1.BackupRepositorySpec{
			VolumeNamespace: linkNamespace, BackupStorageLocation: "default", RepositoryType: velerov1.BackupRepositoryTypeKopia,
		}
	default:
		return &meta.NoKindMatchError{GroupKind: schema.GroupKind{Kind: fmt.Sprintf("%T", into)}}
	}
	return nil
}
