package filesystemtest

import (
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem"
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

// Walk reads everything that a file system shows, at most budget files and entries and 1 MiB of each file, and
// returns the first error. A reader of a damaged device may show anything, but it must come to an end.
func Walk(fsys filesystem.FileSystem, budget int) error {
	seen := map[filesystem.ID]bool{}
	todo := []filesystem.ID{fsys.Root()}
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	for ; len(todo) > 0 && budget > 0; budget-- {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[id] {
			continue
		}
		seen[id] = true
		info, err := fsys.Stat(id)
		if err != nil {
			note(err)
			continue
		}
		if _, err := fsys.Attributes(id); err != nil {
			note(err)
		}
		switch info.Mode.Type() {
		case fs.ModeDir:
			for entry, err := range fsys.ReadDir(id) {
				if err != nil {
					note(err)
					break
				}
				if budget--; budget <= 0 {
					break
				}
				todo = append(todo, entry.ID)
			}
		case fs.ModeSymlink:
			_, err := fsys.ReadLink(id)
			note(err)
		case 0:
			note(readFile(fsys, id, info.Size))
		default: // has no content
		}
	}
	return first
}

func readFile(fsys filesystem.FileSystem, id filesystem.ID, size int64) error {
	r, err := fsys.Open(id)
	if err != nil {
		return err
	}
	if _, err := r.ReadAt(make([]byte, min(size, 1<<20)), 0); err != nil && err != io.EOF {
		return err
	}
	extents := 0
	for _, err := range fsys.Extents(id) {
		if err != nil {
			return err
		}
		if extents++; extents > 1<<16 {
			break
		}
	}
	return nil
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
		_ = Walk(fsys, 5000)
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
