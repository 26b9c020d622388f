package parts

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// mostLinks is how many symbolic links a path may have, as in Linux.
const mostLinks = 40

// Lookup finds a file by its path from the root. Symbolic links on the way are followed, inside of the file system. The last one
// is followed if follow is set, or if the path ends with a slash.
func Lookup(files filesystem.FileSystem, path string, follow bool) (filesystem.ID, error) {
	follow = follow || strings.HasSuffix(path, "/")
	way := []filesystem.ID{files.Root()} // from the root to where we are
	rest := strings.Split(path, "/")
	links := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			way = way[:max(len(way)-1, 1)]
			continue
		}
		id, err := child(files, way[len(way)-1], name)
		if err != nil {
			return 0, fmt.Errorf("find %q: %w", path, err)
		}
		info, err := files.Stat(id)
		if err != nil {
			return 0, fmt.Errorf("find %q: %w", path, err)
		}
		if info.Mode.Type() == fs.ModeSymlink && (follow || hasName(rest)) {
			if links++; links > mostLinks {
				return 0, fmt.Errorf("find %q: more than %d symbolic links", path, mostLinks)
			}
			target, err := files.ReadLink(id)
			if err != nil {
				return 0, fmt.Errorf("find %q: %w", path, err)
			}
			if strings.HasPrefix(target, "/") {
				way = way[:1]
			}
			rest = append(strings.Split(target, "/"), rest...)
			continue
		}
		if hasName(rest) && !info.Mode.IsDir() {
			return 0, fmt.Errorf("find %q: %q is no directory", path, name)
		}
		way = append(way, id)
	}
	return way[len(way)-1], nil
}

func hasName(rest []string) bool {
	for _, name := range rest {
		if name != "" {
			return true
		}
	}
	return false
}

func child(files filesystem.FileSystem, directory filesystem.ID, name string) (filesystem.ID, error) {
	for e, err := range files.ReadDir(directory) {
		if err != nil {
			return 0, err
		}
		if e.Name == name {
			return e.ID, nil
		}
	}
	return 0, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}
