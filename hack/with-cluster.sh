#!/bin/bash
# Runs a command against a cluster with Velero: on the one that KUBECONFIG names
# if it is set, else on one of our own that is made for the command and removed
# after it, however the command ends.
#
# usage: hack/with-cluster.sh NAME COMMAND [ARG ...]
set -euo pipefail
name=$1
shift
if [[ -n ${KUBECONFIG:-} ]]; then
	exec "$@"
fi
export BLOCKMOVER_CLUSTER=$name
cluster=$BLOCKMOVER_CACHE/bin/cluster
child=

# The command gets the signal too, and a moment to end, before its cluster goes.
stop() {
	trap '' INT TERM
	if [[ -n $child ]]; then
		kill -TERM "$child" 2>/dev/null || true
		wait "$child" 2>/dev/null || true
	fi
	exit 130
}
trap stop INT TERM
trap '"$cluster" down' EXIT

run() {
	"$@" &
	child=$!
	local status=0
	wait "$child" || status=$?
	child=
	return $status
}

run "$cluster" up --velero
run "$cluster" images load
run "$cluster" exec -- "$@"
