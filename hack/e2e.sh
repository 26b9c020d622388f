#!/bin/bash
# Runs the scenarios, the tests with VMs and some rounds of chaos: all of them on clusters
# of our own, side by side, for they wait most of the time; those scenarios that a pattern
# picks on one; all scenarios on the cluster that KUBECONFIG names if it is set. E2E_NAME
# names the clusters, "e2e" if it is not set. After all of them, it looks for rights that
# nothing has used. What failed is printed again at the end.
#
# usage: hack/e2e.sh SCENARIOS VMS CHAOS [PATTERN]
set -euo pipefail
program=$1
vms=$2
chaos=$3
pattern=${4:-}
name=${E2E_NAME:-e2e}
options=(-test.v -test.timeout 60m)
if [[ -n ${KUBECONFIG:-} || -n $pattern ]]; then
	exec hack/with-cluster.sh "$name" "$program" "${options[@]}" ${pattern:+-test.run "$pattern"}
fi

# What is named here does not run on the first cluster.
second='^Test(Groups|GroupFailures|Killed.*|Cancel|Reasons|RetainedSnapshots|RoundTripPerVolume|InPlace|Configuration|RestoreTest)$'
third='^Test(CancelAtOnce|FailedBackup|LeastRights|DangerousCalls|VerifierJobs)$'
declare -A children=()

output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT

# part NAME PROGRAM OPTION... runs a program in the background on a cluster of its own.
part() {
	local name=$1 program=$2
	shift 2
	: >"$output/$name.log"
	BLOCKMOVER_AUDIT=$output/$name.audit hack/with-cluster.sh "$name" "$program" "$@" >>"$output/$name.log" 2>&1 &
	children[$name]=$!
	tail -n +1 -f --pid=$! "$output/$name.log" | sed -u "s/^/$name: /" &
}

# A process in the background does not get Ctrl-C.
stop() {
	trap '' INT TERM
	kill -TERM "${children[@]}" 2>/dev/null || true
	wait
	exit 130
}
trap stop INT TERM

# The last lines of each failed test, or of the program if it failed without one.
failures() {
	awk -v keep=60 'function flush(i) {for (i = n > keep ? n - keep : 0; i < n; i++) print lines[i]; n = 0; found = 1}
		/^=== RUN +[^\/]*$/ {n = 0}
		/^ +--- FAIL/ && found {print; next}
		{lines[n++] = $0}
		/^--- FAIL/ {flush()}
		END {if (!found) flush()}' "$1"
}

failed=()
finish() {
	wait "${children[$1]}" || failed+=("$1")
	unset "children[$1]"
}

part "$name" "$program" "${options[@]}" -test.skip "$second|$third"
part "$name-2" "$program" "${options[@]}" -test.run "$second"
# The traps are for real KubeVirt; what stands in for it has faults of its own.
part "$name-vm" "$vms" "${options[@]}" -test.skip '^TestTraps$'
# This one is done long before the others, so more follows.
finish "$name-vm"
part "$name-3" "$program" "${options[@]}" -test.run "$third"
finish "$name-3"
part "$name-chaos" "$chaos" --log "$output/chaos.jsonl" --rounds 2 --faults 4 --duration 10m
for part in "${!children[@]}"; do
	finish "$part"
done
wait
if ((${#failed[@]} == 0)); then
	# The account of the chart's Jobs is in a template.
	mkdir "$output/plugin"
	"$BLOCKMOVER_CACHE/bin/helm" template blockmover "$E2E_DEPLOY_DIR" --set plugin.install=true --show-only templates/plugin.yaml >"$output/plugin/plugin.yaml"
	for directory in "$E2E_DEPLOY_DIR" "$E2E_DEPLOY_DIR"/{copies,verify,restore-test} "$output/plugin"; do
		"$BLOCKMOVER_CACHE/bin/rights" "$directory" "$output/$name"{,-2,-3}.audit
	done
	"$BLOCKMOVER_CACHE/bin/rights" "$E2E_DEPLOY_DIR/kubevirt" "$output/$name-vm.audit"
	exit
fi
for part in "${failed[@]}"; do
	echo "==== failed on cluster $part:"
	failures "$output/$part.log"
done
exit 1
