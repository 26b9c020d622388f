// Package debian takes programs out of Debian packages, with the libraries that they need. It
// installs nothing, and the packages may be of another architecture than the machine.
package debian

import (
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockmover/blockmover/e2e/images"
)

// Tools are programs, and the packages that have them with all libraries that they need.
type Tools struct{ Programs, Packages []string }

// FileSystemTools are what the tools image of Blockmover runs.
var FileSystemTools = Tools{
	Programs: []string{"e2fsck", "tune2fs", "xfs_repair", "btrfs"},
	Packages: []string{
		"e2fsprogs", "xfsprogs", "btrfs-progs",
		"libc6", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1", "libinih1", "liburcu8", "libudev1", "zlib1g", "liblzo2-2", "libzstd1",
	},
}

// Unpack unpacks the packages, each into a directory of its own below root: NAME_VERSION_ARCHITECTURE. root is replaced.
func (t Tools) Unpack(ctx context.Context, root, arch string) error {
	return Unpack(ctx, root, arch, t.Packages, func(pkg string) string { return pkg })
}

// Unpack downloads packages from the sources of this machine, and unpacks them below root, which is replaced. in says in which
// directory there, by the name of the package's file.
func Unpack(ctx context.Context, root, arch string, packages []string, in func(pkg string) string) error {
	work, err := os.MkdirTemp(filepath.Dir(root), ".debs-")
	if err != nil {
		return fmt.Errorf("create directory for packages: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := download(ctx, work, arch, packages); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		target := filepath.Join(work, "root", in(strings.TrimSuffix(filepath.Base(file), ".deb")))
		if err := run(ctx, work, "dpkg-deb", "--extract", file, target); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("remove old packages: %w", err)
	}
	return os.Rename(filepath.Join(work, "root"), root)
}

// download downloads packages into a directory.
func download(ctx context.Context, work, arch string, packages []string) error {
	for _, dir := range []string{"lists/partial", "cache", "root"} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return fmt.Errorf("create directory for packages: %w", err)
		}
	}
	// The lists are private: those of the machine may be missing or stale, and are of its architecture.
	apt := func(program string, args ...string) error {
		options := []string{
			"Dir::State::lists=" + filepath.Join(work, "lists"), "Dir::Cache=" + filepath.Join(work, "cache"), "Acquire::Retries=3",
			"APT::Architecture=" + arch, "APT::Architectures=" + arch, "APT::Sandbox::User=root", // apt's own user cannot write here
		}
		for _, o := range options {
			args = append(args, "-o", o)
		}
		return run(ctx, work, program, args...)
	}
	if err := apt("apt-get", "update"); err != nil {
		return err
	}
	packages = slices.Clone(packages)
	for i, name := range packages {
		// Debian 13 has renamed libraries with 64-bit times.
		if apt("apt-cache", "show", name) != nil {
			packages[i] = name + "t64"
		}
	}
	return apt("apt-get", append([]string{"download"}, packages...)...)
}

func run(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Package is one that was unpacked.
type Package struct{ Name, Version, Architecture string }

// epoch is how apt writes the colon of an epoch in the name of a file.
const epoch = "%3a"

func (p Package) directory() string {
	return strings.Join([]string{p.Name, strings.ReplaceAll(p.Version, ":", epoch), p.Architecture}, "_")
}

// Of returns the package that has a file below root.
func Of(root, file string) (Package, error) {
	relative, err := filepath.Rel(root, file)
	if err != nil {
		return Package{}, err
	}
	directory, _, _ := strings.Cut(relative, string(filepath.Separator))
	parts := strings.Split(directory, "_")
	if len(parts) != 3 {
		return Package{}, fmt.Errorf("%s is in no package below %s", file, root)
	}
	return Package{parts[0], strings.ReplaceAll(parts[1], epoch, ":"), parts[2]}, nil
}

// Files are the programs in unpacked packages, the libraries that they name, the loader, and the licenses of all that.
func (t Tools) Files(root string) ([]images.File, error) {
	needed := slices.Clone(t.Programs)
	found := map[string]images.File{}
	for len(needed) > 0 {
		name := needed[0]
		needed = needed[1:]
		if _, done := found[name]; done {
			continue
		}
		file, libraries, loader, err := t.file(root, name)
		if err != nil {
			return nil, err
		}
		found[name] = file
		needed = append(needed, libraries...)
		if loader != "" {
			needed = append(needed, filepath.Base(loader))
			found["loader"] = images.File{Path: loader, Link: "/lib/" + filepath.Base(loader)}
		}
	}
	var files []images.File
	for _, f := range found {
		if f.Path != f.Link { // on arm64, the loader is in /lib
			files = append(files, f)
		}
	}
	licenses, err := licensesOf(root, files)
	if err != nil {
		return nil, err
	}
	files = append(files, licenses...)
	slices.SortFunc(files, func(a, b images.File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// licensesOf are the files that say under which licenses the packages of the files are.
func licensesOf(root string, files []images.File) ([]images.File, error) {
	licenses := map[string]images.File{}
	for _, f := range files {
		if f.Source == "" {
			continue
		}
		from, err := Of(root, f.Source)
		if err != nil {
			return nil, err
		}
		path := "/usr/share/doc/" + from.Name + "/copyright"
		source := filepath.Join(root, from.directory(), path)
		if !isFile(source) {
			return nil, fmt.Errorf("package %s does not say its license", from.Name)
		}
		licenses[path] = images.File{Path: path, Source: source, Mode: 0o644}
	}
	return slices.Collect(maps.Values(licenses)), nil
}

// file finds a program or a library, and what it needs.
func (t Tools) file(root, name string) (file images.File, libraries []string, loader string, err error) {
	path, err := t.find(root, name)
	if err != nil {
		return file, nil, "", err
	}
	file = images.File{Path: "/lib/" + name, Source: path}
	if slices.Contains(t.Programs, name) {
		file.Path = "/sbin/" + name
	}
	binary, err := elf.Open(path)
	if err != nil {
		return file, nil, "", fmt.Errorf("read %s: %w", path, err)
	}
	defer func() { _ = binary.Close() }()
	libraries, err = binary.ImportedLibraries()
	if section := binary.Section(".interp"); err == nil && section != nil {
		var text []byte
		text, err = section.Data()
		loader = strings.TrimRight(string(text), "\x00")
	}
	if err != nil {
		return file, nil, "", fmt.Errorf("read %s: %w", path, err)
	}
	return file, libraries, loader, nil
}

// Where Debian has programs and libraries, in the order of the search.
var (
	programDirectories = []string{"sbin", "bin", "usr/sbin", "usr/bin"}
	libraryDirectories = []string{"lib", "usr/lib", "lib64"}
)

// find returns the file of a program or a library, behind all links.
func (t Tools) find(root, name string) (string, error) {
	directories := libraryDirectories
	if slices.Contains(t.Programs, name) {
		directories = programDirectories
	}
	var at string
	for _, dir := range directories {
		packages, err := filepath.Glob(filepath.Join(root, "*", dir))
		if err != nil {
			return "", err
		}
		for _, dir := range packages {
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.Name() != name || at != "" {
					return err
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
	}
	if at == "" {
		return "", fmt.Errorf("%s is in none of the packages %s", name, strings.Join(t.Packages, " "))
	}
	return at, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
