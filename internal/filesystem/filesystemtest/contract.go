package filesystemtest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

// Image makes a file of size bytes, runs mkfs on it, mounts it, calls fill with the root of the mount, unmounts
// it, and returns the path of the file. It skips the test without root.
func Image(t testing.TB, size int64, mkfs []string, fill func(root string)) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	run(t, mkfs[0], append(mkfs[1:], image)...)
	root := Mount(t, image, "rw")
	fill(root)
	Unmount(t, root)
	return image
}

// Mount mounts an image until the end of the test, or until the test unmounts it.
func Mount(t testing.TB, image, options string) string {
	t.Helper()
	root := t.TempDir()
	run(t, "mount", "-o", "loop,"+options, image, root)
	t.Cleanup(func() {
		if mounted(root) {
			Unmount(t, root)
		}
	})
	return root
}

// Unmount unmounts what Mount has mounted. A process or a container that starts at this moment holds the mount
// until it has closed what it inherited.
func Unmount(t testing.TB, root string) {
	t.Helper()
	for range 100 {
		if exec.Command("umount", root).Run() == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	run(t, "umount", root)
}

func mounted(root string) bool {
	var here, above unix.Stat_t
	return unix.Lstat(root, &here) == nil && unix.Lstat(filepath.Dir(root), &above) == nil && here.Dev != above.Dev
}

// CheckErrors checks what every reader answers to a question that makes no sense. The root has a file "large".
func CheckErrors(t testing.TB, fsys filesystem.FileSystem) {
	t.Helper()
	root := fsys.Root()
	large := Lookup(t, fsys, "large")
	for _, err := range fsys.ReadDir(large) {
		require.Error(t, err, "a file is no directory")
	}
	_, err := fsys.Open(root)
	require.Error(t, err, "a directory has no content")
	for _, err := range fsys.Extents(root) {
		require.Error(t, err, "a directory has no extents")
	}
	_, err = fsys.ReadLink(large)
	require.Error(t, err, "a file is no symbolic link")
	_, err = fsys.Stat(1 << 62)
	require.Error(t, err, "there is no such file")

	r, err := fsys.Open(large)
	require.NoError(t, err)
	_, err = r.ReadAt(make([]byte, 1), -1)
	require.Error(t, err, "a negative offset")
	n, err := r.ReadAt(make([]byte, 10), 1<<60)
	require.Zero(t, n)
	require.ErrorIs(t, err, io.EOF)
}

// Lookup returns the file with a name of the root.
func Lookup(t testing.TB, fsys filesystem.FileSystem, name string) filesystem.ID {
	t.Helper()
	for entry, err := range fsys.ReadDir(fsys.Root()) {
		require.NoError(t, err)
		if entry.Name == name {
			return entry.ID
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// ErrContract is the error of a reader that shows what none may, however damaged the device is: names that lead elsewhere, content
// outside of the file.
var ErrContract = errors.New("the reader breaks its contract")

// Walk reads everything that a file system shows, at most budget files and entries and 1 MiB of each file, and
// returns the first error, or else one that wraps ErrContract. A reader of a damaged device may show any file, but it must come to an end.
func Walk(fsys filesystem.FileSystem, budget int) error {
	w := walker{fsys: fsys, budget: budget, buf: make([]byte, 1<<20)}
	seen := map[filesystem.ID]bool{}
	for w.todo = []filesystem.ID{fsys.Root()}; len(w.todo) > 0 && w.budget > 0; w.budget-- {
		id := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		if !seen[id] {
			seen[id] = true
			w.visit(id)
		}
	}
	return w.first
}

type walker struct {
	fsys   filesystem.FileSystem
	budget int
	todo   []filesystem.ID
	first  error
	buf    []byte
}

func (w *walker) note(err error) {
	if err != nil && (w.first == nil || errors.Is(err, ErrContract) && !errors.Is(w.first, ErrContract)) {
		w.first = err
	}
}

func (w *walker) visit(id filesystem.ID) {
	info, err := w.fsys.Stat(id)
	if err != nil {
		w.note(err)
		return
	}
	_, err = w.fsys.Attributes(id)
	w.note(err)
	switch info.Mode.Type() {
	case fs.ModeDir:
		for entry, err := range w.fsys.ReadDir(id) {
			if err != nil {
				w.note(err)
				break
			}
			if name := entry.Name; name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				w.note(fmt.Errorf("%w: directory %d has an entry %q", ErrContract, id, name))
			}
			if w.budget--; w.budget <= 0 {
				break
			}
			w.todo = append(w.todo, entry.ID)
		}
	case fs.ModeSymlink:
		_, err := w.fsys.ReadLink(id)
		w.note(err)
	case 0:
		w.note(w.readFile(id, info.Size))
	default: // has no content
	}
}

func (w *walker) readFile(id filesystem.ID, size int64) error {
	r, err := w.fsys.Open(id)
	if err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("%w: file %d has %d bytes", ErrContract, id, size)
	}
	if _, err := r.ReadAt(w.buf[:min(size, int64(len(w.buf)))], 0); err != nil && err != io.EOF {
		return err
	}
	extents, end := 0, int64(0)
	for e, err := range w.fsys.Extents(id) {
		if err != nil {
			return err
		}
		if e.CheckWithin(size) != nil || e.Offset < end {
			return fmt.Errorf("%w: file %d of %d bytes has extent %s after one that ends at %d", ErrContract, id, size, e, end)
		}
		end = e.End()
		if extents++; extents > 1<<16 {
			break
		}
	}
	return nil
}

// Hostile opens and walks a device for a fuzz test. Memory is bounded by what is read of the device, and by 4 KiB for each
// file and entry, whose blocks may have been read before.
func Hostile(t testing.TB, device io.ReaderAt, size int64, budget int, open func(r io.ReaderAt, size int64) (filesystem.FileSystem, error)) {
	t.Helper()
	fuzztest.Device(t, device, uint64(budget)<<12, func(r io.ReaderAt) {
		fsys, err := open(r, size)
		if err != nil {
			return
		}
		if err := Walk(fsys, budget); errors.Is(err, ErrContract) {
			t.Error(err)
		}
	})
}

// Damage opens and walks copies of an image in which random bytes differ, rounds times. Nothing must panic or run
// on for ever; what a reader shows of such a device is not judged. most is how far into the image the damage reaches.
func Damage(t *testing.T, image []byte, most int64, rounds int, open func(r io.ReaderAt, size int64) (filesystem.FileSystem, error)) {
	t.Helper()
	random := rand.New(rand.NewPCG(7, 7))
	for range rounds {
		damaged := &overlay{base: image, changed: map[int64]byte{}}
		for range 1 + random.IntN(40) {
			damaged.changed[random.Int64N(min(most, int64(len(image))))] = byte(random.Uint32())
		}
		fsys, err := open(damaged, int64(len(image)))
		if err != nil {
			continue
		}
		require.NotErrorIs(t, Walk(fsys, 5000), ErrContract)
	}
}

// overlay is a device with some bytes changed.
type overlay struct {
	base    []byte
	changed map[int64]byte
}

func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(o.base)) {
		return 0, io.EOF
	}
	n := copy(p, o.base[off:])
	for at, b := range o.changed {
		if at >= off && at < off+int64(n) {
			p[at-off] = b
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
