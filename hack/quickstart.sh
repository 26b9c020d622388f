#!/bin/bash
# Shows what Blockmover does to one volume, without a cluster and without root: a full
# backup, a change of one percent, an incremental backup, a check of the repository, a
# restore of each, and a file out of the older one. Everything is in a directory that
# is removed at the end.
#
# usage: hack/quickstart.sh BLOCKMOVER
set -euo pipefail
shopt -s inherit_errexit
PATH=$PATH:/usr/sbin:/sbin
blockmover=$(realpath "$1")
export BLOCKMOVER_REPO_PASSWORD=quickstart
command -v mkfs.ext4 >/dev/null || { echo "quickstart: mkfs.ext4 is missing: install e2fsprogs" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() {
	printf '$ blockmover %s\n' "$*"
	"$blockmover" "$@" 2>/dev/null
}
# backup makes an image, keeps the result in a file, and leaves the ID of the image in $id.
backup() {
	local result=$1
	shift
	set -- image backup --repo repo --volume shop/disk --device disk.img "$@" --json
	printf '$ blockmover %s\n' "$*"
	"$blockmover" "$@" 2>/dev/null >"$result"
	id=$(sed -n 's/.*"snapshotID": *"\([^"]*\)".*/\1/p' "$result")
}

say "A volume of 512 MiB with an ext4 file system, a text and 96 MiB of data"
mkdir files
echo "the first version" >files/letter.txt
head -c 96M /dev/urandom >files/data
mkfs.ext4 -q -d files -E root_owner=0:0 disk.img 512M
cp --sparse=always disk.img before.img

say "A full backup"
show repo create --repo repo
backup full.json
full=$id
show image list --repo repo

say "One percent changes. A storage with changed block tracking says where; here it is a list"
: >changed.jsonl
for ((i = 0; i < 80; i++)); do
	offset=$(((200 + 3 * i) << 20))
	head -c 65536 /dev/urandom | dd of=disk.img bs=64K seek=$((offset / 65536)) conv=notrunc status=none
	echo "{\"offset\":$offset,\"length\":65536}" >>changed.jsonl
done

say "An incremental backup reads that, and nothing else"
backup next.json --changed changed.jsonl
next=$id
show image list --repo repo
for name in full next; do
	printf '%s: %s\n' "$name" "$(grep -oE '"(kind|bytesRead|bytesUploaded|seconds)": *[^,}]*' "$name.json" | tr -d '"' | tr '\n' ' ')"
done

say "Every byte of both can be read"
show image verify --repo repo

say "Restore of each: equal to what it was"
for id in "$full" "$next"; do
	truncate -s 512M "restored-$id"
	show image restore --repo repo --snapshot "$id" --device "restored-$id"
done
cmp "restored-$full" before.img
cmp "restored-$next" disk.img
echo "both are equal"

say "A file out of the first backup"
show files cat --repo repo --snapshot "$full" /letter.txt

say "Delete the first backup. The second one is complete without it"
show image delete --repo repo --snapshot "$full"
show image verify --repo repo
printf '\nPASS after %d s\n' "$SECONDS"
