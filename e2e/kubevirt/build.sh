#!/bin/bash
# Fills the cache with real KubeVirt: its binaries from the Go module cache, one
# container image for all components with libvirt and QEMU of Debian, a small guest,
# the operator's manifest, and Velero's plugin for KubeVirt. Nothing of it is in git.
#
# usage: e2e/kubevirt/build.sh DIRECTORY v1.8.2|v1.9.0
set -euo pipefail
shopt -s inherit_errexit
set -E
here=$(cd "$(dirname "$0")" && pwd)
out=$1
version=$2
declare -A sums=(
	[v1.8.2]=h1:qUnQPvFHlNqA4aQxvKCyX+mfgwE4mwELM82cOJ75ujE=
	[v1.9.0]=h1:eauQfI39dRALNciMIQtR7UsbTUjUft5V6IBO57Icl/k=
)
[[ -n ${sums[$version]:-} ]] || { echo "kubevirt: version $version is unknown" >&2; exit 2; }
plugin_version=v0.8.0
plugin_sum=h1:B3rPnK6lZxEWcCQ20ZEn/dYEnNb3MdaFJOj7oBeoiKg=
suite=trixie
registry=docker.io/kubevirtlab
stamp=$(cat "$here"/build.sh "$here"/guest-init.sh - <<<"$version" | sha256sum | cut -c1-40)
if [[ $(cat "$out/stamp" 2>/dev/null) == "$stamp" ]]; then
	exit
fi
mkdir -p "$out"/{bin,debs,images}
exec 9>"$out/.lock"
flock 9

trap 'echo "kubevirt: line $LINENO failed: $BASH_COMMAND" >&2' ERR

say() { printf '%6ds  kubevirt: %s\n' "$SECONDS" "$*" >&2; }

# Debian packages of the suite that KubeVirt's libvirt and QEMU are from, whatever this
# machine runs. The mirror is the machine's own.
apt=$out/apt
quiet() { "$@" >"$out/log" 2>&1 || { tail -n 30 "$out/log" >&2; return 1; }; }
suite_apt() {
	quiet apt-get -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State="$apt/state" -o Dir::Cache="$apt/cache" -o Dir::State::status=/dev/null \
		-o APT::Sandbox::User=root "$@"
}
prepare_apt() {
	local mirror
	mirror=$(find /etc/apt -type f \( -name '*.list' -o -name '*.sources' \) | sort | xargs awk '
		mirror == "" && $1 == "URIs:" {mirror = $2}
		mirror == "" && $1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /^http/) {mirror = $i; break}}
		END {print mirror}')
	mkdir -p "$apt"/{state/lists/partial,cache/archives/partial}
	printf '%s [trusted=yes] %s %s main\n' deb "$mirror" "$suite" deb-src "$mirror" "$suite" >"$apt/sources.list"
	suite_apt update
}

packages="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients libvirt-daemon-log qemu-system-x86 qemu-utils seabios libnbd0
	bash coreutils grep findutils procps util-linux sed tar"
# What a container does not need.
needless='^(systemd|libpam-systemd|dbus|adduser|passwd|login|ovmf|ipxe|mount_|libpam-|cron|init-system-helpers|logrotate|iproute2)'

download() {
	say "download packages of Debian $suite"
	prepare_apt
	# shellcheck disable=SC2086
	suite_apt -y --download-only install --no-install-recommends $packages
	mv "$apt"/cache/archives/*.deb "$out/debs/"
	(cd "$out/debs" && suite_apt download libnbd-dev linux-image-cloud-amd64 busybox-static qemu-guest-agent libglib2.0-0t64 liburing2 libnuma1 zlib1g libc6 libpcre2-8-0 libatomic1 libudev1 libcap2 e2fsprogs libext2fs2t64 libcom-err2 libblkid1 libuuid1)
	(cd "$out/debs" && suite_apt download "$(dpkg-deb -f linux-image-cloud-amd64_*.deb Depends | grep -o 'linux-image-[^ ,]*')")
	(cd "$out" && suite_apt source --download-only libnbd)
}

unpack() {
	local package
	rm -rf "${out:?}/$2"
	mkdir -p "$out/$2"/usr/{bin,sbin,lib,lib64}
	for package in bin sbin lib lib64; do
		ln -s "usr/$package" "$out/$2/$package"
	done
	for package in "$out"/debs/*.deb; do
		if [[ $(basename "$package") =~ $1 && ! $(basename "$package") =~ $needless ]]; then
			dpkg-deb --fsys-tarfile "$package" | tar -C "$out/$2" -x --keep-directory-symlink --no-same-owner
		fi
	done
}

# libnbd's Go binding is in no module proxy; Debian's source package has the generated one.
binding() {
	rm -rf "$out/libnbd" "$out/sys"
	mkdir -p "$out/libnbd" "$out/src"
	tar -C "$out/src" -xf "$out"/libnbd_*.orig.tar.gz --strip-components=1
	cp "$out"/src/golang/*.{go,h} "$out/src/golang/go.mod" "$out/libnbd/"
	rm -rf "$out/libnbd/"*_test.go "$out/src"
	# libvirt's binding has a C function of the same name.
	sed -i 's/\bfreeCallbackId\b/nbdFreeCallbackId/g' "$out"/libnbd/*.{go,h}
	unpack '^libnbd' sys
}

# module NAME VERSION SUM prints the directory of a module.
module() {
	local text
	text=$(go mod download -json "$1@$2")
	grep -q "\"Sum\": \"$3\"" <<<"$text" || { say "the module $1 $2 has another sum than $3"; exit 1; }
	sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$text"
}

# copy_requirements DIRECTORY makes a module of ours with the requirements and the sums of another.
copy_requirements() {
	cp "$1/go.sum" go.sum
	cp "$1/go.mod" go.mod
	chmod u+w go.sum go.mod
	sed -i 's#^module .*#module kubevirtlab#' go.mod
}

# The modules virt-template-* that KubeVirt 1.9 requires cannot be had. Those that 1.8 requires
# differ in the name of a version; the feature is switched off here.
templates() {
	local name before source
	before=$(module kubevirt.io/kubevirt v1.8.2 "${sums[v1.8.2]}")
	for name in api client-go engine; do
		grep "kubevirt.io/virt-template-$name v0.1.7" "$before/go.sum" >>go.sum
		source=$(module "kubevirt.io/virt-template-$name" v0.1.7 "$(awk -v m="kubevirt.io/virt-template-$name" '$1 == m && $2 == "v0.1.7" {print $3}' "$before/go.sum")")
		cp -r "$source" "$out/templates-$name"
		chmod -R u+w "$out/templates-$name"
		find "$out/templates-$name" -depth -name '*v1alpha1*' | while read -r path; do
			mv "$path" "$(dirname "$path")/$(basename "$path" | sed 's/v1alpha1/v1beta1/g')"
		done
		find "$out/templates-$name" -type f -exec sed -i 's/v1alpha1/v1beta1/g; s/V1alpha1/V1beta1/g' {} +
		go mod edit -replace "kubevirt.io/virt-template-$name=$out/templates-$name"
	done
}

binaries() {
	say "build KubeVirt $version (some 10 minutes if nothing is compiled yet)"
	local work=$out/module cmd=kubevirt.io/kubevirt/cmd source
	rm -rf "$work"
	mkdir -p "$work"
	(
		cd "$work"
		printf 'module kubevirtlab\n' >go.mod
		source=$(module kubevirt.io/kubevirt "$version" "${sums[$version]}")
		copy_requirements "$source"
		# Its staging directories are modules of the same version.
		sed -i "s#=> ./staging/src/\\(.*\\)#=> \\1 $version#" go.mod
		[[ $version != v1.9.* ]] || templates
		export GOFLAGS="-mod=mod -buildvcs=false -trimpath" CGO_ENABLED=1 CGO_CFLAGS="-O2 -w -I$out/sys/usr/include"
		export CGO_LDFLAGS="-L$out/sys/usr/lib/x86_64-linux-gnu -Wl,--allow-shlib-undefined"
		export PKG_CONFIG_PATH=$out/sys/usr/lib/x86_64-linux-gnu/pkgconfig
		go mod edit -require "kubevirt.io/kubevirt@$version" -replace "libguestfs.org/libnbd=$out/libnbd"
		local tags="netgo osusergo selinux libvirt_dlopen" flags="-s -w -X kubevirt.io/client-go/version.gitVersion=$version"
		go build -tags "$tags" -ldflags "$flags" -o "$out/bin/" "$cmd"/virt-{launcher,launcher-monitor,chroot,probe,tail,freezer,api,controller,operator,exportproxy,exportserver} \
			"$cmd/virt-launcher/libvirt-hook-client" "$cmd/synchronization-controller"
		go build -tags "$tags" -ldflags "$flags -linkmode=external -extldflags=-static" -o "$out/bin/" "$cmd/virt-handler"
		go build -tags "$tags" -ldflags "$flags" -o "$out/bin/" kubevirt.io/kubevirt/tools/manifest-templator
		gcc -static -O2 -o "$out/bin/container-disk" "$source/cmd/container-disk-v2alpha/main.c"
		cp "$source"/cmd/virt-launcher/{qemu.conf,virtqemud.conf,nsswitch.conf,qemu} "$source/cmd/virt-launcher/node-labeller/node-labeller.sh" "$out/"
		cd "$source"
		: >"$out/logo"
		"$out/bin/manifest-templator" --process-files --process-vars --namespace=kubevirt --cdi-namespace=cdi --csv-version=0.0.1 \
			--container-prefix="$registry" --container-tag="$version" --image-pull-policy=IfNotPresent --verbosity=3 \
			--generated-manifests-dir=manifests/generated/ --kubevirt-logo-path="$out/logo" \
			--input-file=manifests/release/kubevirt-operator.yaml.in |
			sed -e 's/{{.Namespace}}/kubevirt/g' -e 's/^  replicas: 2$/  replicas: 1/' >"$out/operator.yaml"
	)
}

# The image of all components. Debian has only the monolithic libvirtd, which serves under the
# name that KubeVirt starts.
component_root() {
	say "make the image of the components"
	local root=$out/root name
	unpack "^[^_]*" root
	rm -rf "$root"/usr/share/{doc,man,locale,info}
	printf 'root:x:0:0:root:/root:/bin/bash\nqemu:x:107:107:qemu:/:/sbin/nologin\nlibvirt-qemu:x:107:107:qemu:/:/sbin/nologin\nnonroot:x:1001:1001::/:/sbin/nologin\n' >"$root/etc/passwd"
	printf 'root:x:0:\nqemu:x:107:\nlibvirt-qemu:x:107:\nkvm:x:36:qemu\nlibvirt:x:108:\nnonroot:x:1001:\n' >"$root/etc/group"
	ln -sfn bash "$root/usr/bin/sh"
	rm -rf "$root/var/run"
	ln -sfn ../run "$root/var/run"
	mkdir -p "$root"/{root,tmp,etc/libvirt/hooks,var/lib/kubevirt-node-labeller,init/usr/bin}
	chmod 1777 "$root/tmp"
	cp "$out"/{qemu.conf,virtqemud.conf} "$root/etc/libvirt/"
	cp "$out/nsswitch.conf" "$root/etc/nsswitch.conf"
	install -m 755 "$out/qemu" "$root/etc/libvirt/hooks/qemu"
	chown -R 107:107 "$root/etc/libvirt/hooks"
	for name in "$out"/bin/*; do
		[[ $name == */manifest-templator ]] || install -m 755 "$name" "$root/usr/bin/"
	done
	install -m 755 "$out/node-labeller.sh" "$root/usr/bin/"
	setcap cap_net_bind_service+ep "$root/usr/bin/virt-launcher-monitor"
	cat >"$root/usr/sbin/virtqemud" <<-'END'
		#!/bin/bash
		mkdir -p /var/run/libvirt
		ln -sfn libvirt-sock /var/run/libvirt/virtqemud-sock
		exec /usr/sbin/libvirtd "$@"
	END
	chmod 755 "$root/usr/sbin/virtqemud"
	tar -C "$root" --xattrs --xattrs-include='*' --numeric-owner --sort=name --mtime=@0 -cf "$out/images/layer.tar" .
}

# config NAME FIELDS adds an image of the layer to the archive that is made. FIELDS are JSON.
config() {
	local text digest
	text=$(printf '{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
		"${2:+,$2}" "$layer")
	digest=$(printf %s "$text" | sha256sum | cut -d' ' -f1)
	printf %s "$text" >"$out/images/$digest.json"
	manifests+=("{\"Config\":\"$digest.json\",\"RepoTags\":[\"$registry/$1\"],\"Layers\":[\"layer.tar\"]}")
	files+=("$digest.json")
}

# archive FILE CONFIG... packs the layer as a docker-archive.
archive() {
	local layer manifests=() files=(layer.tar) file=$1 name
	layer=$(sha256sum "$out/images/layer.tar" | cut -d' ' -f1)
	shift
	for name in "$@"; do
		config "${name%%|*}" "${name#*|}"
	done
	(IFS=, && printf '[%s]' "${manifests[*]}") >"$out/images/manifest.json"
	tar -C "$out/images" -cf "$out/images/$file.new" manifest.json $(printf '%s\n' "${files[@]}" | sort -u)
	mv "$out/images/$file.new" "$out/images/$file"
	rm -f "$out"/images/{layer.tar,manifest.json} "$out"/images/*.json
}

component_image() {
	local configs=() name
	for name in virt-handler virt-launcher; do
		configs+=("$name:$version|\"User\":\"0\"")
	done
	for name in virt-operator virt-api virt-controller virt-exportproxy virt-synchronization-controller sidecar-shim; do
		configs+=("$name:$version|\"User\":\"1001\"")
	done
	configs+=("virt-exportserver:$version|\"User\":\"1001\",\"Entrypoint\":[\"/usr/bin/virt-exportserver\"]")
	archive components.tar "${configs[@]}"
}

# A guest that boots in seconds: a kernel, and an initial file system with a shell on the serial
# console and the guest agent.
guest_image() {
	say "make the guest"
	local system=$out/guest-root boot=$out/guest file library
	unpack '^(busybox-static|qemu-guest-agent|libglib2|liburing|libnuma|zlib1g|libc6|libpcre2|libatomic1|libudev1|libcap2|e2fsprogs|libext2fs2|libcom-err2|libblkid1|libuuid1|libe2p2|libss2|linux-image-6)_?' guest-root
	rm -rf "$boot" "$out/layer"
	mkdir -p "$boot"/{bin,sbin,proc,sys,dev,run,tmp,lib64} "$out/layer/boot"
	install -m 755 "$(find "$system" -path '*/bin/busybox' -type f)" "$boot/bin/busybox"
	ln -s busybox "$boot/bin/sh"
	for file in "$(find "$system" -name qemu-ga -type f)" "$(find "$system" -name mke2fs -type f)"; do
		install -m 755 "$file" "$boot/bin/"
		while read -r library; do
			mkdir -p "$boot/$(dirname "$library")"
			cp -L "$system/$library" "$boot/$library"
		done < <(chroot "$system" "$(loader "$system")" --list "/${file#"$system/"}" | grep -o '/[^ ]*')
	done
	file=$(find "$system" -name 'virtio_blk.ko*')
	if [[ $file == *.xz ]]; then xz -dc "$file" >"$boot/virtio_blk.ko"; else cp "$file" "$boot/virtio_blk.ko"; fi
	install -m 755 "$here/guest-init.sh" "$boot/init"
	(cd "$boot" && find . | cpio --quiet -o -H newc | gzip -9) >"$out/layer/boot/initrd"
	cp "$(find "$system/boot" -name 'vmlinuz-*')" "$out/layer/boot/vmlinuz"
	small_sum "$out/layer/boot/initrd"
	small_sum "$out/layer/boot/vmlinuz"
	chmod 644 "$out"/layer/boot/*
	tar -C "$out/layer" --numeric-owner --sort=name --mtime=@0 -cf "$out/images/layer.tar" .
	archive guest.tar "guest:e2e|"
	rm -rf "$system" "$boot" "$out/layer"
}

# Velero's plugin for KubeVirt, as an image that `velero plugin add` takes.
plugin_image() {
	say "build Velero's plugin for KubeVirt $plugin_version"
	local work=$out/module path=github.com/kubevirt/kubevirt-velero-plugin
	rm -rf "$work" "$out/layer"
	mkdir -p "$work" "$out"/layer/{bin,plugins}
	(
		cd "$work"
		printf 'module kubevirtlab\n' >go.mod
		copy_requirements "$(module "$path" "$plugin_version" "$plugin_sum")"
		go mod edit -require "kubevirt.io/kubevirt-velero-plugin@$plugin_version" -replace "kubevirt.io/kubevirt-velero-plugin=$path@$plugin_version"
		GOFLAGS="-mod=mod -buildvcs=false -trimpath" CGO_ENABLED=0 go build -ldflags '-s -w' -o "$out/layer/plugins/kubevirt-velero-plugin" kubevirt.io/kubevirt-velero-plugin
	)
	unpack '^busybox-static' guest-root
	install -m 755 "$(find "$out/guest-root" -path '*/bin/busybox' -type f)" "$out/layer/bin/busybox"
	ln -s busybox "$out/layer/bin/sh"
	ln -s busybox "$out/layer/bin/cp"
	tar -C "$out/layer" --numeric-owner --sort=name --mtime=@0 -cf "$out/images/layer.tar" .
	archive plugin.tar "kubevirt-velero-plugin:e2e|\"Entrypoint\":[\"/bin/sh\",\"-c\",\"cp /plugins/* /target/.\"]"
	rm -rf "$out/guest-root" "$out/layer"
}

loader() {
	local file
	file=$(find "$1" -name 'ld-linux-x86-64.so.2' | head -n 1)
	printf '/%s' "${file#"$1/"}"
}

# KubeVirt writes the CRC-32 of kernel and initrd into an int32, and Kubernetes refuses one of 2^31
# and more. gzip's trailer has the sum.
small_sum() {
	while (($(gzip -1c "$1" | tail -c 8 | head -c 4 | od -An -tu4) >= 1 << 31)); do
		printf '\0' >>"$1"
	done
}

needed() {
	local missing=()
	command -v gcc >/dev/null || missing+=(gcc libc6-dev)
	command -v cpio >/dev/null || missing+=(cpio)
	command -v xz >/dev/null || missing+=(xz-utils)
	command -v setcap >/dev/null || missing+=(libcap2-bin)
	command -v pkg-config >/dev/null || missing+=(pkg-config)
	if ((${#missing[@]} > 0)); then
		say "install on the host: ${missing[*]}"
		quiet apt-get install -y --no-install-recommends "${missing[@]}" ||
			{ quiet apt-get update && quiet apt-get install -y --no-install-recommends "${missing[@]}"; }
	fi
}

needed
download
binding
binaries
component_root
component_image
guest_image
plugin_image
rm -rf "$out"/{debs,apt,root,module,libnbd,libnbd_*,sys,log,logo,bin,templates-*,qemu,qemu.conf,virtqemud.conf,nsswitch.conf,node-labeller.sh}
printf %s "$version" >"$out/version"
printf %s "$stamp" >"$out/stamp"
say "KubeVirt $version is in $out"
