package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
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
	source, err := snapshotmetadata.New(snapshotmetadata.Config{
		Address:        b.Metadata.Address,
		CACert:         b.Metadata.CACert,
		TokenPath:      b.Metadata.TokenPath,
		Namespace:      p.request.Namespace,
		VolumeSnapshot: b.VolumeSnapshot,
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
	if err := velerov1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register Velero's kinds: %w", err)
	}
	c, err := client.New(rest, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to Kubernetes API: %w", err)
	}
	return c, nil
}
