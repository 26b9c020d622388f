// Package archtest keeps the arrows between the packages: who may depend on
// what. It contains nothing but the test.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const (
	module = "github.com/blockmover/blockmover"

	kopia  = "github.com/kopia/kopia"
	velero = "github.com/vmware-tanzu/velero"

	kopiaAdapter = module + "/internal/repository/kopia"
)

// pure packages know nothing of Kubernetes, Velero and kopia, not even by way
// of something else that they import.
var pure = []string{
	"internal/anomaly",
	"internal/arena",
	"internal/audit",
	"internal/backup",
	"internal/blake2b",
	"internal/block",
	"internal/cbt",
	"internal/cbt/cbttest",
	"internal/cbt/rangefile",
	"internal/chain",
	"internal/datapath",
	"internal/device",
	"internal/device/devicetest",
	"internal/disk",
	"internal/fault",
	"internal/filesystem",
	"internal/filesystem/ext",
	"internal/filesystem/extract",
	"internal/filesystem/fat",
	"internal/filesystem/filesystemtest",
	"internal/filesystem/pages",
	"internal/filesystem/parts",
	"internal/filesystem/xfs",
	"internal/fscheck",
	"internal/fuzztest",
	"internal/group",
	"internal/hmacsha256",
	"internal/identity",
	"internal/inplace",
	"internal/lanes",
	"internal/phase",
	"internal/policy",
	"internal/qcow2",
	"internal/qcow2/qcow2test",
	"internal/repository",
	"internal/repository/ledger",
	"internal/repository/readcache",
	"internal/repository/remote",
	"internal/repository/repositorytest",
	"internal/restore",
	"internal/rollback",
	"internal/task",
}

// adapters know Kubernetes, Velero or kopia.
var adapters = []string{
	"internal/archtest", // runs the go command
	"internal/cbt/snapshotmetadata",
	"internal/config",
	"internal/forget",
	"internal/kube",
	"internal/livevolume",
	"internal/operation",
	"internal/repository/kopia",
	"internal/kubevirt",
	"internal/veleroapi",
	"internal/volumesnapshot",
	"internal/volumesnapshot/groupsnapshot",
	"internal/volumesnapshot/internal/content",
	"internal/volumesnapshot/internal/groupapi",
	"internal/volumesnapshot/rehome",
}

// goPackage is what go list says of a package.
type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func load(t *testing.T) map[string]goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"/...").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %v: %s", err, exit.Stderr)
	}
	require.NoError(t, err)
	packages := map[string]goPackage{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		require.NoError(t, err)
		packages[p.ImportPath] = p
	}
}

// within reports whether a package is at or below a path.
func within(pkg string, paths ...string) bool {
	for _, p := range paths {
		if pkg == p || strings.HasPrefix(pkg, p+"/") {
			return true
		}
	}
	return false
}

func TestArrows(t *testing.T) {
	packages := load(t)
	for _, name := range pure {
		p, ok := packages[module+"/"+name]
		if !ok {
			t.Errorf("%s is listed as pure and does not exist", name)
			continue
		}
		for _, d := range p.Deps {
			if within(d, "k8s.io", "sigs.k8s.io", velero, kopia, kopiaAdapter) {
				t.Errorf("%s is pure and depends on %s", name, d)
			}
		}
	}
	for _, p := range packages {
		for _, d := range p.Imports {
			switch {
			case within(d, kopia) && p.ImportPath != kopiaAdapter:
				t.Errorf("%s imports %s: only %s may", p.ImportPath, d, kopiaAdapter)
			case within(d, velero+"/pkg/repository") && p.ImportPath != kopiaAdapter:
				t.Errorf("%s imports %s: only %s may", p.ImportPath, d, kopiaAdapter)
			case within(d, velero+"/pkg/exposer", velero+"/pkg/datapath", velero+"/pkg/controller"):
				t.Errorf("%s imports %s, which pulls in half of Velero", p.ImportPath, d)
			}
		}
		if !within(p.ImportPath, module+"/plugins") {
			continue
		}
		for _, d := range p.Deps {
			if within(d, module+"/mover", module+"/internal/datapath", module+"/internal/device", module+"/internal/audit",
				module+"/internal/chain", module+"/internal/repository") {
				t.Errorf("%s is part of the plugin and depends on %s", p.ImportPath, d)
			}
		}
	}
}

// TestEveryPackageIsListed: a new package is pure, or somebody has decided that it is
// not.
func TestEveryPackageIsListed(t *testing.T) {
	var found []string
	for path := range load(t) {
		if name := strings.TrimPrefix(path, module+"/"); within(name, "internal") {
			found = append(found, name)
		}
	}
	require.ElementsMatch(t, found, slices.Concat(pure, adapters))
}

// TestLinterKnowsPurePackages: the list of the linter is this one.
func TestLinterKnowsPurePackages(t *testing.T) {
	text, err := os.ReadFile("../../.golangci.yml")
	require.NoError(t, err)
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules struct {
						Pure struct{ Files []string }
					}
				}
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &config))
	files := config.Linters.Settings.Depguard.Rules.Pure.Files
	require.NotEmpty(t, files)
	for _, name := range slices.Concat(pure, adapters) {
		listed := slices.ContainsFunc(files, func(pattern string) bool {
			whole, below := strings.CutSuffix(strings.TrimPrefix(pattern, "**/"), "/**")
			return below && within(name, whole) || !below && strings.TrimSuffix(whole, "/*.go") == name
		})
		require.Equal(t, slices.Contains(pure, name), listed, name)
	}
}
