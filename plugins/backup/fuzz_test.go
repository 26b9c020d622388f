package backup

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// FuzzFilters takes any text for a resource policy. A PVC that a filter excludes by name is not included.
func FuzzFilters(f *testing.F) {
	f.Add("namespacedFilterPolicies:\n- namespaces: [app]\n  resourceFilters:\n  - {kinds: [pvc], names: ['d*'], excludedNames: [data]}\n", "app", "data")
	f.Add("namespacedFilterPolicies: [{namespaces: ['*']}, {namespaces: ['[']}]", "app", "data")
	f.Add("namespacedFilterPolicies: &a [*a]", "", "")
	f.Fuzz(func(t *testing.T, text, namespace, claim string) {
		fuzztest.Document(t, 16*(len(text)+len(namespace)+len(claim)), func() {
			filters, err := parseFilters(text)
			if err != nil {
				return
			}
			filter := filterOf(namespace, filters)
			included := filter.claims().ShouldInclude(claim)
			for _, r := range filter.ResourceFilters {
				if slices.ContainsFunc(r.Kinds, isClaimKind) {
					require.False(t, included && claim != "" && slices.Contains(r.ExcludedNames, claim))
					break
				}
			}
		})
	})
}
