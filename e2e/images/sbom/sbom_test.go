package sbom

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdxlib"
	"github.com/stretchr/testify/require"
)

// TestJSON makes the SBOM of an image with the command that makes SBOMs. The binary of a test does not
// say what it is linked from.
func TestJSON(t *testing.T) {
	self := filepath.Join(t.TempDir(), "release")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", self, "../../cmd/release").CombinedOutput()
	require.NoError(t, err, string(out))
	info, err := buildinfo.ReadFile(self)
	require.NoError(t, err)
	certificates := filepath.Join(t.TempDir(), "ca-certificates.crt")
	require.NoError(t, os.WriteFile(certificates, []byte("x"), 0o600))
	image := Image{
		Name: "blockmover", Version: "v1.2.3", Architecture: "arm64", Source: "https://example.com/src", License: "Apache-2.0",
		Created: time.Unix(1700000000, 0), Binaries: []string{self},
		Files: []File{{Path: certificates, Package: "ca-certificates", Version: "20230311+deb12u1", Architecture: "all"}},
	}
	text, err := JSON(image)
	require.NoError(t, err)
	again, err := JSON(image)
	require.NoError(t, err)
	require.Equal(t, string(text), string(again))

	doc, err := json.Read(bytes.NewReader(text))
	require.NoError(t, err)
	require.NoError(t, spdxlib.ValidateDocument(doc))
	require.Equal(t, "SPDX-2.3", doc.SPDXVersion)
	require.Equal(t, "2023-11-14T22:13:20Z", doc.CreationInfo.Created)
	require.NotEmpty(t, doc.DocumentNamespace)
	byName := map[string]*spdx.Package{}
	ids := map[string]bool{}
	for _, p := range doc.Packages {
		require.False(t, ids[string(p.PackageSPDXIdentifier)], "the ID %s twice", p.PackageSPDXIdentifier)
		require.Regexp(t, regexp.MustCompile(`^[A-Za-z0-9.-]+$`), string(p.PackageSPDXIdentifier))
		require.NotEmpty(t, p.PackageDownloadLocation)
		ids[string(p.PackageSPDXIdentifier)], byName[p.PackageName] = true, p
	}
	purl := func(name string) string {
		require.Contains(t, byName, name)
		return byName[name].PackageExternalReferences[0].Locator
	}
	require.Equal(t, "pkg:oci/blockmover@v1.2.3?arch=arm64", purl("blockmover"))
	require.Equal(t, "pkg:deb/debian/ca-certificates@20230311+deb12u1?arch=all", purl("ca-certificates"))
	require.Equal(t, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", byName["ca-certificates"].PackageChecksums[0].Value)
	require.Contains(t, byName, filepath.Base(self))
	require.Contains(t, purl("stdlib"), "pkg:golang/stdlib@1.")
	require.NotEmpty(t, info.Deps)
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		require.Contains(t, byName, module.Path)
		if module.Sum != "" {
			require.Regexp(t, "^[0-9a-f]{64}$", byName[module.Path].PackageChecksums[0].Value)
		}
	}
	// The image, its binary and its file, and all that the binary is linked from.
	require.Len(t, doc.Relationships, 1+1+1+1+len(info.Deps))
}

func TestJSONRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"), 0o600))
	_, err := JSON(Image{Name: "a", Binaries: []string{file}})
	require.ErrorContains(t, err, "read build information of")
	_, err = JSON(Image{Name: "a", Files: []File{{Path: file + "-missing"}}})
	require.ErrorContains(t, err, "hash file")
}
