package controller

import (
	"context"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
)

// ensureRepository returns Velero's BackupRepository for the volumes of a namespace at a
// location. It creates one if there is none, with the name and labels that Velero would use:
// otherwise there would be two. Velero's server then connects or initialises it. Until it is
// ready, waiting says what is missing.
func ensureRepository(ctx context.Context, c client.Client, namespace, volumeNamespace, location string) (name, waiting string, err error) {
	const repositoryType = velerov1.BackupRepositoryTypeKopia
	labels := map[string]string{
		velerov1.VolumeNamespaceLabel: label.GetValidName(volumeNamespace),
		velerov1.StorageLocationLabel: label.GetValidName(location),
		velerov1.RepositoryTypeLabel:  label.GetValidName(repositoryType),
	}
	list := &velerov1.BackupRepositoryList{}
	if err := c.List(ctx, list, client.InNamespace(namespace), client.MatchingLabels(labels)); err != nil {
		return "", "", fmt.Errorf("list BackupRepositories: %w", err)
	}
	switch len(list.Items) {
	case 0:
		repository := &velerov1.BackupRepository{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace,
				Name:      fmt.Sprintf("%s-%s-%s", volumeNamespace, location, repositoryType),
				Labels:    labels,
			},
			Spec: velerov1.BackupRepositorySpec{
				VolumeNamespace:       volumeNamespace,
				BackupStorageLocation: location,
				RepositoryType:        repositoryType,
			},
		}
		if err := kube.Ensure(ctx, c, repository); err != nil {
			return "", "", err
		}
		return repository.Name, fmt.Sprintf("BackupRepository %s is being initialised", repository.Name), nil
	case 1:
	default:
		return "", "", fmt.Errorf("%w: there are %d BackupRepositories for namespace %s at location %s, want 1",
			phase.ErrBroken, len(list.Items), volumeNamespace, location)
	}
	repository := &list.Items[0]
	if repository.Status.Phase != velerov1.BackupRepositoryPhaseReady {
		why := ""
		if repository.Status.Message != "" {
			why = ": " + repository.Status.Message
		}
		return repository.Name, fmt.Sprintf("BackupRepository %s is not ready%s", repository.Name, why), nil
	}
	return repository.Name, "", nil
}
