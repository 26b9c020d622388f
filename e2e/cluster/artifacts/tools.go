package artifacts

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/blockmover/blockmover/e2e/images/debian"
)

// tools is the root of the unpacked packages of the tools image.
func (c *Cache) tools() string { return filepath.Join(c.Dir, "tools") }

func (c *Cache) toolPackages(ctx context.Context) error {
	packages := debian.FileSystemTools.Packages
	return c.unpack("tools", "each in a directory: "+strings.Join(packages, " "), packages, func() error {
		return debian.FileSystemTools.Unpack(ctx, c.tools(), runtime.GOARCH)
	})
}

// runtimePackages unpacks them all into one directory, as an installation would.
func (c *Cache) runtimePackages(ctx context.Context) error {
	return c.unpack("runtime", strings.Join(debs, " "), debs, func() error {
		return debian.Unpack(ctx, c.Runtime(), runtime.GOARCH, debs, func(string) string { return "" })
	})
}

// unpack makes a directory of Debian packages, if the stamp has changed.
func (c *Cache) unpack(name, stamp string, packages []string, work func() error) error {
	if c.stampIs(name, stamp) {
		return nil
	}
	c.Report("download %s", strings.Join(packages, " "))
	if err := work(); err != nil {
		return err
	}
	return c.writeStamp(name, stamp)
}
