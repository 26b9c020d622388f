package worker

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/go-logr/logr"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
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

func (p *pod) OpenReader() (device.Reader, error) { return device.Open(p.request.Device) }

func (p *pod) OpenWriter() (device.Writer, error) { return device.OpenWriter(p.request.Device) }

func (p *pod) OpenStore(ctx context.Context) (repository.Store, error) {
	return kopia.OpenVelero(ctx, p.client, kopia.VeleroOptions{
		Namespace:        p.request.Namespace,
		BackupRepository: p.request.BackupRepository,
		CredentialsDir:   p.credentials,
		ReadOnly:         p.request.Restore != nil,
		OnFatal:          p.fatal,
		Log:              p.log.WithName("repository"),
	})
}

func (p *pod) Source() (cbt.Source, error) {
	b := p.request.Backup
	if b.Metadata == nil {
		return nil, fmt.Errorf("%w: %s", cbt.ErrUnavailable, b.MetadataUnavailable)
	}
	return snapshotmetadata.New(snapshotmetadata.Config{
		Address:        b.Metadata.Address,
		CACert:         b.Metadata.CACert,
		TokenPath:      b.Metadata.TokenPath,
		Namespace:      p.request.Namespace,
		VolumeSnapshot: b.VolumeSnapshot,
		MaxResults:     p.maxResults,
	})
}

// newClient returns a client for the few objects that a worker reads and patches. It has no
// cache, because a worker lists and watches nothing.
func newClient() (client.Client, error) {
	rest, err := config.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find Kubernetes API: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(velerov1.AddToScheme(scheme), velerov2alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register Velero's kinds: %w", err)
	}
	c, err := client.New(rest, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to Kubernetes API: %w", err)
	}
	return c, nil
}

// requestFromEnvironment reads the task.
func requestFromEnvironment() (task.Request, error) {
	text, ok := os.LookupEnv(task.EnvRequest)
	if !ok {
		return task.Request{}, fmt.Errorf("environment variable %s is not set", task.EnvRequest)
	}
	return task.DecodeRequest(text)
}
