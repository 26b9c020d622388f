// Command rights looks for rights that nothing uses:
//
//	rights DIRECTORY AUDITLOG...
//
// DIRECTORY has the RBAC manifests, the AUDITLOGs have the requests of their service accounts
// over all scenarios. It prints each right that no request has used, and fails if there is one.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: rights DIRECTORY AUDITLOG...")
		os.Exit(2)
	}
	unused, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "rights:", err)
		os.Exit(2)
	}
	if len(unused) > 0 {
		fmt.Println("no request of the scenarios has used these rights:\n" + strings.Join(unused, "\n"))
		os.Exit(1)
	}
	fmt.Println("all rights are used")
}

func run(directory string, logs []string) ([]string, error) {
	rights, err := granted(directory)
	if err != nil {
		return nil, err
	}
	for _, file := range logs {
		log, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		err = rights.use(log)
		_ = log.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	return rights.unused(), nil
}

// right is one verb on one resource. It is of a role, which has the name of its account.
type right struct {
	account               string
	cluster               bool // of a ClusterRole
	group, resource, verb string
	used                  bool
}

func (r right) String() string {
	kind := "Role"
	if r.cluster {
		kind = "ClusterRole"
	}
	return fmt.Sprintf("%s %s: %s %s (apiGroup %q)", kind, r.account, r.verb, r.resource, r.group)
}

type rights []*right

// unseen are rights that requests in the logs do not show, with the reason.
var unseen = map[string]string{
	`Role blockmover-worker: get volumesnapshots (apiGroup "snapshot.storage.k8s.io")`: "the SnapshotMetadata sidecar asks the API server whether the worker has it",
	`Role blockmover-manager: patch events (apiGroup "events.k8s.io")`:                 "a series of the same event within minutes",
	`ClusterRole blockmover-manager: patch volumesnapshots (apiGroup "snapshot.storage.k8s.io")`: "a member that the snapshot controller " +
		"leaves its finalizer of the group, which depends on the moment at which the group is deleted",
}

// granted reads the roles of all manifests in a directory.
func granted(directory string) (rights, error) {
	files, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var all rights
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, document := range bytes.Split(text, []byte("\n---\n")) {
			var role rbacv1.ClusterRole // a Role has the same fields
			if err := yaml.Unmarshal(document, &role); err != nil {
				return nil, fmt.Errorf("parse %s: %w", file, err)
			}
			if role.Kind == "Role" || role.Kind == "ClusterRole" {
				all = all.with(role)
			}
		}
	}
	return all, nil
}

// with returns the rights with those of one more role. A role has the name of its account, and that
// of a component of deploy what it is for after that.
func (all rights) with(role rbacv1.ClusterRole) rights {
	for _, rule := range role.Rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					all = append(all, &right{
						account: strings.TrimSuffix(strings.TrimSuffix(role.Name, "-kubevirt"), "-copies"), cluster: role.Kind == "ClusterRole", group: group, resource: resource, verb: verb,
					})
				}
			}
		}
	}
	return all
}

// use marks the rights that the requests of a log have needed. In the namespace of the account, a
// request needs the ClusterRole only for what the Role does not grant.
func (all rights) use(log io.Reader) error {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var event auditv1.Event
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return err
		}
		account := strings.Split(event.User.Username, ":") // system:serviceaccount:NAMESPACE:NAME
		// A scenario that tries what is forbidden uses kubectl.
		if event.ObjectRef == nil || len(account) != 4 || strings.HasPrefix(event.UserAgent, "kubectl") {
			continue
		}
		resource := event.ObjectRef.Resource
		if event.ObjectRef.Subresource != "" {
			resource += "/" + event.ObjectRef.Subresource
		}
		home := event.ObjectRef.Namespace == account[2]
		find := func(cluster bool) int {
			return slices.IndexFunc(all, func(r *right) bool {
				return r.account == account[3] && r.cluster == cluster && r.group == event.ObjectRef.APIGroup &&
					r.resource == resource && r.verb == event.Verb
			})
		}
		i := -1
		if home {
			i = find(false)
		}
		if i < 0 {
			i = find(true)
		}
		if i >= 0 {
			all[i].used = true
			all.listed(*all[i])
		}
	}
	return lines.Err()
}

// listed marks the right to list what is watched. A client lists first where the API server is
// too old to stream the list.
func (all rights) listed(watched right) {
	for _, r := range all {
		if watched.verb == "watch" && r.verb == "list" && r.account == watched.account && r.cluster == watched.cluster &&
			r.group == watched.group && r.resource == watched.resource {
			r.used = true
		}
	}
}

func (all rights) unused() []string {
	var unused []string
	for _, r := range all {
		if _, known := unseen[r.String()]; !r.used && !known {
			unused = append(unused, r.String())
		}
	}
	return unused
}
