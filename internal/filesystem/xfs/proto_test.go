package xfs_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// TestFormats reads formats that the kernel here does not mount. mkfs.xfs fills them, and xfs_db sets extended attributes.
func TestFormats(t *testing.T) {
	for _, options := range []string{
		"-m crc=0 -b size=512 -n ftype=0",
		"-m crc=0 -b size=512 -n size=4096,ftype=1 -l version=1",
		"-m crc=0 -i size=2048 -n version=ci",
		"-m crc=0 -b size=32768 -i projid32bit=0",
		"-n version=ci -n size=16384",
	} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			image := filepath.Join(dir, "image")
			require.NoError(t, os.WriteFile(image, nil, 0o600))
			require.NoError(t, os.Truncate(image, 400<<20))
			contents := proto(t, dir, strings.Contains(options, "crc=0"))
			command(t, "mkfs.xfs", append(append([]string{"-q", "-p", filepath.Join(dir, "proto")}, strings.Fields(options)...), image)...)

			id := filesystemtest.Lookup(t, open(t, image), "large")
			sizes := []int{1, 100, 1000, 5000, 65536}
			sets := []string{"-x", "-c", fmt.Sprintf("inode %d", id)}
			for _, n := range sizes {
				for _, space := range []string{"-u", "-r", "-s"} {
					sets = append(sets, "-c", fmt.Sprintf("attr_set %s -v %d a%d", space, n, n))
				}
			}
			for i := range 300 { // more than a leaf
				sets = append(sets, "-c", fmt.Sprintf("attr_set -u -v 20 %s%d", strings.Repeat("n", 100), i))
			}
			command(t, "xfs_db", append(sets, image)...)

			fsys := open(t, image)
			got, err := fsys.Attributes(id)
			require.NoError(t, err)
			require.Len(t, got, 3*len(sizes)+300)
			for _, n := range sizes {
				for _, space := range []string{"user", "trusted", "security"} {
					require.Equal(t, n, len(got[fmt.Sprintf("%s.a%d", space, n)]))
					require.Equal(t, n, bytes.Count(got[fmt.Sprintf("%s.a%d", space, n)], []byte("v")))
				}
			}
			require.Equal(t, contents, list(t, fsys, fsys.Root(), "", map[string]string{}))
		})
	}
}

// proto writes a description of files for mkfs.xfs, and returns what it describes: for each path the mode, owner and content.
//
// This mkfs.xfs writes long targets of symbolic links without the headers of version 5.
func proto(t *testing.T, dir string, longLinks bool) map[string]string {
	t.Helper()
	want := map[string]string{}
	var b strings.Builder
	b.WriteString("/dev/null\n0 0\nd--755 1 2\n")
	file := func(name, path string, n int) {
		source := filepath.Join(dir, fmt.Sprintf("source%d", n))
		content := strings.Repeat(fmt.Sprint(n), n)
		require.NoError(t, os.WriteFile(source, []byte(content), 0o600))
		fmt.Fprintf(&b, "%s -u-644 %d 7 %s\n", name, n, source)
		want[path] = fmt.Sprintf("%v %d:7 %s", fs.ModeSetuid|0o644, n, content)
	}
	file("large", "/large", 300001)
	for _, n := range []int{1, 100, 300, 1000} {
		if n > 300 && !longLinks {
			continue
		}
		name, target := fmt.Sprintf("link%d", n), strings.Repeat("t", n)
		fmt.Fprintf(&b, "%s l--777 3 4 %s\n", name, target)
		want["/"+name] = fmt.Sprintf("%v 3:4 %s", fs.ModeSymlink|0o777, target)
	}
	b.WriteString("node b--600 0 0 259 70000\nfifo p--600 0 0\n")
	want["/node"] = fmt.Sprintf("%v 0:0 259:70000", fs.ModeDevice|0o600)
	want["/fifo"] = fmt.Sprintf("%v 0:0 ", fs.ModeNamedPipe|0o600)
	for _, n := range []int{1, 20, 100, 1500} {
		fmt.Fprintf(&b, "d%d d-g750 5 6\n", n)
		want[fmt.Sprintf("/d%d", n)] = fmt.Sprintf("%v 5:6 ", fs.ModeDir|fs.ModeSetgid|0o750)
		for i := range n {
			name := fmt.Sprintf("F%d%s", i, strings.Repeat("x", i%90))
			file(name, fmt.Sprintf("/d%d/%s", n, name), i%600)
		}
		b.WriteString("$\n")
	}
	b.WriteString("$\n$\n")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "proto"), []byte(b.String()), 0o600))
	return want
}

// list returns what a reader shows, in the form of proto.
func list(t *testing.T, fsys filesystem.FileSystem, id filesystem.ID, path string, all map[string]string) map[string]string {
	t.Helper()
	for e, err := range fsys.ReadDir(id) {
		require.NoError(t, err)
		at := path + "/" + e.Name
		info, err := fsys.Stat(e.ID)
		require.NoError(t, err)
		content := ""
		switch info.Mode.Type() {
		case 0:
			r, err := fsys.Open(e.ID)
			require.NoError(t, err)
			b, err := io.ReadAll(io.NewSectionReader(r, 0, info.Size))
			require.NoError(t, err)
			content = string(b)
		case fs.ModeSymlink:
			content, err = fsys.ReadLink(e.ID)
			require.NoError(t, err)
		case fs.ModeDevice:
			content = fmt.Sprintf("%d:%d", info.Major, info.Minor)
		case fs.ModeDir:
			list(t, fsys, e.ID, at, all)
		default:
		}
		all[at] = fmt.Sprintf("%v %d:%d %s", info.Mode, info.UID, info.GID, content)
	}
	return all
}
