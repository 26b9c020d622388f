package controller

import (
	"context"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// surroundings has what both flows use.
type surroundings struct {
	// client reads from the cache, reader from the API server.
	client       client.Client
	reader       client.Reader
	exposer      *exposer.Exposer
	namespace    string
	image        string
	live         *config.Live
	apiAudiences []string
}

func (s *surroundings) repositoryFor(ctx context.Context, volumeNamespace, location string) (name, waiting string, err error) {
	return ensureRepository(ctx, s.client, s.namespace, volumeNamespace, location)
}

// storageClass returns nil if the name is empty or the class does not exist.
func (s *surroundings) storageClass(ctx context.Context, name string) (*storagev1.StorageClass, error) {
	if name == "" {
		return nil, nil
	}
	return kube.Find(ctx, s.reader, client.ObjectKey{Name: name}, &storagev1.StorageClass{})
}

// createPod completes the plan with the credentials of the location and creates
// the mover pod.
func (s *surroundings) createPod(ctx context.Context, plan exposer.PodPlan, request task.Request, locationName string) (phase.Work, error) {
	key := client.ObjectKey{Namespace: s.namespace, Name: locationName}
	location, err := kube.Find(ctx, s.client, key, &velerov1.BackupStorageLocation{})
	if err != nil {
		return phase.Work{}, err
	}
	if location == nil {
		return phase.Work{}, fmt.Errorf("%w: BackupStorageLocation %s does not exist", phase.ErrBroken, locationName)
	}
	rate := s.live.Get().RateLimit
	request.RateLimit = rate.Value()
	encoded, err := request.Encode()
	if err != nil {
		return phase.Work{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	plan.Image, plan.Config, plan.Task = s.image, s.live.Get(), encoded
	plan.LocationSecrets = exposer.SecretsOf(location)
	if plan.Inherited, err = s.inherited(ctx); err != nil {
		return phase.Work{}, err
	}
	pod, err := plan.Pod()
	if err != nil {
		return phase.Work{}, fmt.Errorf("%w: %w", phase.ErrBroken, err)
	}
	if err := s.exposer.CreatePod(ctx, pod); err != nil {
		return phase.Work{}, err
	}
	return phase.Work{Detail: "the mover pod was created"}, nil
}

func (s *surroundings) inherited(ctx context.Context) (exposer.Inherited, error) {
	return exposer.FindInherited(ctx, s.reader, s.namespace, s.live.Get())
}
