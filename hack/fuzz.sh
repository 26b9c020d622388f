#!/usr/bin/env bash
# hack/fuzz.sh TIME [REGEXP]: runs the fuzz targets of the Go module in the current directory, one after
# the other, TIME each. REGEXP picks those whose "PACKAGE FuzzName" it matches.
#
# New inputs go into Go's cache, and not into the tree. An input that fails goes into testdata/fuzz of
# its package. FUZZ_MEMORY bounds the data of each process in MiB. Without the bound, a target that runs
# away would take the machine with it.
set -euo pipefail

time=$1 pick=${2:-.}
memory=${FUZZ_MEMORY:-2048}

# The garbage collector tries to stay at half of what ends the process.
export GOMEMLIMIT=$((memory / 2))MiB

list() {
	local dir files
	while read -r dir files; do
		# A package without tests has no files.
		[ -n "$files" ] || continue
		# shellcheck disable=SC2086 # the names of Go files have no blanks
		(cd "$dir" && sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f \*testing\.F).*/\1/p' $files) | sed "s|^|.${dir#"$PWD"} |"
	done < <(go list -f '{{.Dir}}{{range .TestGoFiles}} {{.}}{{end}}{{range .XTestGoFiles}} {{.}}{{end}}' ./...)
}

mapfile -t targets < <(list | sort | grep -E -- "$pick" || true)
if [ ${#targets[@]} -eq 0 ]; then
	echo "no fuzz target matches $pick" >&2
	exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Go would spend a minute on making one input shorter, also one that is only interesting.
failed=()
count=0
for target in "${targets[@]}"; do
	read -r package name <<<"$target"
	count=$((count + 1))
	printf '[%d/%d] %s %s\n' "$count" "${#targets[@]}" "$package" "$name"
	if go test -exec "prlimit --data=$((memory << 20))" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 5s "$package" >"$log" 2>&1; then
		sed -n 's/^fuzz: elapsed: /        /p' "$log" | tail -1
		continue
	fi
	failed+=("$target")
	cat "$log"
	crasher=$(sed -n 's|^ *Failing input written to ||p' "$log" | tail -1)
	if [ -n "$crasher" ]; then
		echo "        The input that fails is $package/$crasher"
		echo "        To run it again: go test -run '$name/${crasher##*/}' $package"
		echo "        Commit the file with the fix: go test runs it from then on."
	fi
done

printf '%d fuzz targets, %s each: %d failed\n' "${#targets[@]}" "$time" "${#failed[@]}"
[ ${#failed[@]} -eq 0 ] || { printf '        %s\n' "${failed[@]}"; exit 1; }
