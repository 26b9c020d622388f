package backup

import (
	"context"
	"fmt"
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// namespacedFilter is the part of an entry of namespacedFilterPolicies in a resource policy
// that selects by name.
type namespacedFilter struct {
	Namespaces      []string `json:"namespaces"`
	ResourceFilters []struct {
		Kinds         []string `json:"kinds"`
		Names         []string `json:"names"`
		ExcludedNames []string `json:"excludedNames"`
	} `json:"resourceFilters"`
}

// includedClaims returns the names of the PVCs in a namespace that the resource policy of the
// backup includes. Velero applies it to the name of each PVC of a group, and does not apply
// its labels. Velero has checked the policy before the backup began.
func (p policies) includedClaims(ctx context.Context, namespace string, backup *velerov1.Backup) (*collections.IncludesExcludes, error) {
	ref := backup.Spec.ResourcePolicy
	if ref == nil || !strings.EqualFold(ref.Kind, "configmap") {
		return collections.NewIncludesExcludes(), nil
	}
	key := client.ObjectKey{Namespace: backup.Namespace, Name: ref.Name}
	document := &corev1.ConfigMap{}
	if err := p.api.Get(ctx, key, document); err != nil {
		return nil, fmt.Errorf("get resource policy %s: %w", key, err)
	}
	var filters []namespacedFilter
	for _, text := range document.Data { // there is one
		var err error
		if filters, err = parseFilters(text); err != nil {
			return nil, fmt.Errorf("read resource policy %s: %w", key, err)
		}
	}
	return filterOf(namespace, filters).claims(), nil
}

func parseFilters(text string) ([]namespacedFilter, error) {
	var policies struct {
		Filters []namespacedFilter `json:"namespacedFilterPolicies"`
	}
	err := yaml.Unmarshal([]byte(text), &policies)
	return policies.Filters, err
}

// filterOf returns the filter of a namespace: the one that names it, else the first whose
// pattern matches, else one that includes everything.
func filterOf(namespace string, filters []namespacedFilter) namespacedFilter {
	for _, f := range filters {
		if slices.Contains(f.Namespaces, namespace) {
			return f
		}
	}
	for _, f := range filters {
		if len(f.Namespaces) > 0 && collections.NewIncludesExcludes().Includes(f.Namespaces...).ShouldInclude(namespace) {
			return f
		}
	}
	return namespacedFilter{}
}

// claims returns the names in the entry for PVCs, or else in the entry for all kinds.
func (f namespacedFilter) claims() *collections.IncludesExcludes {
	names := collections.NewIncludesExcludes()
	for _, r := range f.ResourceFilters {
		if slices.ContainsFunc(r.Kinds, isClaimKind) {
			return names.Includes(r.Names...).Excludes(r.ExcludedNames...)
		}
	}
	return names // an entry for all kinds has no names
}

// isClaimKind reports whether Velero's discovery would resolve the kind to PVCs.
func isClaimKind(kind string) bool {
	return slices.Contains([]string{"persistentvolumeclaims", "persistentvolumeclaim", "pvc"}, strings.ToLower(kind))
}
