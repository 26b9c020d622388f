#!/bin/sh
# Builds all images with buildah and without any registry or network, which
# shows that the Dockerfiles depend on neither: the base images are build
# arguments, and so is where Go modules come from.
#
# Each build runs in a network namespace of its own, with nothing in it. The local
# base images are made from this machine's Go toolchain with a shell, from its CA
# certificates, and from its programs that check file systems. Its module cache is
# mounted read-only.
#
# Needs root, Go with all modules of this repository in its module cache, and
# buildah, e2fsprogs, xfsprogs and btrfs-progs (Debian: apt-get install -y
# --no-install-recommends buildah e2fsprogs xfsprogs btrfs-progs).
#
#   hack/build-images-buildah.sh [DIRECTORY]
#
# With DIRECTORY, the images are left there as docker archives.
set -eu

cd "$(dirname "$0")/.."
output=${1:-}
version=${VERSION:-dev}
revision=$(git rev-parse HEAD)
created=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
limit=${BUILD_TIMEOUT:-2400} # seconds for one image, on a slow machine from nothing

checkers="e2fsck tune2fs xfs_repair btrfs"
for program in buildah $checkers; do
	command -v "$program" >/dev/null || {
		echo "$program is missing: apt-get install -y --no-install-recommends buildah e2fsprogs xfsprogs btrfs-progs" >&2
		exit 1
	}
done

cache=${BLOCKMOVER_CACHE:-$HOME/.cache/blockmover}/buildah
mkdir -p "$cache/go-build"
work=$(mktemp -d "$cache/work.XXXXXX")
started=$(date +%s)

# All of buildah's state is below $work, and ends with it.
storage() {
	buildah --root "$work/root" --runroot "$work/runroot" --storage-driver vfs "$@"
}

cleanup() {
	status=$?
	trap - EXIT INT TERM
	storage rm --all >/dev/null 2>&1 || true
	storage rmi --all --force >/dev/null 2>&1 || true
	# Nothing may stay mounted below what is deleted: the module cache is there.
	mounts=$(awk -v dir="$work/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
	for mount in $mounts; do
		umount "$mount" 2>/dev/null || umount -l "$mount"
	done
	rm -rf --one-file-system "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { echo "[$(($(date +%s) - started)) s] $*"; }

# copy_into FILE DIRECTORY copies a program and the libraries that it is linked to.
copy_into() {
	for file in "$1" $(ldd "$1" 2>/dev/null | grep -o '/[^ )]*'); do
		mkdir -p "$2/$(dirname "$file")"
		cp -L "$file" "$2/$file"
	done
}

# image_from DIRECTORY IMAGE [CONFIGURATION ...] makes an image of a directory.
image_from() {
	directory=$1
	image=$2
	shift 2
	container=$(storage from scratch)
	storage copy --quiet "$container" "$directory" / >/dev/null
	storage config "$@" "$container"
	storage commit --quiet --rm "$container" "$image" >/dev/null
}

say "base image from $(go version)"
goroot=$(go env GOROOT)
modules=$(go env GOMODCACHE)
base=$work/base
mkdir -p "$base/usr/local" "$base/tmp" "$base/root" "$base/go/pkg/mod"
chmod 1777 "$base/tmp"
cp -a "$goroot" "$base/usr/local/go"
copy_into /bin/sh "$base"
copy_into /bin/mkdir "$base"
image_from "$base" localhost/blockmover-build:local \
	--env PATH=/usr/local/go/bin:/bin:/usr/bin \
	--env GOPATH=/go --env GOCACHE=/root/.cache/go-build --env GOTOOLCHAIN=local
rm -rf "$base"
certificates=$work/certificates
mkdir -p "$certificates/etc/ssl/certs"
cp -L /etc/ssl/certs/ca-certificates.crt "$certificates/etc/ssl/certs/"
tools=$work/tools
mkdir -p "$tools/tmp"
copy_into /bin/sh "$tools"
for program in $checkers; do
	copy_into "$(command -v "$program")" "$tools"
done
image_from "$tools" localhost/blockmover-tools-base:local --env PATH=/bin:/usr/bin:/sbin:/usr/sbin
rm -rf "$tools"

# build DOCKERFILE IMAGE
build() {
	say "$2 from $1"
	# buildah takes an image whose stage does nothing for an intermediate one, and
	# removes it after the build.
	image_from "$certificates" localhost/blockmover-certificates:local
	timeout --kill-after=30 "$limit" unshare --net buildah --root "$work/root" --runroot "$work/runroot" --storage-driver vfs \
		build --isolation chroot --layers=false --force-rm --pull-never \
		--build-arg BUILD_IMAGE=localhost/blockmover-build:local \
		--build-arg CERTIFICATES_IMAGE=localhost/blockmover-certificates:local \
		--build-arg TOOLS_IMAGE=localhost/blockmover-tools-base:local \
		--build-arg TARGETOS=linux --build-arg "TARGETARCH=$(go env GOARCH)" \
		--build-arg GOPROXY=off --build-arg GOFLAGS= --build-arg "VERSION=$version" \
		--build-arg "REVISION=$revision" --build-arg "CREATED=$(date -u -d "@$created" +%Y-%m-%dT%H:%M:%SZ)" --timestamp "$created" \
		--volume "$modules:/go/pkg/mod:ro" --volume "$cache/go-build:/root/.cache/go-build" \
		--file "$1" --tag "$2" .
	say "$2: $(storage inspect --type image --format '{{.Docker.Config.User}} {{.Docker.Config.Entrypoint}}' "$2")"
	if [ -n "$output" ]; then
		mkdir -p "$output"
		rm -f "$output/$(basename "$2" :local).tar"
		storage push --quiet "$2" "docker-archive:$output/$(basename "$2" :local).tar:$(basename "$2")"
	fi
}

build Dockerfile.plugin localhost/velero-plugin-blockmover:local
build Dockerfile.mover localhost/blockmover:local
build Dockerfile.tools localhost/blockmover-tools:local
say "done"
