package artifacts

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/blockmover/blockmover/e2e/images"
	"github.com/blockmover/blockmover/e2e/images/debian"
)

// tools is the root of the unpacked packages of the tools image.
func (c *Cache) tools() string { return filepath.Join(c.Dir, "tools") }

func (c *Cache) toolPackages(ctx context.Context) error {
	stamp := "each in a directory: " + strings.Join(debian.FileSystemTools.Packages, " ")
	if c.stampIs("tools", stamp) {
		return nil
	}
	c.Report("download %s", strings.Join(debian.FileSystemTools.Packages, " "))
	if err := debian.FileSystemTools.Unpack(ctx, c.tools(), runtime.GOARCH); err != nil {
		return err
	}
	return c.writeStamp("tools", stamp)
}

// filesystemTools are the files of the tools image.
func (c *Cache) filesystemTools() ([]images.File, error) {
	return debian.FileSystemTools.Files(c.tools())
}

// unpack makes a directory of Debian packages, if the list of them has changed.
func (c *Cache) unpack(ctx context.Context, name string, packages []string, target string) error {
	stamp := strings.Join(packages, " ")
	if c.stampIs(name, stamp) {
		return nil
	}
	work, err := os.MkdirTemp(c.Dir, ".debs-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	// apt's sandbox user cannot write into a private directory.
	args := append([]string{"-o", "APT::Sandbox::User=root", "download"}, packages...)
	c.Report("download %s", stamp)
	if err := c.apt(ctx, work, args...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	root := filepath.Join(work, "root")
	for _, file := range files {
		if err := c.run(exec.CommandContext(ctx, "dpkg", "-x", file, root), "unpack "+filepath.Base(file), 0); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := os.Rename(root, target); err != nil {
		return err
	}
	return c.writeStamp(name, stamp)
}
