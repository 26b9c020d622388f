package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/snapshotmetadata"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
	"github.com/blockmover/blockmover/internal/task"
)

// pod is the Environment of a mover pod.
//
// Its methods return nil with an error, and not what they have called returned: a nil pointer in an
// interface is not nil, and whoever looks whether there is something to close would find it.
type pod struct {
	request     task.Request
	client      client.Client
	credentials string
	maxResults  int32
	// fatal is called when the repository must not be used any more.
	fatal func(error)
	log   logr.Logger
}

var _ Environment = (*pod)(nil)

// ReachAPI implements Environment. Any answer of the API server will do.
func (p *pod) ReachAPI(ctx context.Context) error {
	key := client.ObjectKey{Namespace: p.request.Namespace, Name: p.request.BackupRepository}
	err := p.client.Get(ctx, key, &velerov1.BackupRepository{})
	if apierrors.ReasonForError(err) != metav1.StatusReasonUnknown {
		return nil
	}
	return err
}

// OpenReader implements Environment.
func (p *pod) OpenReader(ctx context.Context) (device.Reader, error) {
	if file := p.request.Backup.DiskFile; file != nil {
		disk, err := openDiskFile(ctx, p.request.Device, *file)
		if err != nil {
			return nil, err
		}
		return disk, nil
	}
	return device.Open(p.request.Device)
}

// OpenWriter implements Environment. A device that was released a moment ago may still be in
// use by the kernel.
func (p *pod) OpenWriter(size int64) (device.Writer, error) {
	if p.request.Restore.DiskImage {
		return openDiskImage(p.request.Device, size)
	}
	const attempts, pause = 12, 5 * time.Second
	for i := 1; ; i++ {
		dev, err := device.OpenWriter(p.request.Device)
		switch {
		case err == nil:
			return dev, nil
		case !errors.Is(err, unix.EBUSY):
			return nil, err
		case i == attempts:
			return nil, fmt.Errorf("%w: something on this node uses the volume, such as a file system that is mounted", err)
		}
		p.log.Info("The device is busy", "device", p.request.Device, "attempt", i)
		time.Sleep(pause)
	}
}

func (p *pod) OpenStore(ctx context.Context) (repository.Store, error) {
	store, err := kopia.OpenVelero(ctx, p.client, kopia.VeleroOptions{
		Namespace:        p.request.Namespace,
		BackupRepository: p.request.BackupRepository,
		CredentialsDir:   p.credentials,
		ReadOnly:         p.request.Restore != nil,
		OnFatal:          p.fatal,
		Log:              p.log.WithName("repository"),
	})
	if err != nil {
		return nil, err
	}
	return store, nil
}

func (p *pod) Source() (cbt.Source, error) {
	b := p.request.Backup
	if b.Metadata == nil {
		return nil, fmt.Errorf("%w: %s", cbt.ErrUnavailable, b.MetadataUnavailable)
	}
	return p.sourceOf(b.Metadata, b.VolumeSnapshot)
}

const (
	// snapshotPatience is for how long a restore waits for a VolumeSnapshot. Storage takes one
	// within seconds. Some uploads it before it is ready: then comparing takes no longer.
	snapshotPatience = 2 * time.Minute
	snapshotInterval = 200 * time.Millisecond
)

// LiveSource implements Environment.
func (p *pod) LiveSource(ctx context.Context) (cbt.Source, error) {
	live := p.request.Restore.InPlace
	ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
	defer cancel()
	key := client.ObjectKey{Namespace: p.request.Namespace, Name: live.VolumeSnapshot}
	seen := "the manager has not taken it"
	for {
		ready, state, err := p.isReady(ctx, key)
		switch {
		case ready:
			return p.sourceOf(live.Metadata, live.VolumeSnapshot)
		case err == nil:
			seen = state
		case ctx.Err() == nil:
			seen = err.Error()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: wait for VolumeSnapshot %s of the volume: %w: %s", cbt.ErrUnavailable, key, ctx.Err(), seen)
		case <-time.After(snapshotInterval):
		}
	}
}

// isReady reports whether a VolumeSnapshot can be used, or else how far it is.
func (p *pod) isReady(ctx context.Context, key client.ObjectKey) (ready bool, state string, err error) {
	vs, err := kube.Find(ctx, p.client, key, &snapshotv1.VolumeSnapshot{})
	switch {
	case err != nil:
		return false, "", err
	case vs == nil:
		return false, "the manager has not taken it", nil
	case vs.Status != nil && vs.Status.ReadyToUse != nil && *vs.Status.ReadyToUse:
		return true, "", nil
	case vs.Status != nil && vs.Status.Error != nil && vs.Status.Error.Message != nil:
		return false, *vs.Status.Error.Message, nil
	}
	return false, "it is not ready to use", nil
}

// sourceOf returns the changed-block tracking of a VolumeSnapshot in Velero's namespace.
func (p *pod) sourceOf(service *task.MetadataService, snapshot string) (cbt.Source, error) {
	source, err := snapshotmetadata.New(snapshotmetadata.Config{
		Address:        service.Address,
		CACert:         service.CACert,
		TokenPath:      service.TokenPath,
		Namespace:      p.request.Namespace,
		VolumeSnapshot: snapshot,
		MaxResults:     p.maxResults,
	})
	if err != nil {
		return nil, err
	}
	return source, nil
}

// NewClient returns a client for the few objects that a worker reads. It has no
// cache, because a worker lists and watches nothing.
func NewClient() (client.Client, error) {
	rest, err := config.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find Kubernetes API: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(velerov1.AddToScheme(scheme), snapshotv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	c, err := client.New(rest, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to Kubernetes API: %w", err)
	}
	return c, nil
}
