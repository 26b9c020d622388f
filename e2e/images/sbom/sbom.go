// Package sbom says what a container image is made of: an SBOM in SPDX 2.3, as JSON. What is in a
// Go binary comes from the build information that the Go linker writes into it.
//
// Source: https://spdx.github.io/spdx-spec/v2.3, and https://github.com/package-url/purl-spec for
// the names of packages.
package sbom

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// Image is what an SBOM is about.
type Image struct {
	// Name is without registry and tag.
	Name, Version, Architecture string
	// Source is the address of the source, and License the SPDX expression of it.
	Source, License string
	Created         time.Time
	// Binaries are the files of the Go binaries in the image.
	Binaries []string
	// Files are other files, by the path in the image.
	Files []File
}

// File is a file that is not built from Go modules.
type File struct {
	// Path is where the file is outside of the image.
	Path string
	// Package, Version and Architecture are of the Debian package that has the file. An empty version is not known.
	Package, Version, Architecture string
}

// JSON returns the SBOM. The same input gives the same bytes.
func JSON(image Image) ([]byte, error) {
	d := &document{ids: map[common.ElementID]bool{}}
	root := d.add(pkg{
		kind: "CONTAINER", name: image.Name, version: image.Version, location: image.Source, license: image.License,
		purl: "pkg:oci/" + image.Name + "@" + url.PathEscape(image.Version) + "?arch=" + image.Architecture,
	})
	d.relate("DOCUMENT", common.TypeRelationshipDescribe, root)
	for _, binary := range image.Binaries {
		if err := d.binary(root, binary, image); err != nil {
			return nil, err
		}
	}
	for _, file := range image.Files {
		sum, err := hash(file.Path)
		if err != nil {
			return nil, err
		}
		p := pkg{kind: "FILE", name: file.Package, file: filepath.Base(file.Path), version: file.Version, sum: sum}
		if file.Version != "" {
			p.purl = "pkg:deb/debian/" + file.Package + "@" + url.PathEscape(file.Version) + "?arch=" + file.Architecture
		}
		d.relate(root, common.TypeRelationshipContains, d.add(p))
	}
	doc := v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName: image.Name + " " + image.Version + " linux/" + image.Architecture,
		CreationInfo: &v2_3.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "blockmover-release"}},
			Created:  image.Created.UTC().Format(time.RFC3339),
		},
		Packages: d.packages, Relationships: d.relationships,
	}
	// The name of a document is unique. It is derived from what the document says.
	var text bytes.Buffer
	if err := json.Write(&doc, &text); err != nil {
		return nil, fmt.Errorf("encode SBOM of %s: %w", image.Name, err)
	}
	sum := sha256.Sum256(text.Bytes())
	doc.DocumentNamespace = fmt.Sprintf("%s/spdx/%s-%s-%s-%x", image.Source, image.Name, url.PathEscape(image.Version), image.Architecture, sum[:16])
	text.Reset()
	if err := json.Write(&doc, &text, json.Indent("  "), json.EscapeHTML(false)); err != nil {
		return nil, fmt.Errorf("encode SBOM of %s: %w", image.Name, err)
	}
	return text.Bytes(), nil
}

// document collects packages and how they belong together.
type document struct {
	ids           map[common.ElementID]bool
	packages      []*spdx.Package
	relationships []*spdx.Relationship
}

// pkg is what is said of one package.
type pkg struct {
	kind, name, file, version, purl, sum, location, license string
}

// add adds a package once, and returns its ID. An ID has not all characters of a name, so it has a hash,
// too.
func (d *document) add(p pkg) common.ElementID {
	key := p.kind + "-" + p.name + p.file + "-" + p.version
	id := common.ElementID(fmt.Sprintf("%s-%.4x", idOf(key), sha256.Sum256([]byte(key))))
	if d.ids[id] {
		return id
	}
	d.ids[id] = true
	entry := &spdx.Package{
		PackageName: p.name, PackageFileName: p.file, PackageSPDXIdentifier: id, PackageVersion: p.version, PrimaryPackagePurpose: p.kind,
		PackageDownloadLocation: or(p.location), PackageLicenseDeclared: or(p.license), PackageLicenseConcluded: or(""),
		PackageCopyrightText: or(""),
	}
	if p.sum != "" {
		entry.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: p.sum}}
	}
	if p.purl != "" {
		entry.PackageExternalReferences = []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: p.purl,
		}}
	}
	d.packages = append(d.packages, entry)
	return id
}

func (d *document) relate(from common.ElementID, how string, to common.ElementID) {
	d.relationships = append(d.relationships, &spdx.Relationship{
		RefA: common.MakeDocElementID("", string(from)), Relationship: how, RefB: common.MakeDocElementID("", string(to)),
	})
}

// binary adds a Go binary, and the modules that it is linked from.
func (d *document) binary(root common.ElementID, path string, image Image) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read build information of %s: %w", path, err)
	}
	sum, err := hash(path)
	if err != nil {
		return err
	}
	id := d.add(pkg{kind: "APPLICATION", name: filepath.Base(path), version: image.Version, sum: sum, location: image.Source, license: image.License})
	d.relate(root, common.TypeRelationshipContains, id)
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	d.relate(id, common.TypeRelationshipDependsOn, d.add(pkg{kind: "LIBRARY", name: "stdlib", version: goVersion, purl: "pkg:golang/stdlib@" + goVersion, license: "BSD-3-Clause"}))
	for _, module := range info.Deps {
		entry, err := moduleOf(module)
		if err != nil {
			return fmt.Errorf("module %s of %s: %w", module.Path, path, err)
		}
		d.relate(id, common.TypeRelationshipDependsOn, d.add(entry))
	}
	return nil
}

// moduleOf describes a module by what is linked: a replacement counts. Its checksum is the SHA-256
// that go.sum has, which is over the list of its files and not over an archive.
func moduleOf(module *debug.Module) (pkg, error) {
	if module.Replace != nil {
		module = module.Replace
	}
	p := pkg{
		kind: "LIBRARY", name: module.Path, version: module.Version,
		purl: "pkg:golang/" + module.Path + "@" + url.PathEscape(module.Version),
	}
	if h1, found := strings.CutPrefix(module.Sum, "h1:"); found {
		sum, err := base64.StdEncoding.DecodeString(h1)
		if err != nil {
			return p, fmt.Errorf("decode its sum: %w", err)
		}
		p.sum = hex.EncodeToString(sum)
	}
	return p, nil
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// idOf makes an SPDX identifier: letters, digits, points and hyphens.
func idOf(s string) string { return notInID.ReplaceAllString(s, "-") }

// or is a value, or what SPDX has for one that is not known.
func or(s string) string {
	if s == "" {
		return "NOASSERTION"
	}
	return s
}

func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hash file: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hash %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
