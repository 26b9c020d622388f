// Package filesystemtest has the contract of filesystem.FileSystem: a tree of odd files that the kernel
// makes, and the comparison of what the kernel shows with what a reader shows. It needs root, and
// loop devices.
package filesystemtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Tree says what MakeTree makes.
type Tree struct {
	// Files is how many small files there are, in nested directories and in one large one.
	Files int
	// Posix is set for file systems with owners, links, device nodes and any byte in a name.
	Posix bool
	// Attributes is set for file systems with extended attributes.
	Attributes bool
	// ACLs is set for file systems with POSIX ACLs.
	ACLs bool
	// LargeAttribute is the size of the largest extended attribute, in bytes; 0 is none.
	LargeAttribute int
	// Sparse is the size of the sparse files; 0 is none.
	Sparse int64
	// Seed makes the same tree again.
	Seed uint64
}

// MakeTree fills a directory.
func MakeTree(t testing.TB, dir string, tree Tree) {
	t.Helper()
	m := maker{t: t, random: rand.New(rand.NewPCG(tree.Seed, 1)), tree: tree}
	m.small(dir)
	m.crowded(filepath.Join(dir, "crowded"))
	m.large(dir)
	if tree.Sparse > 0 {
		m.sparse(dir)
	}
	if tree.Posix {
		m.links(dir)
		m.nodes(dir)
		m.names(dir)
	}
	if tree.Attributes {
		m.attributes(dir)
	}
}

type maker struct {
	t      testing.TB
	random *rand.Rand
	tree   Tree
}

func (m *maker) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.random.Uint32())
	}
	return b
}

func (m *maker) write(path string, content []byte) {
	m.t.Helper()
	require.NoError(m.t, os.WriteFile(path, content, 0o644))
}

// small makes half of the files, with sizes around those at which layouts change, and odd modes, owners and times.
func (m *maker) small(dir string) {
	m.t.Helper()
	sizes := []int{0, 1, 59, 60, 61, 155, 156, 511, 512, 513, 1023, 4095, 4096, 4097, 12 << 10, 65537}
	for i := range m.tree.Files / 2 {
		parent := filepath.Join(dir, "tree", fmt.Sprintf("d%d", i%7), fmt.Sprintf("e%d", i%31))
		require.NoError(m.t, os.MkdirAll(parent, 0o755))
		path := filepath.Join(parent, fmt.Sprintf("file-%d.dat", i))
		m.write(path, m.bytes(sizes[m.random.IntN(len(sizes))]))
		if m.tree.Posix {
			require.NoError(m.t, os.Chown(path, m.random.IntN(1<<31), m.random.IntN(1<<31)))
			require.NoError(m.t, unix.Chmod(path, uint32(m.random.IntN(0o10000))))
		}
		at := time.Unix(m.random.Int64N(1<<31), 0)
		if m.tree.Posix && i%3 == 0 {
			at = time.Unix(m.random.Int64N(1<<32)-(1<<30), m.random.Int64N(1e9)) // before 1970, too
		}
		if !m.tree.Posix {
			at = time.Unix(400000000+m.random.Int64N(1<<29)*2, 0) // after 1980, in steps of 2 s
		}
		require.NoError(m.t, os.Chtimes(path, at, at))
	}
}

// crowded makes the other half in one directory, and deletes some again, so that it has gaps.
func (m *maker) crowded(dir string) {
	m.t.Helper()
	require.NoError(m.t, os.MkdirAll(dir, 0o755))
	name := func(i int) string {
		return filepath.Join(dir, fmt.Sprintf("%d-%s", i, strings.Repeat("n", i%90)))
	}
	for i := range m.tree.Files / 2 {
		m.write(name(i), []byte(name(i)))
	}
	for i := 0; i < m.tree.Files/2; i += 5 {
		require.NoError(m.t, os.Remove(name(i)))
	}
}

// large makes files of megabytes, one of them in many pieces: two files that grow in turn.
func (m *maker) large(dir string) {
	m.t.Helper()
	m.write(filepath.Join(dir, "large"), m.bytes(5<<20+17))
	var pieces [2]*os.File
	for i := range pieces {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("pieces-%d", i)))
		require.NoError(m.t, err)
		pieces[i] = f
	}
	for range 150 {
		for _, f := range pieces {
			_, err := f.Write(m.bytes(4096))
			require.NoError(m.t, err)
			require.NoError(m.t, f.Sync())
		}
	}
	for _, f := range pieces {
		require.NoError(m.t, f.Close())
	}
}

// sparse makes files with holes, and with space that was reserved and never written.
func (m *maker) sparse(dir string) {
	m.t.Helper()
	create := func(name string, size int64) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(m.t, err)
		require.NoError(m.t, f.Truncate(size))
		return f
	}
	put := func(f *os.File, off int64, n int) {
		_, err := f.WriteAt(m.bytes(n), off)
		require.NoError(m.t, err)
	}
	size := m.tree.Sparse
	holes := create("holes", size)
	for range 40 {
		put(holes, m.random.Int64N(size-9000), 1+m.random.IntN(9000))
	}
	require.NoError(m.t, holes.Close())

	empty := create("only-a-hole", size)
	require.NoError(m.t, empty.Close())

	reserved := create("reserved", 3<<20)
	require.NoError(m.t, unix.Fallocate(int(reserved.Fd()), 0, 0, 3<<20))
	put(reserved, 1<<20+5, 100<<10)
	// Beyond the end, too.
	require.NoError(m.t, unix.Fallocate(int(reserved.Fd()), unix.FALLOC_FL_KEEP_SIZE, 3<<20, 1<<20))
	require.NoError(m.t, reserved.Close())
}

func (m *maker) links(dir string) {
	m.t.Helper()
	links := filepath.Join(dir, "links")
	require.NoError(m.t, os.MkdirAll(links, 0o755))
	m.write(filepath.Join(links, "one"), []byte("three names"))
	for _, name := range []string{"two", "three"} {
		require.NoError(m.t, os.Link(filepath.Join(links, "one"), filepath.Join(links, name)))
	}
	for _, n := range []int{1, 10, 59, 60, 61, 200, 1000, 1023, 1024, 4095} {
		if n > m.longestTarget() {
			continue
		}
		require.NoError(m.t, os.Symlink(strings.Repeat("t", n), filepath.Join(links, fmt.Sprintf("symbolic-%d", n))))
	}
	require.NoError(m.t, os.Symlink("../large", filepath.Join(links, "to-large")))
	require.NoError(m.t, os.Symlink("\xff\x01 \n", filepath.Join(links, "to-bytes")))
}

// longestTarget is the longest symbolic link that XFS takes; others take more.
func (m *maker) longestTarget() int { return 1023 }

func (m *maker) nodes(dir string) {
	m.t.Helper()
	nodes := filepath.Join(dir, "nodes")
	require.NoError(m.t, os.MkdirAll(nodes, 0o755))
	for name, n := range map[string]struct {
		mode uint32
		dev  uint64
	}{
		"block":    {unix.S_IFBLK | 0o660, unix.Mkdev(8, 17)},
		"char":     {unix.S_IFCHR | 0o600, unix.Mkdev(1, 3)},
		"large":    {unix.S_IFCHR | 0o600, unix.Mkdev(300, 70000)},
		"fifo":     {unix.S_IFIFO | 0o644, 0},
		"socket":   {unix.S_IFSOCK | 0o755, 0},
		"withheld": {unix.S_IFCHR, 0}, // 0:0, as overlayfs marks what is deleted
	} {
		require.NoError(m.t, unix.Mknod(filepath.Join(nodes, name), n.mode, int(n.dev)))
	}
	sticky := filepath.Join(nodes, "sticky")
	require.NoError(m.t, os.Mkdir(sticky, 0o755))
	require.NoError(m.t, unix.Chmod(sticky, 0o7777))
}

// names makes names with every byte that a name may have, and of every length.
func (m *maker) names(dir string) {
	m.t.Helper()
	names := filepath.Join(dir, "names")
	require.NoError(m.t, os.MkdirAll(names, 0o755))
	for b := range 256 {
		if b == 0 || b == '/' {
			continue
		}
		m.write(filepath.Join(names, "b"+string([]byte{byte(b)})), []byte{byte(b)})
	}
	for n := 1; n <= 255; n++ {
		m.write(filepath.Join(names, strings.Repeat("x", n)), nil)
	}
	for _, name := range []string{" ", "...", "-rf", "a\nb", "ünïcødé", "🎈", "\xc3\x28", "..x", "trailing ", "~", "*"} {
		require.NoError(m.t, os.Mkdir(filepath.Join(names, "dir "+name), 0o700))
	}
	deep := names
	for range 40 {
		deep = filepath.Join(deep, "deeper")
	}
	require.NoError(m.t, os.MkdirAll(deep, 0o755))
	m.write(filepath.Join(deep, "bottom"), []byte("bottom"))
}

func (m *maker) attributes(dir string) {
	m.t.Helper()
	where := filepath.Join(dir, "attributes")
	require.NoError(m.t, os.MkdirAll(where, 0o755))
	set := func(path, name string, value []byte) {
		m.t.Helper()
		require.NoError(m.t, unix.Lsetxattr(path, name, value, 0), name)
	}
	file := func(name string) string {
		path := filepath.Join(where, name)
		m.write(path, []byte(name))
		return path
	}
	few := file("few")
	set(few, "user.color", []byte("blue"))
	set(few, "user.empty", nil)
	set(few, "user.bytes", []byte{0, 255, 0})
	set(few, "trusted.key", []byte("value"))
	set(few, "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	many := file("many")
	for i := range 12 {
		set(many, fmt.Sprintf("user.attribute-%d", i), m.bytes(i*3))
	}
	set(where, "user.directory", []byte("of a directory"))
	link := filepath.Join(where, "link")
	require.NoError(m.t, os.Symlink("few", link))
	set(link, "trusted.link", []byte("of a symbolic link"))
	if m.tree.LargeAttribute > 0 {
		set(file("large"), "user.large", m.bytes(m.tree.LargeAttribute))
	}
	if !m.tree.ACLs {
		return
	}
	set(file("acl"), "system.posix_acl_access", acl)
	set(where, "system.posix_acl_access", acl)
	set(where, "system.posix_acl_default", acl)
}

// acl is an access control list as the kernel shows it (linux/posix_acl_xattr.h): version 2, then tag, permissions and ID
// of each entry: owner rwx, user 1234 rwx, group r-x, group 77 r--, mask rwx, others r--.
var acl = []byte{
	2, 0, 0, 0,
	0x01, 0, 7, 0, 0xff, 0xff, 0xff, 0xff,
	0x02, 0, 7, 0, 0xd2, 0x04, 0, 0,
	0x04, 0, 5, 0, 0xff, 0xff, 0xff, 0xff,
	0x08, 0, 4, 0, 77, 0, 0, 0,
	0x10, 0, 7, 0, 0xff, 0xff, 0xff, 0xff,
	0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff,
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
}
