package extract

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// Options say how files are copied.
type Options struct {
	// Overwrite replaces what exists. Otherwise, it is a problem.
	Overwrite bool
	// Special keeps setuid and setgid bits of files, device nodes, and the attributes security.* and trusted.*. It needs root.
	Special bool
	// Problem is called for each file that could not be copied. It may be called by several goroutines at once.
	Problem func(path string, err error)
	// Progress may be nil.
	Progress *Progress
}

// Result says what came of a copy.
type Result struct {
	// Files has everything that was written, directories included. Bytes are of their contents, without holes.
	Files, Bytes int64
	// Failed counts what could not be copied.
	Failed int64
	// Lost counts, by what it was, what the copies do not have.
	Lost map[string]int64
}

// What a copy may not have.
const (
	LostOwner     = "owners, which only root can set"
	LostSpecial   = "setuid or setgid bits"
	LostDevice    = "device nodes"
	LostSocket    = "sockets"
	LostAttribute = "extended attributes"
)

// Copier copies into a directory.
type Copier struct {
	o        Options
	root     int
	asRoot   bool
	pool     pool
	progress *Progress

	mu     sync.Mutex
	result Result
}

// NewCopier makes a copier into a directory that exists.
func NewCopier(directory string, o Options) (*Copier, error) {
	fd, err := unix.Open(directory, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", directory, err)
	}
	c := &Copier{o: o, root: fd, asRoot: os.Geteuid() == 0, pool: newPool(), progress: o.Progress, result: Result{Lost: map[string]int64{}}}
	if c.progress == nil {
		c.progress = &Progress{}
	}
	if o.Special && !c.asRoot {
		return nil, errors.Join(errors.New("only root can keep setuid bits, device nodes and the attributes of the system"), unix.Close(fd))
	}
	return c, nil
}

// Close closes the directory, and returns what came of all copies.
func (c *Copier) Close() (Result, error) {
	c.result.Bytes = c.progress.Bytes.Load()
	return c.result, unix.Close(c.root)
}

func (c *Copier) problem(path string, err error) {
	c.mu.Lock()
	c.result.Failed++
	c.mu.Unlock()
	c.o.Problem(path, err)
}

func (c *Copier) lost(what string) {
	c.mu.Lock()
	c.result.Lost[what]++
	c.mu.Unlock()
}

func (c *Copier) wrote() {
	c.mu.Lock()
	c.result.Files++
	c.mu.Unlock()
	c.progress.Files.Add(1)
}

// tree is one call of Add.
type tree struct {
	*Copier
	files filesystem.FileSystem
	// directories get their metadata in the end, those below before those above: new names would change their times.
	directories []*Item
	// first has the item of each file with several names, and links the other names.
	first map[filesystem.ID]*Item
	links []*Item
	// failed are the IDs of files that were not written. It is guarded by mu.
	failed map[filesystem.ID]bool
}

// Add copies a file, or a directory with all that is in it, under a name. Without a name, it is the content of a directory
// that is copied. The error is that of ctx; all others are problems.
func (c *Copier) Add(ctx context.Context, files filesystem.FileSystem, id filesystem.ID, name string) error {
	t := &tree{Copier: c, files: files, first: map[filesystem.ID]*Item{}, failed: map[filesystem.ID]bool{}}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	err := Walk(groupCtx, files, id, func(item *Item) error {
		item.Path = path.Join(name, item.Path) // clean already, and relative
		if item.Info.Mode.IsDir() {
			t.directory(item)
			return nil
		}
		if item.Info.Mode.IsRegular() {
			c.progress.Found.Add(item.Info.Size)
		}
		if item.Info.Links > 1 {
			if t.first[item.ID] != nil {
				t.links = append(t.links, item)
				return nil
			}
			t.first[item.ID] = item
		}
		group.Go(func() error {
			t.copy(groupCtx, item)
			return groupCtx.Err()
		})
		return nil
	}, func(at string, err error) { c.problem(path.Join(name, at), err) })
	if err := errors.Join(group.Wait(), err); err != nil {
		return err
	}
	for _, item := range t.links {
		t.link(ctx, item)
	}
	for _, item := range slices.Backward(t.directories) {
		if err := t.finishDirectory(item); err != nil {
			c.problem(item.Path, err)
		}
	}
	return ctx.Err()
}

// directory makes a directory that only we can enter until it is complete. One that exists is used, and stays as it is
// without Overwrite.
func (t *tree) directory(item *Item) {
	if item.Path == "" {
		return
	}
	err := t.in(item.Path, func(parent int, name string) error {
		err := unix.Mkdirat(parent, name, 0o700)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		fd, err := openDirectory(parent, name)
		if err == nil {
			if t.o.Overwrite {
				t.directories = append(t.directories, item)
			}
			item.Info.Mode |= fs.ModeIrregular // it is not ours
			return unix.Close(fd)
		}
		if !t.o.Overwrite {
			return errExists
		}
		if err := unix.Unlinkat(parent, name, 0); err != nil {
			return err
		}
		return unix.Mkdirat(parent, name, 0o700)
	})
	switch {
	case err != nil:
		item.Skip = true
		t.problem(item.Path, err)
	case item.Info.Mode&fs.ModeIrregular != 0:
		item.Info.Mode &^= fs.ModeIrregular
	default:
		t.directories = append(t.directories, item)
		t.wrote()
	}
}

var errExists = errors.New("it exists already, and is not replaced without --overwrite")

func openDirectory(parent int, name string) (int, error) {
	return unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// in calls work with the directory of a path, and the last name. Every name on the way is a directory, and no symbolic link.
func (c *Copier) in(path string, work func(parent int, name string) error) error {
	parent := c.root
	closeParent := func() {
		if parent != c.root {
			_ = unix.Close(parent) // nothing was written to it
		}
	}
	for {
		name, rest, more := strings.Cut(path, "/")
		if !more {
			err := work(parent, name)
			closeParent()
			return err
		}
		fd, err := openDirectory(parent, name)
		closeParent()
		if err != nil {
			return fmt.Errorf("open directory %q: %w", name, err)
		}
		parent, path = fd, rest
	}
}

// create makes a name, after it has deleted what exists, if that is wanted.
func (c *Copier) create(parent int, name string, attempt func() error) error {
	err := attempt()
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !c.o.Overwrite {
		return errExists
	}
	if err := unix.Unlinkat(parent, name, 0); err != nil {
		return fmt.Errorf("replace what exists: %w", err)
	}
	return attempt()
}

// copy writes everything but directories.
func (t *tree) copy(ctx context.Context, item *Item) {
	written := false
	err := t.in(item.Path, func(parent int, name string) (err error) {
		switch mode := item.Info.Mode; mode.Type() {
		case 0:
			written, err = true, t.regular(ctx, item, parent, name)
		case fs.ModeSymlink:
			written, err = true, t.symlink(item, parent, name)
		case fs.ModeNamedPipe, fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			written, err = t.node(item, parent, name)
		case fs.ModeSocket:
			t.lost(LostSocket)
		default:
			err = fmt.Errorf("it is of a kind that is not known: %s", mode)
		}
		return err
	})
	if err == nil && written {
		t.wrote()
		return
	}
	t.mu.Lock()
	t.failed[item.ID] = true
	t.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		t.problem(item.Path, err)
	}
}

// regular writes a regular file. One that cannot be written completely is deleted.
func (t *tree) regular(ctx context.Context, item *Item, parent int, name string) error {
	var fd int
	err := t.create(parent, name, func() (err error) {
		fd, err = unix.Openat(parent, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), item.Path)
	err = f.Truncate(item.Info.Size)
	if err == nil {
		err = copyContent(ctx, t.files, item.ID, item.Info.Size, f, t.pool, t.progress)
	}
	if err == nil {
		err = t.metadata(item, handle{fd: fd, parent: -1})
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, unix.Unlinkat(parent, name, 0))
	}
	return nil
}

func (t *tree) symlink(item *Item, parent int, name string) error {
	target, err := t.files.ReadLink(item.ID)
	if err != nil {
		return err
	}
	if err := t.create(parent, name, func() error { return unix.Symlinkat(target, parent, name) }); err != nil {
		return err
	}
	return t.metadata(item, handle{parent: parent, name: name})
}

// node makes a named pipe or a device node. It returns false if that was not asked for.
func (t *tree) node(item *Item, parent int, name string) (bool, error) {
	mode, device := uint32(unix.S_IFIFO), 0
	if item.Info.Mode&fs.ModeDevice != 0 {
		if !t.o.Special {
			t.lost(LostDevice)
			return false, nil
		}
		mode, device = unix.S_IFBLK, int(unix.Mkdev(item.Info.Major, item.Info.Minor))
		if item.Info.Mode&fs.ModeCharDevice != 0 {
			mode = unix.S_IFCHR
		}
	}
	err := t.create(parent, name, func() error { return unix.Mknodat(parent, name, mode|0o600, device) })
	if err != nil {
		return true, err
	}
	return true, t.metadata(item, handle{parent: parent, name: name})
}

// link gives a file that was written another name. If its first name was not written, the file is written here.
func (t *tree) link(ctx context.Context, item *Item) {
	first := t.first[item.ID]
	t.mu.Lock()
	failed := t.failed[item.ID]
	delete(t.failed, item.ID)
	t.mu.Unlock()
	if failed || ctx.Err() != nil {
		t.first[item.ID] = item
		t.copy(ctx, item)
		return
	}
	err := t.in(first.Path, func(from int, old string) error {
		return t.in(item.Path, func(to int, name string) error {
			return t.create(to, name, func() error { return unix.Linkat(from, old, to, name, 0) })
		})
	})
	if err != nil {
		t.problem(item.Path, err)
		return
	}
	t.wrote()
}

func (t *tree) finishDirectory(item *Item) error {
	return t.in(item.Path, func(parent int, name string) error {
		fd, err := openDirectory(parent, name)
		if err != nil {
			return err
		}
		return errors.Join(t.metadata(item, handle{fd: fd, parent: -1}), unix.Close(fd))
	})
}
