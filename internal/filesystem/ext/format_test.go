package ext_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/ext"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// populate makes an image with mke2fs alone, which needs no root, and returns it with the directory it was made from.
func populate(t testing.TB, size int64, tree func(dir string), mkfs ...string) (image, dir string) {
	t.Helper()
	dir = t.TempDir()
	tree(dir)
	image = filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	command(t, mkfs[0], append(append(mkfs[1:], "-d", dir), image)...)
	return image, dir
}

// debugfs runs requests on an image.
func debugfs(t testing.TB, image string, requests ...string) string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "requests")
	require.NoError(t, os.WriteFile(script, []byte(strings.Join(requests, "\n")+"\n"), 0o600))
	return command(t, "debugfs", "-w", "-f", script, image)
}

func readFile(t testing.TB, fsys filesystem.FileSystem, id filesystem.ID) []byte {
	t.Helper()
	info, err := fsys.Stat(id)
	require.NoError(t, err)
	r, err := fsys.Open(id)
	require.NoError(t, err)
	content, err := io.ReadAll(io.NewSectionReader(r, 0, info.Size))
	require.NoError(t, err)
	return content
}

// find follows names from the root.
func find(t testing.TB, fsys filesystem.FileSystem, path string) filesystem.ID {
	t.Helper()
	id := fsys.Root()
next:
	for _, name := range strings.Split(path, "/") {
		for entry, err := range fsys.ReadDir(id) {
			require.NoError(t, err)
			if entry.Name == name {
				id = entry.ID
				continue next
			}
		}
		t.Fatalf("there is no %s in %s", name, path)
	}
	return id
}

// requireTree compares names and contents with a directory.
func requireTree(t testing.TB, dir string, fsys filesystem.FileSystem) {
	t.Helper()
	files := 0
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		require.NoError(t, err)
		if !entry.Type().IsRegular() {
			return nil
		}
		files++
		name, err := filepath.Rel(dir, path)
		require.NoError(t, err)
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, readFile(t, fsys, find(t, fsys, name))), name)
		return nil
	}))
	require.Positive(t, files)
}

// TestLargeBlocks has blocks that this kernel does not mount.
func TestLargeBlocks(t *testing.T) {
	for _, size := range []int{16, 64} {
		t.Run(fmt.Sprintf("%dk", size), func(t *testing.T) {
			image, dir := populate(t, 128<<20, func(dir string) {
				random := rand.New(rand.NewPCG(1, 1))
				for i := range 500 {
					name := fmt.Sprintf("%d-%s", i, strings.Repeat("n", random.IntN(200)))
					require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(name, random.IntN(400))), 0o600))
				}
			}, "mke2fs", "-q", "-F", "-t", "ext4", "-b", fmt.Sprint(size<<10))
			requireTree(t, dir, openImage(t, image))
			command(t, "e2fsck", "-fyD", image) // with a tree of hashes
			requireTree(t, dir, openImage(t, image))
		})
	}
}

// TestDeepExtents has a file in thousands of pieces, and one in the last blocks that there may be.
func TestDeepExtents(t *testing.T) {
	for name, mkfs := range map[string][]string{
		"extents": {"mke2fs", "-q", "-t", "ext4", "-b", "1024", "-J", "size=1"},
		"numbers": {"mke2fs", "-q", "-t", "ext2", "-b", "1024"},
	} {
		t.Run(name, func(t *testing.T) {
			image := filesystemtest.Image(t, 48<<20, mkfs, func(root string) {
				f, err := os.Create(filepath.Join(root, "large"))
				require.NoError(t, err)
				// Direct, indirect, double and triple indirect blocks begin at 12, 268, 65,804 and up.
				for _, at := range []int64{0, 11, 12, 13, 267, 268, 269, 65803, 65804, 65805, 100000, 16 << 20, 16843019} {
					_, err := f.WriteAt([]byte(fmt.Sprintf("at %d", at)), at*1024)
					if err != nil && name == "numbers" {
						require.ErrorContains(t, err, "file too large")
						continue
					}
					require.NoError(t, err)
				}
				for i := range int64(4000) {
					_, err := f.WriteAt([]byte(fmt.Sprint(i)), 200000*1024+i*3000)
					require.NoError(t, err)
				}
				require.NoError(t, f.Close())
			})
			fsys := openImage(t, image)
			f, err := os.Open(filepath.Join(filesystemtest.Mount(t, image, "ro"), "large"))
			require.NoError(t, err)
			defer f.Close()
			id := filesystemtest.Lookup(t, fsys, "large")
			requireSame(t, f, fsys, id)
		})
	}
}

// requireSame compares a file by its extents, and counts that it has as many bytes of data as the kernel says.
func requireSame(t testing.TB, want *os.File, fsys filesystem.FileSystem, id filesystem.ID) {
	t.Helper()
	r, err := fsys.Open(id)
	require.NoError(t, err)
	var ours, kernel []block.Extent
	for e, err := range fsys.Extents(id) {
		require.NoError(t, err)
		a, b := make([]byte, e.Length), make([]byte, e.Length)
		_, err := want.ReadAt(a, e.Offset)
		require.NoError(t, err)
		_, err = r.ReadAt(b, e.Offset)
		require.True(t, err == nil || errors.Is(err, io.EOF))
		require.True(t, bytes.Equal(a, b), "differs in %s", e)
		ours = append(ours, e)
	}
	const seekData, seekHole = 3, 4
	info, err := want.Stat()
	require.NoError(t, err)
	for at := int64(0); ; {
		begin, err := want.Seek(at, seekData)
		if err != nil {
			break
		}
		end, err := want.Seek(begin, seekHole)
		require.NoError(t, err)
		kernel = append(kernel, block.Extent{Offset: begin, Length: min(end, info.Size()) - begin})
		at = end
	}
	require.Equal(t, kernel, ours)
}

// TestUnknown names what a reader would have to know.
func TestUnknown(t *testing.T) {
	image, _ := populate(t, 8<<20, func(string) {}, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum")
	for bit, want := range map[uint32]string{0x1: "compression", 0x8: "journal_dev", 0x1000: "dirdata", 0x80000000: "0x80000000"} {
		raw, err := os.ReadFile(image)
		require.NoError(t, err)
		incompat := binary.LittleEndian.Uint32(raw[1024+0x60:])
		binary.LittleEndian.PutUint32(raw[1024+0x60:], incompat|bit)
		_, err = ext.Open(bytes.NewReader(raw), int64(len(raw)))
		require.ErrorIs(t, err, filesystem.ErrUnsupported)
		require.ErrorContains(t, err, want)
	}
}

// TestExternalJournal: what is in it cannot be shown.
func TestExternalJournal(t *testing.T) {
	image, _ := populate(t, 8<<20, func(string) {}, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum")
	raw, err := os.ReadFile(image)
	require.NoError(t, err)
	binary.LittleEndian.PutUint32(raw[1024+0xe0:], 0)
	copy(raw[1024+0xd0:], bytes.Repeat([]byte{0xab}, 16))
	_, err = ext.Open(bytes.NewReader(raw), int64(len(raw)))
	require.NoError(t, err, "it is empty")
	binary.LittleEndian.PutUint32(raw[1024+0x60:], binary.LittleEndian.Uint32(raw[1024+0x60:])|4)
	_, err = ext.Open(bytes.NewReader(raw), int64(len(raw)))
	require.ErrorIs(t, err, filesystem.ErrUnsupported)
	require.ErrorContains(t, err, "abababab-abab-abab-abab-abababababab")
}

// TestOneDamagedFile: the others can be read.
func TestOneDamagedFile(t *testing.T) {
	names := []string{"extents", "extent-block", "attributes", "directory", "encrypted", "good"}
	image, dir := populate(t, 16<<20, func(dir string) {
		for _, name := range names {
			require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name, "file"), bytes.Repeat([]byte(name), 3000), 0o644))
		}
	}, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "encrypt,casefold")
	debugfs(t, image, "ea_set /attributes/file user.key "+strings.Repeat("v", 300))
	// A flag and the size of an inode are set with a right checksum.
	debugfs(t, image, "sif /encrypted flags 0x80800", "sif /encrypted/file flags 0x80800", "sif /extents/file block[5] 0x7fffffff")
	corrupt(t, image, blockOf(t, image, "stat /attributes/file", "File ACL: "), 100)
	corrupt(t, image, blockOf(t, image, "blocks /directory", ""), 30)

	fsys := openImage(t, image)
	_, err := fsys.Attributes(find(t, fsys, "attributes/file"))
	require.ErrorIs(t, err, filesystem.ErrDamaged)
	_, err = readAll(fsys, find(t, fsys, "extents/file"))
	require.ErrorIs(t, err, filesystem.ErrDamaged)
	require.ErrorIs(t, list(fsys, find(t, fsys, "directory")), filesystem.ErrDamaged)
	require.ErrorIs(t, list(fsys, find(t, fsys, "encrypted")), filesystem.ErrUnsupported)
	info, err := fsys.Stat(find(t, fsys, "encrypted"))
	require.NoError(t, err)
	require.True(t, info.Mode.IsDir())
	want, err := os.ReadFile(filepath.Join(dir, "good", "file"))
	require.NoError(t, err)
	require.Equal(t, want, readFile(t, fsys, find(t, fsys, "good/file")))
	require.Equal(t, []byte(strings.Repeat("attributes", 3000)), readFile(t, fsys, find(t, fsys, "attributes/file")))
}

func list(fsys filesystem.FileSystem, id filesystem.ID) error {
	for _, err := range fsys.ReadDir(id) {
		if err != nil {
			return err
		}
	}
	return nil
}

func readAll(fsys filesystem.FileSystem, id filesystem.ID) ([]byte, error) {
	r, err := fsys.Open(id)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(r, 0, 1<<20))
}

// blockOf returns the number behind a word that debugfs writes.
func blockOf(t testing.TB, image, request, word string) int64 {
	t.Helper()
	out := command(t, "debugfs", "-R", request, image)
	_, out, _ = strings.Cut(out, "\n") // the version
	_, out, found := strings.Cut(out, word)
	require.True(t, found, out)
	var number int64
	_, err := fmt.Sscan(out, &number)
	require.NoError(t, err, out)
	return number
}

// corrupt flips a byte of a block of 1 KiB.
func corrupt(t testing.TB, image string, block, at int64) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], block*1024+at)
	require.NoError(t, err)
	b[0] ^= 0x55
	_, err = f.WriteAt(b[:], block*1024+at)
	require.NoError(t, err)
}
