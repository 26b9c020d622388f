// Package release builds the images of Blockmover for several architectures, without a
// container engine and without a registry: Go cross-compiles the binaries, package images
// assembles them, and package sbom says what is in them.
//
// Two builds of one source with one version of Go, one file of certificates, the same packages of
// Debian and one time give the same bytes, wherever the source is. The Dockerfiles describe the same
// images; a test compares them.
package release

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/blockmover/blockmover/e2e/images"
	"github.com/blockmover/blockmover/e2e/images/debian"
	"github.com/blockmover/blockmover/e2e/images/sbom"
)

// What all images say of themselves.
const source = "https://github.com/blockmover/blockmover"

// Licenses: ours, and with those of the programs of Debian that check file systems, and their libraries.
const (
	license      = "Apache-2.0"
	toolsLicense = "Apache-2.0 AND GPL-2.0-only AND LGPL-2.1-or-later AND BSD-3-Clause AND Zlib"
)

// certificatesPath is where programs in the images look for root certificates.
const certificatesPath = "/etc/ssl/certs/ca-certificates.crt"

// tag is what a registry takes for one.
var tag = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// product is one of our images.
type product struct {
	name, description, license string
	image                      func(bin string) images.Image
	// packages of the root module, by the name of the binary.
	packages map[string]string
	// tools are of Debian. An image without them has root certificates.
	tools *debian.Tools
}

var products = []product{
	{
		"blockmover", "Block-level and incremental data mover for Velero", license, images.BlockmoverMover,
		map[string]string{"blockmover": "./mover"},
		nil,
	},
	{
		"velero-plugin-blockmover", "Velero plugin of Blockmover, a block-level and incremental data mover", license, images.BlockmoverPlugin,
		map[string]string{"velero-plugin-blockmover": "./plugins", "cp-plugin": "./plugins/cp-plugin"},
		nil,
	},
	{
		"blockmover-tools", "Checks file systems for Blockmover", toolsLicense, func(bin string) images.Image { return images.BlockmoverTools(bin, nil) },
		map[string]string{"fscheck": "./mover/fscheck"},
		&debian.FileSystemTools,
	},
}

// Options say what to build.
type Options struct {
	// Source is the root module, and Output a directory that does not exist yet.
	Source, Output string
	// Version is the tag of the images, and Revision the commit.
	Version, Revision string
	// Created is the time that the images claim. The time of the commit can be repeated.
	Created time.Time
	// Architectures are values of GOARCH.
	Architectures []string
	// Certificates is a file of root certificates, in PEM.
	Certificates Certificates
	// Report receives one line for each step.
	Report func(format string, args ...any)
}

// Certificates are root certificates, and the version of the Debian package that they are of, if
// it is known.
type Certificates struct{ File, Version string }

// Image is an image that was built.
type Image struct {
	Name string
	// Layout is the directory of its OCI image layout, and Digest that of its image index.
	Layout string
	Digest digest.Digest
}

// Build builds the images into the output: NAME is an OCI image layout, and NAME-ARCH.spdx.json an
// SBOM, which the layout has, too.
func (o Options) Build(ctx context.Context) ([]Image, error) { return o.build(ctx, products) }

func (o Options) build(ctx context.Context, products []product) ([]Image, error) {
	if err := os.Mkdir(o.Output, 0o755); err != nil {
		return nil, fmt.Errorf("create output: %w; remove what is there first", err)
	}
	work, err := os.MkdirTemp("", "blockmover-release-")
	if err != nil {
		return nil, fmt.Errorf("create directory for binaries: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	var built []Image
	for _, p := range products {
		image, err := o.product(ctx, p, work)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", p.name, err)
		}
		built = append(built, image)
		o.Report("%s: %s", image.Name, image.Digest)
	}
	return built, nil
}

func (o Options) product(ctx context.Context, p product, work string) (Image, error) {
	var variants []images.Variant
	for _, arch := range o.Architectures {
		bin := filepath.Join(work, p.name, arch)
		binaries, err := o.binaries(ctx, p, arch, bin)
		if err != nil {
			return Image{}, err
		}
		others, origins, err := o.others(ctx, p, arch, bin+"-debian")
		if err != nil {
			return Image{}, err
		}
		document, err := sbom.JSON(sbom.Image{
			Name: p.name, Version: o.Version, Architecture: arch, Source: source, License: license, Created: o.Created,
			Binaries: binaries, Files: origins,
		})
		if err != nil {
			return Image{}, err
		}
		if err := os.WriteFile(filepath.Join(o.Output, p.name+"-"+arch+".spdx.json"), document, 0o644); err != nil {
			return Image{}, fmt.Errorf("write SBOM: %w", err)
		}
		variants = append(variants, images.Variant{Architecture: arch, Image: o.finish(p, p.image(bin), others), SBOM: document})
	}
	image := Image{Name: p.name, Layout: filepath.Join(o.Output, p.name)}
	var err error
	image.Digest, err = images.WriteLayout(image.Layout, o.Version, variants)
	return image, err
}

// others are the files of an image that are not built here, and what the SBOM says of them.
func (o Options) others(ctx context.Context, p product, arch, root string) ([]images.File, []sbom.File, error) {
	if p.tools == nil {
		return []images.File{{Path: certificatesPath, Source: o.Certificates.File, Mode: 0o644}},
			[]sbom.File{{Path: o.Certificates.File, Package: "ca-certificates", Version: o.Certificates.Version, Architecture: "all"}}, nil
	}
	o.Report("programs of %s for %s from Debian", p.name, arch)
	if err := p.tools.Unpack(ctx, root, arch); err != nil {
		return nil, nil, err
	}
	files, err := p.tools.Files(root)
	if err != nil {
		return nil, nil, err
	}
	var origins []sbom.File
	for _, f := range files {
		if f.Source == "" {
			continue
		}
		from, err := debian.Of(root, f.Source)
		if err != nil {
			return nil, nil, err
		}
		origins = append(origins, sbom.File{Path: f.Source, Package: from.Name, Version: from.Version, Architecture: from.Architecture})
	}
	return files, origins, nil
}

// finish adds what the images of the test cluster do not need.
func (o Options) finish(p product, image images.Image, others []images.File) images.Image {
	image.Files = append(image.Files, others...)
	image.Created = o.Created
	image.Labels = map[string]string{
		ocispec.AnnotationTitle:       p.name,
		ocispec.AnnotationDescription: p.description,
		ocispec.AnnotationSource:      source,
		ocispec.AnnotationLicenses:    p.license,
		ocispec.AnnotationVersion:     o.Version,
		ocispec.AnnotationRevision:    o.Revision,
		ocispec.AnnotationCreated:     o.Created.UTC().Format(time.RFC3339),
	}
	return image
}

// binaries builds the binaries of an image into a directory.
func (o Options) binaries(ctx context.Context, p product, arch, bin string) ([]string, error) {
	var files []string
	for _, name := range slices.Sorted(maps.Keys(p.packages)) {
		o.Report("%s of %s for %s", name, p.name, arch)
		file := filepath.Join(bin, name)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+o.Version, "-o", file, p.packages[name])
		cmd.Dir = o.Source
		// Nothing of the environment may decide what the binaries are.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOWORK=off", "GOEXPERIMENT=", "GOFIPS140=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s for %s: %w: %s", name, arch, err, strings.TrimSpace(string(out)))
		}
		files = append(files, file)
	}
	return files, nil
}

// Validate returns an error that says what is missing or cannot be.
func (o Options) Validate() error {
	var errs []error
	if !tag.MatchString(o.Version) {
		errs = append(errs, fmt.Errorf("version is %q, want what a tag of an image can be", o.Version))
	}
	if o.Created.Unix() <= 0 {
		errs = append(errs, errors.New("the time of creation is not set: set SOURCE_DATE_EPOCH to the seconds since 1970 of the commit"))
	}
	if len(o.Architectures) == 0 {
		errs = append(errs, errors.New("no architecture is named"))
	}
	if _, err := os.Stat(o.Certificates.File); err != nil {
		errs = append(errs, fmt.Errorf("find root certificates: %w: install ca-certificates, or name another file", err))
	}
	return errors.Join(errs...)
}
