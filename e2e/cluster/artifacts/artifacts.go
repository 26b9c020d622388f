// Package artifacts fills the cache that a test cluster runs from: binaries built from Go
// modules, a container runtime unpacked from Debian packages, and images made of both. The
// go.sum files beside this module pin everything. Nothing is installed on the host, except a
// few Debian tools that it may lack.
//
// A third-party binary is rebuilt when its stamp changes: a hash of module files, sources,
// flags and the Go version. So the warm path does not even run the Go tool. Our own binaries
// are built each time, incrementally.
package artifacts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
)

// Versions that the binaries report, and that the go.mod files pin.
const (
	KubernetesVersion = "v1.36.3"
	VeleroVersion     = "v1.18.3"
)

// Cache is the directory of artifacts: bin/, runtime/, images/, stamps/.
type Cache struct {
	Dir    string
	Module string // the directory of the e2e module
	Report func(format string, args ...any)
}

// DefaultDir returns $BLOCKMOVER_CACHE or ~/.cache/blockmover.
func DefaultDir() (string, error) {
	if dir := os.Getenv("BLOCKMOVER_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w; set BLOCKMOVER_CACHE", err)
	}
	return filepath.Join(home, ".cache", "blockmover"), nil
}

// FindModule returns the directory of the e2e module, from anywhere in the
// checkout or from $BLOCKMOVER_E2E.
func FindModule() (string, error) {
	if dir := os.Getenv("BLOCKMOVER_E2E"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		for _, candidate := range []string{dir, filepath.Join(dir, "e2e")} {
			data, err := os.ReadFile(filepath.Join(candidate, "go.mod"))
			if err == nil && bytes.Contains(data, []byte("module github.com/blockmover/blockmover/e2e\n")) {
				return candidate, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("the e2e module is not above this directory: run it inside the checkout, or set BLOCKMOVER_E2E")
		}
	}
}

// Bin is the directory of the binaries.
func (c *Cache) Bin() string { return filepath.Join(c.Dir, "bin") }

// Runtime is the root of the unpacked Debian packages.
func (c *Cache) Runtime() string { return filepath.Join(c.Dir, "runtime") }

// Image returns the docker-archive of an image of package images.
func (c *Cache) Image(name string) string {
	return filepath.Join(c.Dir, "images", strings.ReplaceAll(name, ":", "_")+".tar")
}

// target is one call of go build.
type target struct {
	name     string
	module   string // directory
	packages []string
	ldflags  string
	output   string   // file in the cache's bin; "" for the packages' own names
	stamped  bool     // third-party: only when the stamp changes
	sources  []string // beyond go.mod and go.sum, part of the stamp
}

func (c *Cache) targets() []target {
	kubeFlags := "-X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
		" -X k8s.io/client-go/pkg/version.gitVersion=" + KubernetesVersion
	veleroFlags := "-X github.com/vmware-tanzu/velero/pkg/buildinfo.Version=" + VeleroVersion
	return []target{
		{
			name: "kubernetes", module: c.Module, ldflags: kubeFlags, stamped: true,
			packages: []string{"./cmd/kube"}, sources: []string{"cmd/kube"},
		},
		{
			name: "kubectl", module: c.Module, ldflags: kubeFlags, stamped: true, output: kubectlBinary,
			packages: []string{"./cmd/kubectl"}, sources: []string{"cmd/kubectl"},
		},
		{name: "csi-sidecars", module: c.Module, packages: []string{"tool"}, stamped: true},
		{
			name: "velero", module: filepath.Join(c.Module, "velero"), ldflags: veleroFlags, stamped: true,
			packages: []string{"tool"},
		},
		{name: "helm", module: filepath.Join(c.Module, "helm"), stamped: true, packages: []string{"tool"}},
		{name: "test tools", module: c.Module, packages: []string{"./cmd/pause", "./cmd/cluster", "./csidriver"}},
	}
}

func (c *Cache) products() []target {
	root := filepath.Dir(c.Module)
	return []target{
		{name: "blockmover", module: root, packages: []string{"./mover"}, output: "blockmover"},
		{name: "fscheck", module: root, packages: []string{"./mover/fscheck"}, output: "fscheck"},
		{name: "velero-plugin-blockmover", module: root, packages: []string{"./plugins"}, output: "velero-plugin-blockmover"},
	}
}

// Build makes everything that a cluster needs and that is missing or out of date.
func (c *Cache) Build(ctx context.Context) error {
	for _, dir := range []string{c.Bin(), filepath.Join(c.Dir, "stamps"), filepath.Join(c.Dir, "images")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	unlock, err := lockFile(ctx, filepath.Join(c.Dir, ".lock"), c.Report)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.hostTools(ctx); err != nil {
		return err
	}
	if err := c.runtimePackages(ctx); err != nil {
		return err
	}
	if err := c.crds(ctx); err != nil {
		return fmt.Errorf("collect CRDs: %w", err)
	}
	for _, t := range c.targets() {
		if err := c.goBuild(ctx, t); err != nil {
			return fmt.Errorf("build %s: %w", t.name, err)
		}
	}
	return c.links()
}

// BuildProducts builds the mover and the plugin. A cluster runs without them.
func (c *Cache) BuildProducts(ctx context.Context) error {
	unlock, err := lockFile(ctx, filepath.Join(c.Dir, ".lock"), c.Report)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.toolPackages(ctx); err != nil {
		return err
	}
	for _, t := range c.products() {
		if err := c.goBuild(ctx, t); err != nil {
			return fmt.Errorf("build %s: %w", t.name, err)
		}
	}
	return nil
}

// goBuild builds a target. It skips a third-party target whose stamp has not changed.
func (c *Cache) goBuild(ctx context.Context, t target) error {
	stamp, total := "", -1
	if t.stamped {
		var err error
		if stamp, err = t.hash(); err != nil {
			return err
		}
		if c.stampIs(t.name, stamp) {
			return nil
		}
		if total, err = t.count(ctx); err != nil {
			return err
		}
	}
	cmd := t.goCommand(ctx, "build", "-buildvcs=false", "-trimpath",
		"-ldflags", strings.TrimSpace("-s -w "+t.ldflags), "-o", c.Bin()+"/"+t.output)
	if err := c.run(cmd, "build "+t.name, total); err != nil {
		return err
	}
	if !t.stamped {
		return nil
	}
	return c.writeStamp(t.name, stamp)
}

// goCommand runs the Go tool on the target's packages.
func (t target) goCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", append(args, t.packages...)...)
	cmd.Dir = t.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	return cmd
}

// crds copies the CRDs of the sidecars from their modules.
func (c *Cache) crds(ctx context.Context) error {
	stamp, err := target{module: c.Module}.hash()
	if err != nil || c.stampIs("crds", stamp) {
		return err
	}
	dir := filepath.Join(c.Dir, "crds")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, module := range []string{
		"github.com/kubernetes-csi/external-snapshotter/client/v8",
		"github.com/kubernetes-csi/external-snapshot-metadata/client",
	} {
		cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
		cmd.Dir = c.Module
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("go mod download %s: %w", module, err)
		}
		var info struct{ Dir string }
		if err := json.Unmarshal(out, &info); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(info.Dir, "config", "crd", "*.k8s.io_*.yaml"))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("no CRDs in %s", info.Dir)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), data, 0o644); err != nil {
				return err
			}
		}
	}
	return c.writeStamp("crds", stamp)
}

// count returns the largest number of packages that a build can compile.
func (t target) count(ctx context.Context) (int, error) {
	out, err := t.goCommand(ctx, "list", "-deps").Output()
	if err != nil {
		return 0, fmt.Errorf("list packages: %w", err)
	}
	return bytes.Count(out, []byte("\n")), nil
}

func (t target) hash() (string, error) {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, runtime.Version(), t.ldflags, t.packages) // a hash does not fail
	files := []string{filepath.Join(t.module, "go.mod"), filepath.Join(t.module, "go.sum")}
	for _, dir := range t.sources {
		err := filepath.WalkDir(filepath.Join(t.module, dir), func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	sort.Strings(files)
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		_, _ = h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (c *Cache) stampPath(name string) string { return filepath.Join(c.Dir, "stamps", name) }

func (c *Cache) stampIs(name, value string) bool {
	data, err := os.ReadFile(c.stampPath(name))
	return err == nil && string(data) == value
}

func (c *Cache) writeStamp(name, value string) error {
	return os.WriteFile(c.stampPath(name), []byte(value), 0o644)
}

// kubectlBinary is not named kubectl: earlier versions of this package made a link of that
// name, which go build does not replace.
const kubectlBinary = "kubectl-alone"

// links gives programs their usual names, for the PATH of `cluster exec`.
func (c *Cache) links() error {
	links := map[string]string{
		"kubectl": kubectlBinary, "kubectl-blockmover": "blockmover", "ctr": c.Runtime() + "/usr/bin/ctr", "qemu-storage-daemon": c.Runtime() + "/usr/bin/qemu-storage-daemon",
	}
	for name, to := range links {
		path := filepath.Join(c.Bin(), name)
		if have, err := os.Readlink(path); err == nil && have == to {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(to, path); err != nil {
			return err
		}
	}
	return nil
}
