#!/bin/bash
# Runs the scenarios: all of them on two clusters of our own at once, for they
# wait most of the time; those that a pattern picks on one; on the cluster that
# KUBECONFIG names if it is set. E2E_NAME names the clusters, "e2e" if it is not set.
# After all of them, it looks for rights that nothing has used.
#
# usage: hack/e2e.sh PROGRAM [PATTERN]
set -euo pipefail
program=$1
pattern=${2:-}
name=${E2E_NAME:-e2e}
options=(-test.v -test.timeout 60m)
if [[ -n ${KUBECONFIG:-} || -n $pattern ]]; then
	exec hack/with-cluster.sh "$name" "$program" "${options[@]}" ${pattern:+-test.run "$pattern"}
fi

# About half of the time; what is not named here runs on the first cluster.
second='^Test(Groups|GroupFailures|Killed.*|Cancel|Reasons|RetainedSnapshots)$'
children=()

audit=$(mktemp -d)
trap 'rm -rf "$audit"' EXIT

half() {
	local name=$1
	shift
	BLOCKMOVER_AUDIT=$audit/$name.log hack/with-cluster.sh "$name" "$program" "${options[@]}" "$@" > >(sed -u "s/^/$name: /") 2>&1 &
	children+=($!)
}

# A process in the background does not get Ctrl-C.
stop() {
	trap '' INT TERM
	kill -TERM "${children[@]}" 2>/dev/null || true
	wait
	exit 130
}
trap stop INT TERM

half "$name" -test.skip "$second"
half "$name-2" -test.run "$second"
status=0
for child in "${children[@]}"; do
	wait "$child" || status=1
done
if ((status == 0)); then
	"$BLOCKMOVER_CACHE/bin/rights" "$E2E_DEPLOY_DIR" "$audit"/*.log
fi
exit $status
