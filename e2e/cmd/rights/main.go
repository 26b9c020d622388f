// Command rights looks for rights that nothing uses:
//
//	rights DIRECTORY AUDITLOG...
//
// DIRECTORY has the RBAC manifests, the AUDITLOGs have the requests of their service accounts
// over all scenarios. It prints each right that no request has used, and fails if there is one.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/blockmover/blockmover/e2e/grants"
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

// right is a grant, and whether a request has needed it.
type right struct {
	grants.Grant
	used bool
}

// covers reports whether a request for an object of some name uses the right.
func (r right) covers(request grants.Grant, name string) bool {
	request.Name = r.Name
	return r.Grant == request && (r.Name == "" || r.Name == placeholder || r.Name == name)
}

type rights []*right

// unseen are rights that requests in the logs do not show, with the reason.
var unseen = map[string]string{
	`Role blockmover-worker: get volumesnapshots (apiGroup "snapshot.storage.k8s.io")`: "the SnapshotMetadata sidecar asks the API server whether the worker has it",
	`Role blockmover-manager: patch events (apiGroup "events.k8s.io")`:                 "a series of the same event within minutes",
	`ClusterRole blockmover-manager: patch volumesnapshots (apiGroup "snapshot.storage.k8s.io")`: "a member that the snapshot controller " +
		"leaves its finalizer of the group, which depends on the moment at which the group is deleted",
}

// granted reads the roles and bindings of all manifests in a directory.
func granted(directory string) (rights, error) {
	files, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var manifests []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		manifests = append(append(manifests, "\n---\n"...), text...)
	}
	found, _, err := grants.Read(manifests)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s grants nothing", directory)
	}
	var all rights
	for _, grant := range found {
		all = append(all, &right{Grant: grant})
	}
	return all, nil
}

// placeholder is a name of deploy that whoever installs it replaces.
const placeholder = "none"

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
				request := grants.Grant{Account: account[3], Cluster: cluster, Group: event.ObjectRef.APIGroup, Resource: resource, Verb: event.Verb}
				return r.covers(request, event.ObjectRef.Name)
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
		list := watched.Grant
		list.Verb = "list"
		if watched.Verb == "watch" && r.Grant == list {
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
