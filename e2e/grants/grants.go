// Package grants reads RBAC manifests: what they give to which service account. It refuses what it
// cannot tell exactly, such as wildcards, for whoever compares with it would compare too little.
package grants

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Grant is one verb on one resource.
type Grant struct {
	// Account is the name of the service account.
	Account string
	// Cluster is set if it holds in every namespace, and for what has none. Otherwise it holds in the
	// namespace of the account.
	Cluster bool
	// Resource has its subresource, if any: pods/log.
	Group, Resource, Verb string
	// Name is that of the only object for which it holds; "" is all.
	Name string
}

// String is how people read it.
func (g Grant) String() string {
	kind := "Role"
	if g.Cluster {
		kind = "ClusterRole"
	}
	text := fmt.Sprintf("%s %s: %s %s (apiGroup %q)", kind, g.Account, g.Verb, g.Resource, g.Group)
	if g.Name != "" {
		text += " of name " + g.Name
	}
	return text
}

// Read returns what manifests grant to accounts, and the names of the service accounts that they make.
// Other kinds are skipped.
func Read(manifests []byte) (all []Grant, accounts []string, err error) {
	roles := map[string]rbacv1.ClusterRole{} // a Role has the same fields
	var bindings []rbacv1.ClusterRoleBinding
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		var role rbacv1.ClusterRole
		if err == nil {
			err = yaml.Unmarshal(document, &role)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("parse manifests: %w", err)
		}
		switch role.Kind {
		case "Role", "ClusterRole":
			roles[role.Kind+" "+role.Name] = role
		case "RoleBinding", "ClusterRoleBinding":
			var binding rbacv1.ClusterRoleBinding
			if err := yaml.Unmarshal(document, &binding); err != nil {
				return nil, nil, fmt.Errorf("parse %s %s: %w", role.Kind, role.Name, err)
			}
			bindings = append(bindings, binding)
		case "ServiceAccount":
			accounts = append(accounts, role.Name)
		}
	}
	all, err = bound(roles, bindings)
	return all, accounts, err
}

// bound returns what the roles give to the subjects of their bindings.
func bound(roles map[string]rbacv1.ClusterRole, bindings []rbacv1.ClusterRoleBinding) ([]Grant, error) {
	used := map[string]bool{}
	var all []Grant
	for _, binding := range bindings {
		name := binding.RoleRef.Kind + " " + binding.RoleRef.Name
		role, ok := roles[name]
		if !ok || binding.Kind != role.Kind+"Binding" {
			return nil, fmt.Errorf("%s %s is to %s, want a role of the same kind in the manifests", binding.Kind, binding.Name, name)
		}
		used[name] = true
		for _, subject := range binding.Subjects {
			if subject.Kind != rbacv1.ServiceAccountKind {
				return nil, fmt.Errorf("%s %s has the subject %s %s, want service accounts only", binding.Kind, binding.Name, subject.Kind, subject.Name)
			}
			granted, err := of(role, subject.Name)
			if err != nil {
				return nil, err
			}
			all = append(all, granted...)
		}
	}
	for name := range roles {
		if !used[name] {
			return nil, fmt.Errorf("%s is bound to nobody", name)
		}
	}
	return all, nil
}

// of returns what one role gives to an account.
func of(role rbacv1.ClusterRole, account string) ([]Grant, error) {
	if role.AggregationRule != nil {
		return nil, fmt.Errorf("%s %s is aggregated", role.Kind, role.Name)
	}
	var all []Grant
	for _, rule := range role.Rules {
		every := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs, rule.NonResourceURLs)
		if slices.Contains(every, "*") || len(rule.NonResourceURLs) > 0 {
			return nil, fmt.Errorf("%s %s has the rule %v, want each group, resource and verb by name", role.Kind, role.Name, rule)
		}
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					for _, name := range names {
						all = append(all, Grant{account, role.Kind == "ClusterRole", group, resource, verb, name})
					}
				}
			}
		}
	}
	return all, nil
}
