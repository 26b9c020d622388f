// Package extract copies files out of a file system that a reader shows: into a directory of this machine, or into a stream
// of tar. The file system is hostile input, and the directory is not.
//
// # What is written
//
// Into a directory, a name is created, never opened: what exists is left alone, or deleted first. A path is walked from the
// directory that the caller named, name by name, and no symbolic link is followed, also none that was just written. So
// nothing is written outside of the directory, whatever the file system holds.
//
// Setuid and setgid bits of files, device nodes, and attributes that only root can set could give away the machine. They are
// kept only if that is asked for.
//
// # What is bounded
//
// A directory is entered once, and the depth is limited: trees that contain themselves come to an end. Memory does not depend on the
// size of files. It grows with the number of directories, and of files with several names.
package extract

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// mostDepth is how deep directories are followed.
const mostDepth = 1000

// Item is a file of a tree.
type Item struct {
	// Path is relative to where the walk began, and empty there.
	Path string
	ID   filesystem.ID
	Info filesystem.Info
	// Skip is set by whoever visits a directory, to leave out what is in it.
	Skip bool
}

// Walk visits a file, and if it is a directory, all that is below it: a directory before what it contains. problem is called for
// what cannot be read, and the walk goes on. An error of visit, and the end of ctx, end the walk.
func Walk(ctx context.Context, files filesystem.FileSystem, id filesystem.ID, visit func(*Item) error, problem func(path string, err error)) error {
	w := walker{ctx: ctx, files: files, visit: visit, problem: problem, seen: map[filesystem.ID]bool{}}
	return w.walk("", id, 0)
}

type walker struct {
	ctx     context.Context //nolint:containedctx // it lives as long as one call of Walk
	files   filesystem.FileSystem
	visit   func(*Item) error
	problem func(path string, err error)
	seen    map[filesystem.ID]bool
}

func (w *walker) walk(path string, id filesystem.ID, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	info, err := w.files.Stat(id)
	if err != nil {
		w.problem(path, err)
		return w.ctx.Err()
	}
	item := &Item{Path: path, ID: id, Info: info}
	if !info.Mode.IsDir() {
		return w.visit(item)
	}
	switch {
	case w.seen[id]:
		w.problem(path, fmt.Errorf("%w: a directory has two names", filesystem.ErrDamaged))
		return nil
	case depth > mostDepth:
		w.problem(path, fmt.Errorf("it is more than %d directories deep", mostDepth))
		return nil
	}
	w.seen[id] = true
	if err := w.visit(item); err != nil || item.Skip {
		return err
	}
	for e, err := range w.files.ReadDir(id) {
		if err != nil {
			w.problem(path, err)
			break
		}
		if err := checkName(e.Name); err != nil {
			w.problem(path, err)
			continue
		}
		if err := w.walk(join(path, e.Name), e.ID, depth+1); err != nil {
			return err
		}
	}
	return w.ctx.Err()
}

var errName = errors.New("is not the name of a file")

// checkName refuses names that would lead elsewhere.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: %q %w", filesystem.ErrDamaged, name, errName)
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

// special are the bits that give a file the rights of its owner.
const special = fs.ModeSetuid | fs.ModeSetgid
