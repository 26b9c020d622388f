package artifacts

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockmover/blockmover/e2e/images"
)

// The Debian packages of the tools image: the programs, and all libraries that they need.
var toolDebs = []string{
	"e2fsprogs", "xfsprogs", "btrfs-progs",
	"libc6", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1", "libinih1", "liburcu8", "libudev1", "zlib1g", "liblzo2-2", "libzstd1",
}

// toolPrograms are what fscheck runs.
var toolPrograms = []string{"e2fsck", "tune2fs", "xfs_repair", "btrfs"}

// tools is the root of the unpacked packages of the tools image.
func (c *Cache) tools() string { return filepath.Join(c.Dir, "tools") }

func (c *Cache) toolPackages(ctx context.Context) error {
	packages := slices.Clone(toolDebs)
	for i, name := range packages {
		// Debian 13 has renamed libraries with 64-bit times.
		if exec.CommandContext(ctx, "apt-cache", "show", name).Run() != nil {
			packages[i] = name + "t64"
		}
	}
	return c.unpack(ctx, "tools", packages, c.tools())
}

// libraryDirectories is where Debian has libraries, in the order of the search.
var libraryDirectories = []string{"lib", "usr/lib", "lib64"}

// filesystemTools are the files of the tools image: the programs, the libraries that they name, and the
// loader.
func (c *Cache) filesystemTools() ([]images.File, error) {
	needed := slices.Clone(toolPrograms)
	found := map[string]images.File{}
	for len(needed) > 0 {
		name := needed[0]
		needed = needed[1:]
		if _, done := found[name]; done {
			continue
		}
		path, err := c.findTool(name)
		if err != nil {
			return nil, err
		}
		file := images.File{Path: "/lib/" + name, Source: path}
		if slices.Contains(toolPrograms, name) {
			file.Path = "/sbin/" + name
		}
		binary, err := elf.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		libraries, err := binary.ImportedLibraries()
		if section := binary.Section(".interp"); err == nil && section != nil {
			var loader []byte
			if loader, err = section.Data(); err == nil {
				at := strings.TrimRight(string(loader), "\x00")
				needed = append(needed, filepath.Base(at))
				found["loader"] = images.File{Path: at, Link: "/lib/" + filepath.Base(at)}
			}
		}
		if err := errors.Join(err, binary.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		needed = append(needed, libraries...)
		found[name] = file
	}
	var files []images.File
	for _, f := range found {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b images.File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// findTool returns the file of a program or a library, behind all links.
func (c *Cache) findTool(name string) (string, error) {
	for _, dir := range []string{"sbin", "bin", "usr/sbin", "usr/bin"} {
		if path := filepath.Join(c.tools(), dir, name); slices.Contains(toolPrograms, name) && isFile(path) {
			return path, nil
		}
	}
	var at string
	for _, dir := range libraryDirectories {
		err := filepath.WalkDir(filepath.Join(c.tools(), dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // a directory that this Debian has not
			}
			if d.Name() != name || at != "" {
				return nil
			}
			resolved, err := filepath.EvalSymlinks(path)
			if err == nil && isFile(resolved) {
				at = resolved
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	if at == "" {
		return "", fmt.Errorf("%s is in none of the packages of the tools image: %s", name, strings.Join(toolDebs, " "))
	}
	return at, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
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
