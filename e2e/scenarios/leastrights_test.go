package scenarios

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/blockmover/blockmover/e2e/grants"
	"github.com/blockmover/blockmover/e2e/kit"
)

// attempt is a request that the API server may allow. Namespace "" is the whole cluster.
type attempt struct{ namespace, group, resource, verb, name string }

func (a attempt) String() string {
	return fmt.Sprintf("%s %s of group %q in namespace %q, name %q", a.verb, a.resource, a.group, a.namespace, a.name)
}

// stranger is a name of an object that no manifest knows.
const stranger = "of-somebody-else"

// TestLeastRights asks the API server with the token of each account that deploy can make what it
// allows: every verb on everything that the cluster serves, in Velero's namespace, in that of an
// application, in kube-system and in the whole cluster. It must be what the manifests say, no more and
// no less; and nothing of it may be among what none of our accounts needs.
func TestLeastRights(t *testing.T) {
	s := newScenario(t)
	namespace := s.namespace("least")
	_, err := s.kit.Kubectl(s.ctx, "create", "namespace", namespace)
	require.NoError(t, err)
	_, err = s.kit.Kubectl(s.ctx, "-n", namespace, "create", "serviceaccount", "nobody")
	require.NoError(t, err)
	want, accounts := s.installAllRights()
	require.ElementsMatch(t, []string{"blockmover-manager", "blockmover-worker", "blockmover-verifier", "blockmover-plugin"}, accounts)

	// What everybody may do, such as asking what they may do.
	nobody := s.asker(namespace, "nobody")
	space := s.everything(nobody.client, namespace, want)
	t.Logf("%d requests are asked for with each token", len(space))
	everybody := nobody.allowed(s, space)
	for a := range everybody {
		require.Contains(t, []string{"authentication.k8s.io", "authorization.k8s.io"}, a.group, "everybody may %s", a)
	}
	scopes := []string{s.kit.VeleroNamespace, namespace, "kube-system", ""}
	for _, account := range accounts {
		t.Run(account, func(t *testing.T) {
			asker := s.asker(s.kit.VeleroNamespace, account)
			allowed := asker.allowed(s, space)
			for a := range everybody {
				delete(allowed, a)
			}
			granted := map[attempt]bool{}
			for _, a := range space {
				if grantsAllow(want, account, s.kit.VeleroNamespace, a) {
					granted[a] = true
				}
			}
			require.Empty(t, missing(allowed, granted), "the API server allows what no manifest grants")
			require.Empty(t, missing(granted, allowed), "the API server refuses what a manifest grants")
			for a := range allowed {
				require.Empty(t, needless(account, s.kit.VeleroNamespace, a), "%s may %s", account, a)
			}
			t.Logf("%s may do %d of them", account, len(allowed))

			// The rules as a whole say the same of kinds that this cluster does not serve.
			for _, scope := range scopes {
				if scope == "" {
					continue
				}
				rules := map[grants.Grant]bool{}
				for _, g := range asker.rules(s, scope) {
					rules[g] = true
				}
				for _, g := range nobody.rules(s, scope) {
					delete(rules, g)
				}
				expected := map[grants.Grant]bool{}
				for _, g := range want {
					if g.Account == account && (g.Cluster || scope == s.kit.VeleroNamespace) {
						g.Account, g.Cluster = "", false
						expected[g] = true
					}
				}
				require.Empty(t, missing(rules, expected), "rules in %s that no manifest has", scope)
				require.Empty(t, missing(expected, rules), "rules of manifests that do not hold in %s", scope)
			}
		})
	}
}

// missing returns what is in a and not in b.
func missing[K comparable](a, b map[K]bool) []string {
	var names []string
	for k := range a {
		if !b[k] {
			names = append(names, fmt.Sprint(k))
		}
	}
	slices.Sort(names)
	return names
}

// grantsAllow reports whether the manifests give an account a right. home is the namespace of the account.
func grantsAllow(all []grants.Grant, account, home string, a attempt) bool {
	return slices.ContainsFunc(all, func(g grants.Grant) bool {
		return g.Account == account && (g.Cluster || a.namespace == home) && g.Group == a.group && g.Resource == a.resource && g.Verb == a.verb &&
			(g.Name == "" || g.Name == a.name)
	})
}

// needless says why none of our accounts needs something, whatever manifests grant. "" is that one may.
func needless(account, home string, a attempt) string {
	writes := !slices.Contains([]string{"get", "list", "watch"}, a.verb)
	named := a.name != "" && a.name != stranger
	switch base, sub, _ := strings.Cut(a.resource, "/"); {
	case a.verb == "deletecollection" || slices.Contains(powers, a.verb):
		return "it is a power over others"
	case a.group == "rbac.authorization.k8s.io", a.group == "certificates.k8s.io", base == "serviceaccounts", base == "namespaces":
		return "it is about who may do what"
	case writes && strings.HasSuffix(a.group, "registration.k8s.io"), a.group == "apiextensions.k8s.io" && writes:
		return "it changes the API"
	case base == "secrets" && !named && a.verb != "create":
		return "it reads or changes Secrets of others"
	case base == "nodes" && (writes || sub != ""):
		return "it reaches into nodes"
	case base == "pods" && sub != "" && a.resource != "pods/log":
		return "it reaches into pods"
	case writes && a.namespace != home && slices.Contains([]string{"pods", "jobs", "deployments", "daemonsets", "statefulsets", "replicasets", "cronjobs", "secrets", "configmaps"}, base):
		return "it runs or changes programs of others"
	case writes && account == "blockmover-worker":
		return "a mover pod writes nothing"
	case a.namespace != home && account != "blockmover-manager" && a.resource != "storageclasses":
		return "only the manager looks at other namespaces"
	}
	return ""
}

// powers are verbs that RBAC knows beside those of requests.
var powers = []string{"impersonate", "bind", "escalate", "use", "approve", "sign", "attest", "*"}

// installAllRights gives the cluster the accounts, roles and policies of all components of deploy, and those of
// the chart's Jobs, until the end of the test. It returns what they grant.
func (s *scenario) installAllRights() ([]grants.Grant, []string) {
	s.Helper()
	all := s.kit
	with := *all
	with.Components = []string{"copies", "kubevirt", "verify", "restore-test"}
	full, err := with.Manifests(s.ctx)
	require.NoError(s, err)
	base, err := all.Manifests(s.ctx)
	require.NoError(s, err)
	chart, err := s.kit.Run(s.ctx, "", "helm", "template", "blockmover", s.kit.DeployDir, "--namespace", s.kit.VeleroNamespace,
		"--set", "plugin.install=true", "--show-only", "templates/plugin.yaml")
	require.NoError(s, err)

	kinds := []string{"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
	there := documents(s.T, base, kinds)
	var added []string
	for key, text := range documents(s.T, full+"\n---\n"+chart, kinds) {
		if _, ok := there[key]; !ok {
			added = append(added, text)
		}
	}
	manifest := strings.Join(added, "\n---\n")
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		_, err := s.kit.Run(ctx, manifest, "kubectl", "delete", "--ignore-not-found", "-f", "-")
		require.NoError(s, err)
	})
	require.NoError(s, s.kit.Apply(s.ctx, manifest))
	want, accounts, err := grants.Read([]byte(full + "\n---\n" + chart))
	require.NoError(s, err)
	verifier := s.accountConfig("blockmover-verifier")
	s.wait("the last policy to hold", func(ctx context.Context) (bool, string, error) {
		fill := strings.NewReplacer("$NAME", "maintenance", "$AS", "velero", "$PRIVILEGED", "false", "$MORE", "", "$COMPONENT", "reader")
		err := request(ctx, verifier, fill, call{"POST", "/apis/batch/v1/namespaces/" + s.kit.VeleroNamespace + "/jobs", jobBody})
		return apierrors.IsForbidden(err), fmt.Sprint(err), nil
	})
	return want, accounts
}

// documents returns the manifests of some kinds, by kind and name.
func documents(t *testing.T, manifests string, kinds []string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for text := range strings.SplitSeq(manifests, "\n---\n") {
		var o kit.Object
		require.NoError(t, yaml.Unmarshal([]byte(text), &o))
		if slices.Contains(kinds, o.Kind) {
			found[o.Kind+" "+o.Metadata.Name] = text
		}
	}
	return found
}

// asker is an account that asks what it may do.
type asker struct{ client kubernetes.Interface }

func (s *scenario) asker(namespace, name string) asker {
	s.Helper()
	account, err := s.kit.Account(s.ctx, s.TempDir(), namespace, name)
	require.NoError(s, err)
	config, err := account.Config()
	require.NoError(s, err)
	config.QPS = -1 // no limit
	client, err := kubernetes.NewForConfig(config)
	require.NoError(s, err)
	return asker{client}
}

// everything returns all requests of this test: each verb that is served, each power, and each verb on
// the objects that manifests name.
func (s *scenario) everything(client kubernetes.Interface, application string, named []grants.Grant) []attempt {
	s.Helper()
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	require.NoError(s, err)
	space := map[attempt]bool{}
	add := func(namespaced bool, a attempt) {
		namespaces := []string{""}
		if namespaced {
			namespaces = []string{"", s.kit.VeleroNamespace, application, "kube-system"}
		}
		for _, a.namespace = range namespaces {
			space[a] = true
		}
	}
	kinds := 0
	for _, list := range lists {
		for _, resource := range list.APIResources {
			group := resource.Group
			if group == "" {
				group, _, _ = strings.Cut(list.GroupVersion, "/")
			}
			if !strings.Contains(list.GroupVersion, "/") {
				group = ""
			}
			kinds++
			for _, verb := range slices.Concat(resource.Verbs, powers, []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}) {
				a := attempt{group: group, resource: resource.Name, verb: verb, name: stranger}
				if slices.Contains([]string{"create", "list", "watch", "deletecollection"}, verb) && !strings.Contains(resource.Name, "/") {
					a.name = ""
				}
				add(resource.Namespaced, a)
				for _, g := range named {
					if g.Name != "" && g.Group == a.group && g.Resource == a.resource {
						a.name = g.Name
						add(resource.Namespaced, a)
					}
				}
			}
		}
	}
	for _, resource := range []string{"users", "groups", "serviceaccounts", "uids"} {
		add(resource == "serviceaccounts", attempt{resource: resource, verb: "impersonate", name: stranger})
	}
	s.Logf("the cluster serves %d resources", kinds)
	return slices.Collect(maps.Keys(space))
}

// allowed returns what the API server allows.
func (a asker) allowed(s *scenario, space []attempt) map[attempt]bool {
	s.Helper()
	var mu sync.Mutex
	found := map[attempt]bool{}
	group, ctx := errgroup.WithContext(s.ctx)
	group.SetLimit(8)
	for _, try := range space {
		group.Go(func() error {
			ok, err := a.may(ctx, try)
			if ok {
				mu.Lock()
				defer mu.Unlock()
				found[try] = true
			}
			return err
		})
	}
	require.NoError(s, group.Wait())
	return found
}

func (a asker) may(ctx context.Context, try attempt) (bool, error) {
	resource, sub, _ := strings.Cut(try.resource, "/")
	review, err := a.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: try.namespace, Verb: try.verb, Group: try.group, Resource: resource, Subresource: sub, Name: try.name,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask whether %s is allowed: %w", try, err)
	}
	return review.Status.Allowed, nil
}

// rules returns the rules that hold in a namespace, those of the whole cluster too, and the paths that are no
// resources as groups.
func (a asker) rules(s *scenario, namespace string) []grants.Grant {
	s.Helper()
	review, err := a.client.AuthorizationV1().SelfSubjectRulesReviews().Create(s.ctx, &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace},
	}, metav1.CreateOptions{})
	require.NoError(s, err)
	require.Empty(s, review.Status.EvaluationError)
	require.False(s, review.Status.Incomplete)
	var all []grants.Grant
	for _, rule := range review.Status.ResourceRules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					for _, name := range names {
						all = append(all, grants.Grant{Group: group, Resource: resource, Verb: verb, Name: name})
					}
				}
			}
		}
	}
	for _, rule := range review.Status.NonResourceRules {
		for _, url := range rule.NonResourceURLs {
			for _, verb := range rule.Verbs {
				all = append(all, grants.Grant{Group: url, Verb: verb})
			}
		}
	}
	return all
}
