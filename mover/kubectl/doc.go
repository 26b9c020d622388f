// Package kubectl is the kubectl plugin: what runs, what each backup of a volume did, which
// snapshots are retained, and whether everything that Blockmover needs is there. It works with the
// rights of whoever calls it, and needs no part of Blockmover in the cluster but its objects.
//
// It is the same program as the mover. Under the name kubectl-blockmover, kubectl finds it.
//
// # Output
//
// The result goes to standard output, as a table or, with --output, as the same facts in JSON or
// YAML. Fields of JSON are only ever added. What concerns the person goes to standard error.
package kubectl
