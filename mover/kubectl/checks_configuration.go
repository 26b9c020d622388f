package kubectl

import (
	"context"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/mover/exposer"
)

// managerAccount is the service account of the manager.
const managerAccount = "blockmover-manager"

// checkConfiguration looks at the configuration of the manager, and at what it needs.
func (s *session) checkConfiguration(ctx context.Context) ([]Finding, error) {
	object := "ConfigMap " + s.namespace() + "/" + configName
	settings, err := s.settings(ctx)
	var found []Finding
	switch {
	case err == nil && len(settings.Ignored) > 0:
		found = append(found, Finding{Object: object, Verdict: Worse, What: "it has fields that have no meaning here: " + strings.Join(settings.Ignored, ", "), Do: "remove them, or do without"})
	case err == nil:
		found = append(found, Finding{Object: object, Verdict: Fine, What: "it can be read"})
	case apierrors.IsNotFound(err):
		return []Finding{{Object: object, Verdict: Broken, What: "it does not exist", Do: "apply deploy/config.yaml"}}, nil
	default:
		return []Finding{{Object: object, Verdict: Broken, What: err.Error(), Do: "mend it: the manager runs with an earlier one, leaves out what it does not know, or does not start"}}, nil
	}
	cache, err := s.checkCache(ctx, settings)
	if err != nil {
		return found, err
	}
	copies, err := s.checkCopies(ctx, settings)
	return append(append(found, cache...), copies...), err
}

// checkCache looks whether the storage class of caches can be used.
func (s *session) checkCache(ctx context.Context, settings config.Config) ([]Finding, error) {
	if settings.CachePVC == nil {
		return nil, nil
	}
	name := settings.CachePVC.StorageClass
	finding := Finding{Object: "StorageClass " + name, Verdict: Worse, Do: "name another one in cachePVC: caches are on disk of the nodes"}
	class, err := kube.Find(ctx, s.Client, client.ObjectKey{Name: name}, &storagev1.StorageClass{})
	switch {
	case err != nil:
		return nil, err
	case class == nil:
		finding.What = "cachePVC names it, and it does not exist"
	case exposer.Keeps(class):
		finding.What = fmt.Sprintf("cachePVC names it, and its reclaim policy is %s, want Delete", *class.ReclaimPolicy)
	default:
		return nil, nil
	}
	return []Finding{finding}, nil
}

// checkCopies asks whether the manager may read what it has to copy.
func (s *session) checkCopies(ctx context.Context, settings config.Config) ([]Finding, error) {
	names := map[string]map[string]bool{"secrets": {}, "configmaps": {}}
	note := func(secrets, configMaps []string) {
		for _, name := range secrets {
			names["secrets"][name] = true
		}
		for _, name := range configMaps {
			names["configmaps"][name] = true
		}
	}
	for _, pvc := range settings.BackupPVC {
		note(pvc.SecretNames, pvc.ConfigMapNames)
	}
	note(settings.RestorePVC.SecretNames, settings.RestorePVC.ConfigMapNames)
	var found []Finding
	for _, resource := range sortedKeys(names) {
		for _, name := range sortedKeys(names[resource]) {
			allowed, err := s.may(ctx, managerAccount, authorizationv1.ResourceAttributes{Verb: "get", Resource: resource, Name: name})
			if err != nil {
				return found, err
			}
			if !allowed {
				found = append(found, Finding{
					Object: "ServiceAccount " + s.namespace() + "/" + managerAccount, Verdict: Broken,
					What: fmt.Sprintf("it may not get %s named %s in all namespaces, which the configuration names for drivers", resource, name), Do: "grant it with the component deploy/copies",
				})
			}
		}
	}
	return found, nil
}
