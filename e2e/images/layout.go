package images

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// SBOMType is the type of an artifact that is an SBOM in SPDX's JSON.
const SBOMType = "application/spdx+json"

// Variant is an image for one architecture.
type Variant struct {
	// Architecture is a GOARCH. The operating system is Linux.
	Architecture string
	Image        Image
	// SBOM is a document about the image, nil for none. It becomes an artifact that refers to it.
	SBOM []byte
}

// WriteLayout writes an OCI image layout into a directory that does not exist yet: an image index
// with a manifest for each variant, under the tag, and their SBOMs. It returns the digest of
// the image index, which depends on nothing but what is in the images.
//
// Source: https://github.com/opencontainers/image-spec, versions 1.1 of image-layout.md and
// manifest.md (subject).
func WriteLayout(directory, tag string, variants []Variant) (digest.Digest, error) {
	if err := os.MkdirAll(filepath.Dir(directory), 0o755); err != nil {
		return "", fmt.Errorf("create directory of layout: %w", err)
	}
	if err := os.Mkdir(directory, 0o755); err != nil {
		return "", fmt.Errorf("create layout: %w", err)
	}
	l := layout{directory}
	if err := os.MkdirAll(l.blobs(), 0o755); err != nil {
		return "", fmt.Errorf("create blobs of layout: %w", err)
	}
	var manifests, referrers []ocispec.Descriptor
	for _, v := range variants {
		manifest, err := l.image(v)
		if err != nil {
			return "", fmt.Errorf("image of %s: %w", v.Architecture, err)
		}
		manifests = append(manifests, manifest)
		if v.SBOM == nil {
			continue
		}
		sbom, err := l.artifact(SBOMType, v.SBOM, manifest)
		if err != nil {
			return "", fmt.Errorf("SBOM of %s: %w", v.Architecture, err)
		}
		referrers = append(referrers, sbom)
	}
	index, err := l.document(ocispec.MediaTypeImageIndex, indexOf(manifests))
	if err != nil {
		return "", err
	}
	root := index
	root.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	err = errors.Join(
		l.file(ocispec.ImageIndexFile, indexOf(append([]ocispec.Descriptor{root}, referrers...))),
		l.file(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}),
	)
	return index.Digest, err
}

func indexOf(manifests []ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
}

// layout is the directory of an OCI image layout.
type layout struct{ directory string }

func (l layout) blobs() string { return filepath.Join(l.directory, ocispec.ImageBlobsDir, "sha256") }

// image writes the blobs of a variant, and returns the descriptor of its manifest.
func (l layout) image(v Variant) (ocispec.Descriptor, error) {
	layer, diffID, err := l.layer(v.Image)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config, err := l.document(ocispec.MediaTypeImageConfig, v.Image.config(v.Architecture, diffID))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest, err := l.document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layer}, Annotations: v.Image.Labels,
	})
	manifest.Platform = &ocispec.Platform{Architecture: v.Architecture, OS: "linux"}
	return manifest, err
}

// artifact writes a document that refers to a manifest.
func (l layout) artifact(kind string, content []byte, subject ocispec.Descriptor) (ocispec.Descriptor, error) {
	blob, err := l.blob(kind, content)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := l.blob(ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return ocispec.Descriptor{}, err
	}
	subject.Platform = nil
	manifest, err := l.document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{blob}, Subject: &subject,
	})
	manifest.ArtifactType = kind
	return manifest, err
}

// layer writes the compressed layer of an image. The diff ID is the digest of what is compressed.
func (l layout) layer(i Image) (descriptor ocispec.Descriptor, diffID digest.Digest, err error) {
	out, err := os.CreateTemp(l.directory, ".layer-*")
	if err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("create layer: %w", err)
	}
	defer func() {
		_ = out.Close() // it was closed before if all went well
		_ = os.Remove(out.Name())
	}()
	plain, compressed := sha256.New(), sha256.New()
	zip := gzip.NewWriter(io.MultiWriter(out, compressed))
	if err := errors.Join(i.writeLayer(io.MultiWriter(zip, plain)), zip.Close()); err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("write layer: %w", err)
	}
	size, err := out.Seek(0, io.SeekCurrent)
	if err := errors.Join(err, out.Chmod(0o644), out.Close()); err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("write layer: %w", err)
	}
	descriptor = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.NewDigest(digest.SHA256, compressed), Size: size,
	}
	if err := os.Rename(out.Name(), filepath.Join(l.blobs(), descriptor.Digest.Encoded())); err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("write layer: %w", err)
	}
	return descriptor, digest.NewDigest(digest.SHA256, plain), nil
}

// document writes a blob of JSON.
func (l layout) document(mediaType string, content any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	return l.blob(mediaType, text)
}

func (l layout) blob(mediaType string, content []byte) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := os.WriteFile(filepath.Join(l.blobs(), d.Digest.Encoded()), content, 0o644); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob %s: %w", mediaType, err)
	}
	return d, nil
}

// file writes one of the two documents of a layout that are no blobs.
func (l layout) file(name string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(l.directory, name), text, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
