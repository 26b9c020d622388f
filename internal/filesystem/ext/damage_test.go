package ext_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/ext"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

func open(r io.ReaderAt, size int64) (filesystem.FileSystem, error) {
	fsys, err := ext.Open(r, size)
	if err != nil {
		return nil, err
	}
	return fsys, nil
}

// smallTree is a tree for images that are damaged.
func smallTree(t testing.TB, dir string) {
	t.Helper()
	for i := range 60 {
		parent := filepath.Join(dir, fmt.Sprintf("d%d", i%4))
		require.NoError(t, os.MkdirAll(parent, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(parent, fmt.Sprintf("f%d", i)), bytes.Repeat([]byte{byte(i)}, i*i*9), 0o644))
	}
	require.NoError(t, os.Symlink("short", filepath.Join(dir, "short")))
	require.NoError(t, os.Symlink(strings.Repeat("l", 100), filepath.Join(dir, "long")))
	f, err := os.Create(filepath.Join(dir, "pieces"))
	require.NoError(t, err)
	for i := range int64(200) {
		_, err := f.WriteAt([]byte("piece"), i*3000)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
}

// smallImages have no checksums, so that damage reaches the code behind them, and one has them.
func smallImages(t testing.TB) map[string][]byte {
	t.Helper()
	images := map[string][]byte{}
	for name, mkfs := range map[string][]string{
		"ext2":      {"mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", "-N", "128"},
		"ext4":      {"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "128", "-O", "^metadata_csum,^has_journal,^resize_inode"},
		"inline":    {"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "128", "-O", "^metadata_csum,^has_journal,^resize_inode,inline_data,ea_inode"},
		"checksums": {"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "128", "-O", "^has_journal,^resize_inode"},
	} {
		image, _ := populate(t, 3<<20, func(dir string) { smallTree(t, dir) }, mkfs...)
		debugfs(t, image, "ea_set /pieces user.key value", "ea_set /d0/f0 user.key "+strings.Repeat("v", 300))
		raw, err := os.ReadFile(image)
		require.NoError(t, err)
		images[name] = raw
	}
	return images
}

// TestDamage damages everything, and the metadata alone.
func TestDamage(t *testing.T) {
	images := smallImages(t)
	for name, image := range journalImages(t) {
		images["journal "+name] = image
	}
	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			filesystemtest.Damage(t, image, int64(len(image)), rounds(80), open)
			filesystemtest.Damage(t, image, 100<<10, rounds(80), open)
		})
	}
}

// fuzzSeeds are images with a journal, one of them with fast commits, which crash and changer have made.
const fuzzSeeds = "testdata/images"

// journalImages returns the images with a journal.
func journalImages(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(fuzzSeeds, "*.gz"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	images := map[string][]byte{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		z, err := gzip.NewReader(bytes.NewReader(raw))
		require.NoError(t, err)
		images[strings.TrimSuffix(filepath.Base(file), ".gz")], err = io.ReadAll(z)
		require.NoError(t, err)
	}
	return images
}

// FuzzOpen changes bytes of images.
func FuzzOpen(f *testing.F) {
	if os.Getenv("EXT_SEEDS") != "" {
		makeSeeds(f)
	}
	var seeds [][]byte
	images := journalImages(f)
	for _, name := range slices.Sorted(maps.Keys(images)) {
		f.Add(byte(len(seeds)), []byte{})
		f.Add(byte(len(seeds)), []byte{0, 4, 0, 24, 255})
		seeds = append(seeds, images[name])
	}
	// A change is an offset of 4 bytes and a byte.
	f.Fuzz(func(t *testing.T, seed byte, changes []byte) {
		base := seeds[int(seed)%len(seeds)]
		device := &changed{base: base, bytes: map[int64]byte{}}
		for ; len(changes) >= 5 && len(device.bytes) < 200; changes = changes[5:] {
			device.bytes[int64(binary.BigEndian.Uint32(changes))%int64(len(base))] = changes[4]
		}
		filesystemtest.Hostile(t, device, int64(len(base)), 1000, func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) {
			return ext.Open(r, size)
		})
	})
}

// makeSeeds writes the images for FuzzOpen: EXT_SEEDS=1.
func makeSeeds(t testing.TB) {
	t.Helper()
	for name, mkfs := range map[string][]string{
		"ext3":   {"mke2fs", "-q", "-t", "ext3", "-b", "1024", "-N", "128", "-J", "size=1"},
		"ext4":   {"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-N", "128", "-J", "size=1", "-O", "^metadata_csum,ea_inode,inline_data"},
		"fast":   {"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-N", "128", "-J", "size=1,fast_commit_size=64", "-O", "^metadata_csum,fast_commit"},
		"meta":   {"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-N", "128", "-J", "size=1", "-g", "1024", "-O", "^metadata_csum,^resize_inode,meta_bg,bigalloc"},
		"sealed": {"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-N", "128", "-J", "size=1", "-O", "metadata_csum"},
	} {
		image := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, 4<<20))
		command(t, mkfs[0], append(mkfs[1:], image)...)
		c := &changer{t: t, root: filesystemtest.Mount(t, image, "rw")}
		smallTree(t, c.root)
		unix.Sync()
		for i := range 10 {
			c.write(fmt.Sprintf("new-%d", i), strings.Repeat("new", i*200), int64(i)*5000)
			require.NoError(t, os.Remove(c.path(fmt.Sprintf("d0/f%d", i*4))))
		}
		require.NoError(t, os.Rename(c.path("pieces"), c.path("renamed")))
		c.write("renamed", "one more piece", 100<<10)
		if name != "fast" {
			require.NoError(t, unix.Setxattr(c.path("renamed"), "user.key", []byte(strings.Repeat("v", 500)), 0))
		}
		c.write("last", "last", 0)
		shutdown(t, c.root)
		filesystemtest.Unmount(t, c.root)
		raw, err := os.ReadFile(image)
		require.NoError(t, err)
		t.Log(name, openImage(t, image).Describe().Notes)
		var packed bytes.Buffer
		z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		require.NoError(t, err)
		_, err = z.Write(raw)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		require.NoError(t, os.MkdirAll(fuzzSeeds, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(fuzzSeeds, name+".gz"), packed.Bytes(), 0o644))
	}
}

type changed struct {
	base  []byte
	bytes map[int64]byte
}

func (c *changed) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(c.base).ReadAt(p, off)
	for at, b := range c.bytes {
		if at >= off && at < off+int64(n) {
			p[at-off] = b
		}
	}
	return n, err
}

// TestTornJournal loses one block of the journal, as a disk does that writes out of order. If the kernel mounts that, and
// the result is not damaged, the reader shows the same.
func TestTornJournal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	random := rand.New(rand.NewPCG(5, 5))
	mounted, compared := 0, 0
	for _, journal := range journals[:7] {
		t.Run(journal.name, func(t *testing.T) {
			image := crash(t, journal.mkfs, journal.options, 77)
			var blocks []int64
			for _, word := range strings.Fields(command(t, "debugfs", "-c", "-R", "blocks <8>", image)) {
				if n, err := strconv.ParseInt(word, 10, 64); err == nil {
					blocks = append(blocks, n)
				}
			}
			size := int64(1024)
			fmt.Sscan(journal.mkfs[5], &size)
			for range rounds(2) {
				torn := filepath.Join(t.TempDir(), "torn")
				command(t, "cp", "--sparse=always", image, torn)
				f, err := os.OpenFile(torn, os.O_RDWR, 0)
				require.NoError(t, err)
				_, err = f.WriteAt(make([]byte, size), blocks[1+random.IntN(250)]*size)
				require.NoError(t, err)
				require.NoError(t, f.Close())
				judge := torn + ".judge"
				command(t, "cp", "--sparse=always", torn, judge)
				root := t.TempDir()
				if exec.Command("mount", "-o", "loop,rw,noatime", judge, root).Run() != nil {
					// The reader need not refuse it: a later version of the block may be there.
					tryImage(t, torn)
					continue
				}
				mounted++
				filesystemtest.Unmount(t, root)
				if exec.Command("e2fsck", "-fn", judge).Run() != nil {
					tryImage(t, torn)
					continue // what was lost was needed: the file system is damaged
				}
				root = filesystemtest.Mount(t, judge, "ro")
				filesystemtest.RequireEqual(t, root, openImage(t, torn), filesystemtest.Differ{})
				filesystemtest.Unmount(t, root)
				compared++
			}
		})
	}
	t.Logf("the kernel mounted %d, of which %d were compared", mounted, compared)
	require.Positive(t, compared)
}

// tryImage reads all of an image that may be damaged: an error is fine, and a panic is not.
func tryImage(t *testing.T, image string) {
	t.Helper()
	f, err := os.Open(image)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	fsys, err := ext.Open(f, info.Size())
	if err == nil {
		err = filesystemtest.Walk(fsys, 100000)
	}
	// A directory that was not replayed may name a file that is deleted.
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		require.ErrorIs(t, err, filesystem.ErrDamaged)
	}
}

// counted counts reads, as each costs a round trip.
type counted struct {
	io.ReaderAt
	reads, bytes atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.ReaderAt.ReadAt(p, off)
}

// TestReads counts what a listing costs, and reads from many goroutines.
func TestReads(t *testing.T) {
	image, dir := populate(t, 512<<20, func(dir string) {
		for i := range 3000 {
			parent := filepath.Join(dir, fmt.Sprintf("d%d", i%30))
			require.NoError(t, os.MkdirAll(parent, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(parent, fmt.Sprintf("f%d", i)), []byte(strings.Repeat("x", i)), 0o644))
		}
	}, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096")
	f, err := os.Open(image)
	require.NoError(t, err)
	defer f.Close()
	device := &counted{ReaderAt: f}
	fsys, err := ext.Open(device, 512<<20)
	require.NoError(t, err)
	var entries []filesystem.Entry
	for entry, err := range fsys.ReadDir(fsys.Root()) {
		require.NoError(t, err)
		entries = append(entries, entry)
	}
	t.Logf("the first names took %d reads of %d bytes", device.reads.Load(), device.bytes.Load())
	require.LessOrEqual(t, device.reads.Load(), int64(5))
	for _, entry := range entries {
		_, err := fsys.Stat(entry.ID)
		require.NoError(t, err)
	}
	// The inodes of the 30 directories are among those of 3,000 files.
	t.Logf("the first listing took %d reads of %d bytes", device.reads.Load(), device.bytes.Load())
	require.LessOrEqual(t, device.reads.Load(), int64(20))

	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() { requireTreeQuickly(t, dir, fsys) })
	}
	workers.Wait()
	t.Logf("all files took %d reads", device.reads.Load())
}

// requireTreeQuickly compares directory by directory. It may run in any goroutine.
func requireTreeQuickly(t testing.TB, dir string, fsys filesystem.FileSystem) {
	t.Helper()
	for directory, err := range fsys.ReadDir(fsys.Root()) {
		if err != nil {
			t.Error(err)
			return
		}
		for entry, err := range fsys.ReadDir(directory.ID) {
			if err != nil {
				t.Error(err)
				return
			}
			want, err := os.ReadFile(filepath.Join(dir, directory.Name, entry.Name))
			if err != nil {
				t.Error(err)
				return
			}
			got, err := readAll(fsys, entry.ID)
			if err != nil || !bytes.Equal(want, got) {
				t.Errorf("%s differs: %v", entry.Name, err)
				return
			}
		}
	}
}

// TestManyFiles has a tree of thousands of odd files: EXT_FILES=20000.
func TestManyFiles(t *testing.T) {
	files := 4000 // with 1 KiB, the tree of hashes has nodes below its root
	if n := os.Getenv("EXT_FILES"); n != "" {
		fmt.Sscan(n, &files)
	}
	began := time.Now()
	image := filesystemtest.Image(t, 1<<30, []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-N", "60000"}, func(root string) {
		filesystemtest.MakeTree(t, root, filesystemtest.Tree{Files: files, Posix: true, Attributes: true, ACLs: true, LargeAttribute: 700, Seed: 9})
	})
	t.Logf("made in %s", time.Since(began))
	began = time.Now()
	fsys := openImage(t, image)
	err := filesystemtest.Walk(fsys, 1<<20)
	require.NoError(t, err)
	t.Logf("walked in %s", time.Since(began))
	began = time.Now()
	root := filesystemtest.Mount(t, image, "ro")
	filesystemtest.RequireEqual(t, root, fsys, filesystemtest.Differ{})
	t.Logf("compared in %s", time.Since(began))
}
