package fat_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/fat"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// tool runs mtools or dosfstools, which are the judges: they share no code with the reader.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(name + " is not installed")
	}
	cmd := exec.Command(name, args...)
	// Linux takes code page 437 if nobody says otherwise, and mtools takes 850.
	config := filepath.Join(t.TempDir(), "mtoolsrc")
	require.NoError(t, os.WriteFile(config, []byte("default_codepage=437\n"), 0o600))
	cmd.Env = append(os.Environ(), "TZ=UTC", "MTOOLSRC="+config, "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

// makeImage formats a file of size bytes.
func makeImage(t testing.TB, size int64, mkfs ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	tool(t, "mkfs.vfat", append(mkfs, image)...)
	return image
}

func open(t testing.TB, image string) *fat.FileSystem {
	t.Helper()
	f, err := os.Open(image)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	require.NoError(t, err)
	fsys, err := fat.Open(f, info.Size())
	require.NoError(t, err)
	return fsys
}

func TestTree(t *testing.T) {
	for _, c := range []struct {
		name  string
		size  int64
		files int
		mkfs  []string
	}{
		{"FAT12", 15 << 20, 100, []string{"-F", "12", "-s", "8"}},
		{"FAT16", 60 << 20, 400, []string{"-F", "16"}},
		{"FAT32", 80 << 20, 600, []string{"-F", "32", "-s", "2"}},
		{"large sectors", 80 << 20, 100, []string{"-S", "4096"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := makeImage(t, c.size, append(c.mkfs, "-n", "LABEL HERE", "-i", "1234abcd")...)
			source := t.TempDir()
			filesystemtest.MakeTree(t, source, filesystemtest.Tree{Files: c.files, Seed: 3})
			for _, name := range []string{"lower.txt", "UPPER.TXT", "UPPER.low", "lower.UP", "a long ünïcødé", "snowman ☃", "a.b.c", strings.Repeat("x", 255), " leading"} {
				require.NoError(t, os.WriteFile(filepath.Join(source, name), []byte(name), 0o600))
			}
			require.NoError(t, os.WriteFile(filepath.Join(source, "gone"), bytes.Repeat([]byte("gone"), 1<<18), 0o600))
			tool(t, "mcopy", "-i", image, "-m", "-s", "-Q", filepath.Join(source, "gone"), "::")
			tool(t, "mcopy", append([]string{"-i", image, "-m", "-s", "-Q"}, append(children(t, source, "gone"), "::")...)...)
			tool(t, "mdel", "-i", image, "::gone")
			tool(t, "mattrib", "-i", image, "+r", "::large")
			tool(t, "mmd", "-i", image, "::empty")
			tool(t, "fsck.fat", "-n", image)

			fsys := open(t, image)
			require.Equal(t, filesystem.Description{Kind: "vfat", Label: "LABEL HERE", UUID: "1234-ABCD"}, fsys.Describe())
			judge := t.TempDir()
			tool(t, "mcopy", "-i", image, "-m", "-s", "-n", "::*", judge)
			asLinux(t, judge, fsys)
			filesystemtest.RequireEqual(t, judge, fsys, filesystemtest.Differ{NoPosix: true})
			filesystemtest.CheckErrors(t, fsys)
			for _, name := range children(t, source, "gone") {
				filesystemtest.Lookup(t, fsys, filepath.Base(name))
			}
			list := tool(t, "mdir", "-i", image, "-b", "-/", "-a", "::")
			require.Equal(t, count(t, fsys), len(strings.Fields(strings.ReplaceAll(list, " ", "_"))), "mdir and the reader show as many files")

			content, err := os.ReadFile(image)
			require.NoError(t, err)
			filesystemtest.Damage(t, content, 2<<20, 100, func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) {
				return fat.Open(r, size)
			})
		})
	}
}

func children(t testing.TB, dir, but string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var paths []string
	for _, e := range entries {
		if e.Name() != but {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// asLinux gives what mcopy has written what mcopy does not keep: the modes of vfat, and access times. The times of
// directories are those of the reader.
func asLinux(t testing.TB, dir string, fsys filesystem.FileSystem) {
	t.Helper()
	var walk func(dir string, id filesystem.ID)
	walk = func(dir string, id filesystem.ID) {
		for e, err := range fsys.ReadDir(id) {
			require.NoError(t, err)
			path := filepath.Join(dir, e.Name)
			info, err := fsys.Stat(e.ID)
			require.NoError(t, err)
			kernel, err := os.Lstat(path)
			require.NoError(t, err)
			mode, modified := fs.FileMode(0o755), kernel.ModTime()
			if kernel.IsDir() {
				walk(path, e.ID)
				modified = info.Modified
			} else if e.Name == "large" {
				mode = 0o555
			}
			require.NoError(t, os.Chmod(path, mode))
			require.Equal(t, info.Accessed, info.Accessed.Truncate(24*time.Hour))
			require.NoError(t, os.Chtimes(path, info.Accessed, modified))
		}
	}
	walk(dir, fsys.Root())
}

func count(t testing.TB, fsys filesystem.FileSystem) int {
	t.Helper()
	n := 0
	todo := []filesystem.ID{fsys.Root()}
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		for e, err := range fsys.ReadDir(id) {
			require.NoError(t, err)
			n++
			info, err := fsys.Stat(e.ID)
			require.NoError(t, err)
			if info.Mode.IsDir() {
				todo = append(todo, e.ID)
			}
		}
	}
	return n
}

// small is the smallest image of FAT12, made by hand, with one file "A" of 1000 bytes in clusters 2 and 3.
func small() []byte {
	image := make([]byte, 64<<10)
	le := binary.LittleEndian
	copy(image, "\xeb\x3c\x90MSDOS5.0")
	le.PutUint16(image[11:], 512)
	image[13] = 1
	le.PutUint16(image[14:], 1)
	image[16] = 1
	le.PutUint16(image[17:], 16)
	le.PutUint16(image[19:], 128)
	image[21] = 0xf8
	le.PutUint16(image[22:], 1)
	le.PutUint16(image[510:], 0xaa55)
	copy(image[512:], []byte{0xf8, 0xff, 0xff, 0x03, 0xf0, 0xff})
	root := image[1024:]
	copy(root, "A          ")
	le.PutUint16(root[26:], 2)
	le.PutUint32(root[28:], 1000)
	return image
}

func TestDamaged(t *testing.T) {
	read := func(image []byte) error {
		fsys, err := fat.Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			return err
		}
		return filesystemtest.Walk(fsys, 1000)
	}
	require.NoError(t, read(small()))
	for name, c := range map[string]struct {
		change func(image []byte)
		err    error
	}{
		"chain ends early":            {func(b []byte) { b[515], b[516] = 0xff, 0xff }, filesystem.ErrDamaged},
		"chain goes on in nothing":    {func(b []byte) { b[515], b[516] = 0, 0xf0 }, filesystem.ErrDamaged},
		"chain leaves the device":     {func(b []byte) { b[515], b[516] = 0xff, 0xf1 }, filesystem.ErrDamaged},
		"file without a cluster":      {func(b []byte) { b[1024+26] = 0 }, filesystem.ErrDamaged},
		"file larger than the device": {func(b []byte) { b[1024+31] = 0xff }, filesystem.ErrDamaged},
		"slash in a name":             {func(b []byte) { b[1024] = '/' }, filesystem.ErrDamaged},
		"directory that is a loop": {func(b []byte) {
			b[1024+11] = 0x10
			copy(b[515:], []byte{0x02, 0xf0})
			for i := range 512 / 32 {
				b[1536+32*i] = freed
			}
		}, filesystem.ErrDamaged},
		"tables larger than the whole": {func(b []byte) { b[23] = 1 }, filesystem.ErrDamaged},
		"no table":                     {func(b []byte) { b[22] = 0 }, filesystem.ErrOther},
		"no signature":                 {func(b []byte) { b[510] = 0 }, filesystem.ErrOther},
		"exFAT":                        {func(b []byte) { copy(b[3:], "EXFAT   ") }, filesystem.ErrUnsupported},
		"NTFS":                         {func(b []byte) { copy(b[3:], "NTFS    ") }, filesystem.ErrOther},
		"empty":                        {func(b []byte) { clear(b) }, filesystem.ErrOther},
	} {
		t.Run(name, func(t *testing.T) {
			image := small()
			c.change(image)
			require.ErrorIs(t, read(image), c.err)
		})
	}
	require.ErrorIs(t, read(small()[:1<<10]), filesystem.ErrDamaged, "a device that is cut")
	require.ErrorIs(t, read(small()[:100]), filesystem.ErrOther)
}

const freed = 0xe5

// TestLongName: what mtools does not write.
func TestLongName(t *testing.T) {
	sum := byte(0)
	for _, c := range []byte("A          ") {
		sum = sum>>1 | sum<<7
		sum += c
	}
	for _, c := range []struct {
		what, want string
		units      []uint16
		sum        byte
	}{
		{"a pair of surrogates", "🎈", []uint16{0xd83c, 0xdf88}, sum},
		{"half of a pair", "\xed\xa0\xbcx", []uint16{0xd83c, 'x'}, sum},
		{"a name that is none", "A", []uint16{'a', '/', 'b'}, sum},
		{"a name of another entry", "A", []uint16{'b'}, sum + 1},
	} {
		image := small()
		root := image[1024:]
		copy(root[32:], root[:32])
		clear(root[:32])
		root[0], root[11], root[13] = 0x41, 0x0f, c.sum
		for i, u := range c.units {
			binary.LittleEndian.PutUint16(root[1+2*i:], u)
		}
		fsys, err := fat.Open(bytes.NewReader(image), int64(len(image)))
		require.NoError(t, err)
		var names []string
		for e, err := range fsys.ReadDir(fsys.Root()) {
			require.NoError(t, err)
			names = append(names, e.Name)
		}
		require.Equal(t, []string{c.want}, names, c.what)
	}
}

// TestShortName: code page 437, and the bits that say what is in small letters.
func TestShortName(t *testing.T) {
	for _, c := range []struct {
		raw  string
		bits byte
		want string
	}{
		{"NAME    TXT", 0, "NAME.TXT"},
		{"NAME    TXT", 0x08, "name.TXT"},
		{"NAME    TXT", 0x10, "NAME.txt"},
		{"NAME       ", 0x18, "name"},
		{"\x9aNICOD\x90 ", 0x08, "ünicodé"},
		{"\x05X         ", 0, "σX"},
		{"A B     C  ", 0, "A B.C"},
	} {
		image := small()
		copy(image[1024:], c.raw)
		image[1024+12] = c.bits
		fsys, err := fat.Open(bytes.NewReader(image), int64(len(image)))
		require.NoError(t, err)
		filesystemtest.Lookup(t, fsys, c.want)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(small(), uint16(0), small()[0]) // it stays as it is
	f.Add(small(), uint16(1024+11), byte(0x10))
	f.Fuzz(func(t *testing.T, image []byte, at uint16, b byte) {
		if len(image) > 0 {
			image = bytes.Clone(image)
			image[int(at)%len(image)] = b
		}
		filesystemtest.Hostile(t, bytes.NewReader(image), int64(len(image)), 2000, func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) {
			return fat.Open(r, size)
		})
	})
}

// BenchmarkRead reads a file in pieces.
func BenchmarkRead(b *testing.B) {
	image := makeImage(b, 300<<20, "-F", "32", "-s", "1")
	file := filepath.Join(b.TempDir(), "file")
	require.NoError(b, os.WriteFile(file, bytes.Repeat([]byte{1}, 200<<20), 0o600))
	tool(b, "mcopy", "-i", image, file, "::large")
	fsys := open(b, image)
	id := filesystemtest.Lookup(b, fsys, "large")
	b.SetBytes(200 << 20)
	for b.Loop() {
		r, err := fsys.Open(id)
		require.NoError(b, err)
		n, err := io.Copy(io.Discard, io.NewSectionReader(r, 0, 200<<20))
		require.NoError(b, err, fmt.Sprint(n))
	}
}
