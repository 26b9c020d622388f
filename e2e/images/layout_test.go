package images

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func readBlob(t *testing.T, layout string, d ocispec.Descriptor) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(layout, "blobs", "sha256", d.Digest.Encoded()))
	require.NoError(t, err)
	require.Equal(t, d.Digest, digest.FromBytes(content))
	require.Equal(t, d.Size, int64(len(content)))
	return content
}

func decode[T any](t *testing.T, content []byte) (value T) {
	t.Helper()
	require.NoError(t, json.Unmarshal(content, &value))
	return value
}

// TestWriteLayout follows a layout from its index down to the files in the layers.
func TestWriteLayout(t *testing.T) {
	dir := t.TempDir()
	created := time.Unix(1700000000, 0)
	variants := make([]Variant, 0, 2)
	for _, arch := range []string{"amd64", "arm64"} {
		variants = append(variants, Variant{
			Architecture: arch, SBOM: []byte("of " + arch),
			Image: Image{
				Files:      []File{{Path: "/bin/tool", Content: []byte("for " + arch)}},
				Entrypoint: []string{"/bin/tool"}, User: "7:8", Labels: map[string]string{"a": "b"}, Created: created,
			},
		})
	}
	layout := filepath.Join(dir, "out", "tool")
	root, err := WriteLayout(layout, "v1", variants)
	require.NoError(t, err)
	again, err := WriteLayout(filepath.Join(dir, "elsewhere"), "v1", variants)
	require.NoError(t, err)
	require.Equal(t, root, again)
	_, err = WriteLayout(layout, "v1", variants)
	require.ErrorIs(t, err, os.ErrExist)

	text, err := os.ReadFile(filepath.Join(layout, "oci-layout"))
	require.NoError(t, err)
	require.JSONEq(t, `{"imageLayoutVersion":"1.0.0"}`, string(text))
	text, err = os.ReadFile(filepath.Join(layout, "index.json"))
	require.NoError(t, err)
	top := decode[ocispec.Index](t, text)
	require.Len(t, top.Manifests, 3, "the image, and an SBOM for each platform")
	require.Equal(t, root, top.Manifests[0].Digest)
	require.Equal(t, "v1", top.Manifests[0].Annotations[ocispec.AnnotationRefName])
	index := decode[ocispec.Index](t, readBlob(t, layout, top.Manifests[0]))
	require.Len(t, index.Manifests, 2)
	for n, arch := range []string{"amd64", "arm64"} {
		require.Equal(t, &ocispec.Platform{Architecture: arch, OS: "linux"}, index.Manifests[n].Platform)
		manifest := decode[ocispec.Manifest](t, readBlob(t, layout, index.Manifests[n]))
		config := decode[ocispec.Image](t, readBlob(t, layout, manifest.Config))
		require.Equal(t, arch, config.Architecture)
		require.Equal(t, map[string]string{"a": "b"}, config.Config.Labels)
		require.True(t, created.Equal(*config.Created))
		require.Len(t, manifest.Layers, 1)
		readBlob(t, layout, manifest.Layers[0])
		file, err := os.Open(filepath.Join(layout, "blobs", "sha256", manifest.Layers[0].Digest.Encoded()))
		require.NoError(t, err)
		defer file.Close()
		plain, err := gzip.NewReader(file)
		require.NoError(t, err)
		all, err := io.ReadAll(plain)
		require.NoError(t, err)
		require.Equal(t, config.RootFS.DiffIDs, []digest.Digest{digest.FromBytes(all)})

		sbom := decode[ocispec.Manifest](t, readBlob(t, layout, top.Manifests[1+n]))
		require.Equal(t, SBOMType, sbom.ArtifactType)
		require.Equal(t, SBOMType, top.Manifests[1+n].ArtifactType)
		require.Equal(t, index.Manifests[n].Digest, sbom.Subject.Digest)
		require.Equal(t, "of "+arch, string(readBlob(t, layout, sbom.Layers[0])))
		require.Equal(t, "{}", string(readBlob(t, layout, sbom.Config)))
	}
	entries, err := os.ReadDir(layout)
	require.NoError(t, err)
	require.Len(t, entries, 3, "blobs, index.json, oci-layout")
}
