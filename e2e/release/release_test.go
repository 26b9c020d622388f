package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/images"
)

const root = "../.."

// copyOfSource copies what the images are built from, to a place of another name.
func copyOfSource(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"internal", "mover", "plugins"} {
		require.NoError(t, os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))))
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	return dir
}

func options(t *testing.T, source string, architectures ...string) Options {
	t.Helper()
	certificates := filepath.Join(t.TempDir(), "certificates.pem")
	require.NoError(t, os.WriteFile(certificates, []byte("certificates"), 0o600))
	return Options{
		Source: source, Output: filepath.Join(t.TempDir(), "out"), Version: "v1.2.3", Revision: "abc", Created: time.Unix(1700000000, 0),
		Architectures: architectures, Certificates: Certificates{File: certificates, Version: "1"}, Report: t.Logf,
	}
}

// TestCrossBuild builds a small image for two architectures, with the way that all images take.
func TestCrossBuild(t *testing.T) {
	small := []product{{
		"tool", "a small program", license, func(bin string) images.Image {
			return images.Image{Files: []images.File{{Path: "/cp-plugin", Source: filepath.Join(bin, "cp-plugin")}}, User: "7:7"}
		},
		map[string]string{"cp-plugin": "./plugins/cp-plugin"},
		nil,
	}}
	o := options(t, root, "amd64", "arm64")
	built, err := o.build(t.Context(), small)
	require.NoError(t, err)
	other := options(t, copyOfSource(t), "amd64", "arm64")
	again, err := other.build(t.Context(), small)
	require.NoError(t, err)
	require.Equal(t, built[0].Digest, again[0].Digest, "two builds, one digest")

	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	index := decode[ocispec.Index](t, blob(t, built[0].Layout, built[0].Digest.Encoded()))
	require.Len(t, index.Manifests, len(machines))
	for _, d := range index.Manifests {
		arch := d.Platform.Architecture
		manifest := decode[ocispec.Manifest](t, blob(t, built[0].Layout, d.Digest.Encoded()))
		config := decode[ocispec.Image](t, blob(t, built[0].Layout, manifest.Config.Digest.Encoded()))
		require.Equal(t, ocispec.Platform{Architecture: arch, OS: "linux"}, config.Platform)
		require.Equal(t, map[string]string{
			"org.opencontainers.image.title":       "tool",
			"org.opencontainers.image.description": "a small program",
			"org.opencontainers.image.source":      "https://github.com/blockmover/blockmover",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     "v1.2.3",
			"org.opencontainers.image.revision":    "abc",
			"org.opencontainers.image.created":     "2023-11-14T22:13:20Z",
		}, config.Config.Labels)
		files := files(t, blob(t, built[0].Layout, manifest.Layers[0].Digest.Encoded()))
		require.Equal(t, "certificates", string(files["etc/ssl/certs/ca-certificates.crt"]))
		program, err := elf.NewFile(bytes.NewReader(files["cp-plugin"]))
		require.NoError(t, err)
		require.Equal(t, machines[arch], program.Machine)
		libraries, err := program.ImportedLibraries()
		require.NoError(t, err)
		require.Empty(t, libraries, "it is static")
		info, err := buildinfo.Read(bytes.NewReader(files["cp-plugin"]))
		require.NoError(t, err)
		require.Equal(t, runtime.Version(), info.GoVersion)
		document, err := os.ReadFile(filepath.Join(o.Output, "tool-"+arch+".spdx.json"))
		require.NoError(t, err)
		require.Contains(t, string(document), "pkg:golang/stdlib@"+strings.TrimPrefix(runtime.Version(), "go"))
	}
	_, err = o.build(t.Context(), small)
	require.ErrorContains(t, err, "remove what is there first")
}

// TestTools builds the image with the programs of Debian for another architecture than the machine's, too, and runs those
// of its own from the image's files alone.
func TestTools(t *testing.T) {
	o := options(t, root, "amd64", "arm64")
	built, err := o.build(t.Context(), products[2:])
	require.NoError(t, err)
	index := decode[ocispec.Index](t, blob(t, built[0].Layout, built[0].Digest.Encoded()))
	require.Len(t, index.Manifests, 2)
	for _, d := range index.Manifests {
		manifest := decode[ocispec.Manifest](t, blob(t, built[0].Layout, d.Digest.Encoded()))
		dir := t.TempDir()
		tree := files(t, blob(t, built[0].Layout, manifest.Layers[0].Digest.Encoded()))
		for _, name := range []string{"fscheck", "sbin/e2fsck", "sbin/tune2fs", "sbin/xfs_repair", "sbin/btrfs", "lib/libc.so.6", "usr/share/doc/xfsprogs/copyright"} {
			require.NotEmpty(t, tree[name], name)
		}
		document, err := os.ReadFile(filepath.Join(o.Output, "blockmover-tools-"+d.Platform.Architecture+".spdx.json"))
		require.NoError(t, err)
		for _, name := range []string{"xfsprogs", "btrfs-progs", "libc6"} {
			require.Regexp(t, `pkg:deb/debian/`+name+`@[0-9][^"]*\?arch=`+d.Platform.Architecture, string(document))
		}
		if d.Platform.Architecture != runtime.GOARCH || os.Geteuid() != 0 {
			continue
		}
		unpack(t, dir, blob(t, built[0].Layout, manifest.Layers[0].Digest.Encoded()))
		for program, option := range map[string]string{"e2fsck": "-V", "tune2fs": "-V", "xfs_repair": "-V", "btrfs": "--version"} {
			cmd := exec.Command("/sbin/"+program, option)
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
			out, err := cmd.CombinedOutput()
			if program != "tune2fs" { // it has no such option, and says its version before it says that
				require.NoError(t, err, "%s: %s", program, out)
			}
			require.Regexp(t, `[0-9]+\.[0-9]+`, string(out))
		}
	}
}

// TestReproducible builds the image of the plugin in two places.
func TestReproducible(t *testing.T) {
	var digests []string
	for _, source := range []string{root, copyOfSource(t)} {
		built, err := options(t, source, runtime.GOARCH).build(t.Context(), products[1:2])
		require.NoError(t, err)
		digests = append(digests, built[0].Digest.String())
	}
	require.Equal(t, digests[0], digests[1], "two builds, one digest")
}

func TestValidate(t *testing.T) {
	require.NoError(t, options(t, root, "amd64").Validate())
	err := Options{Version: "v1 beta"}.Validate()
	for _, want := range []string{`version is "v1 beta"`, "SOURCE_DATE_EPOCH", "no architecture", "root certificates"} {
		require.ErrorContains(t, err, want)
	}
}

// TestDockerfiles compares the last stage of the Dockerfiles with the images that are built
// without them.
func TestDockerfiles(t *testing.T) {
	for i, file := range []string{"Dockerfile.mover", "Dockerfile.plugin", "Dockerfile.tools"} {
		t.Run(file, func(t *testing.T) {
			p := products[i]
			text, err := os.ReadFile(filepath.Join(root, file))
			require.NoError(t, err)
			stages := strings.Split(string(text), "\nFROM ")
			stage := strings.ReplaceAll(stages[len(stages)-1], "\\\n", " ")
			o := Options{Version: "${VERSION}", Revision: "${REVISION}", Created: time.Unix(1700000000, 0)}
			var others []images.File // apt installs the programs of Debian in the Dockerfile
			if p.tools == nil {
				others = append(others, images.File{Path: certificatesPath})
			}
			image := o.finish(p, p.image("bin"), others)
			image.Labels[ocispec.AnnotationCreated] = "${CREATED}"

			labels, copied := map[string]string{}, []string{}
			for line := range strings.Lines(stage) {
				instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
				switch instruction {
				case "LABEL":
					for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(rest) {
						key, value, _ := strings.Cut(rest, `="`)
						labels[key], rest, _ = strings.Cut(value, `"`)
					}
				case "COPY":
					words := strings.Fields(rest)
					copied = append(copied, words[len(words)-1])
				case "ENV":
					require.Equal(t, image.Env, []string{rest})
				case "USER":
					require.Equal(t, image.User, rest)
				case "ENTRYPOINT":
					require.Equal(t, image.Entrypoint, decode[[]string](t, []byte(rest)))
				}
			}
			require.Equal(t, image.Labels, labels)
			want := []string{}
			for _, f := range image.Files {
				if !f.Dir {
					want = append(want, f.Path)
				}
			}
			if p.name == "blockmover" {
				want = append(want, "/") // the directories
			}
			require.ElementsMatch(t, want, copied)
		})
	}
}

func blob(t *testing.T, layout, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(layout, "blobs", "sha256", name))
	require.NoError(t, err)
	return content
}

func decode[T any](t *testing.T, content []byte) (value T) {
	t.Helper()
	require.NoError(t, json.Unmarshal(content, &value))
	return value
}

// files are those of a layer.
func files(t *testing.T, layer []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	eachEntry(t, layer, func(h *tar.Header, content []byte) { all[h.Name] = content })
	return all
}

// eachEntry calls f with the entries of a layer.
func eachEntry(t *testing.T, layer []byte, f func(h *tar.Header, content []byte)) {
	t.Helper()
	plain, err := gzip.NewReader(bytes.NewReader(layer))
	require.NoError(t, err)
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		f(h, content)
	}
}

// unpack writes a layer to a directory.
func unpack(t *testing.T, dir string, layer []byte) {
	t.Helper()
	eachEntry(t, layer, func(h *tar.Header, content []byte) {
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			require.NoError(t, os.MkdirAll(path, 0o755))
		case tar.TypeSymlink:
			require.NoError(t, os.Symlink(h.Linkname, path))
		default:
			require.NoError(t, os.WriteFile(path, content, h.FileInfo().Mode()))
		}
	})
}
