package cli_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/mover/cli"
)

// runTool runs a program of Debian.
func runTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(name + " is not installed")
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

// bench with a repository that has an image of a device.
func newFiles(t *testing.T, image string, args ...string) *workbench {
	t.Helper()
	t.Setenv(cli.EnvPassword, "secret")
	dir := t.TempDir()
	b := &workbench{t: t, dir: dir, repo: filepath.Join(dir, "repo"), disk: image}
	b.must("", "repo", "create")
	b.must("", append([]string{"image", "backup", "--volume", volume, "--device", image, "--json"}, args...)...)
	return b
}

func (b *workbench) look(t *testing.T, args ...string) result {
	t.Helper()
	return b.run("", append([]string{"files"}, append(args, "--volume", volume)...)...)
}

// filesOf is how many files the trees have. The whole test has 20000.
func filesOf(t *testing.T) int {
	t.Helper()
	text := os.Getenv("BLOCKMOVER_FILES")
	if text == "" {
		return 2000
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

// TestFilesEqual copies a tree of odd files out of an image and compares with rsync, by content and metadata.
func TestFilesEqual(t *testing.T) {
	for kind, mkfs := range map[string][]string{
		"ext4": {"mkfs.ext4", "-q"},
		"xfs":  {"mkfs.xfs", "-q"},
	} {
		t.Run(kind, func(t *testing.T) {
			n := filesOf(t)
			size := int64(600<<20) + int64(n)*(24<<10)
			image := filesystemtest.Image(t, size, mkfs, func(root string) {
				tree := filepath.Join(root, "tree of files")
				require.NoError(t, os.Mkdir(tree, 0o751))
				filesystemtest.MakeTree(t, tree, filesystemtest.Tree{
					Files: n, Posix: true, Attributes: true, ACLs: true, LargeAttribute: 2000, Sparse: 64 << 20, Seed: 5,
				})
			})
			b := newFiles(t, image)
			out := filepath.Join(b.dir, "out")
			start := time.Now()
			copied := b.look(t, "cp", "/tree of files", out, "--special")
			require.NoError(t, copied.err, copied.messages)
			t.Logf("%d files in %s: %s", n, time.Since(start).Round(time.Millisecond), copied.messages)
			require.Contains(t, copied.messages, "not kept: sockets (1 files)")

			source := filepath.Join(filesystemtest.Mount(t, image, "ro"), "tree of files")
			requireSame(t, source, filepath.Join(out, "tree of files"))

			stream := filepath.Join(b.dir, "stream.tar")
			f, err := os.Create(stream)
			require.NoError(t, err)
			r := b.look(t, "tar", "/tree of files")
			require.NoError(t, r.err, r.messages)
			_, err = f.WriteString(r.out)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			unpacked := filepath.Join(b.dir, "unpacked")
			require.NoError(t, os.Mkdir(unpacked, 0o700))
			runTool(t, "tar", "-C", unpacked, "--xattrs", "--xattrs-include=*", "-xpf", stream)
			requireSame(t, source, filepath.Join(unpacked, "tree of files"))
		})
	}
}

// requireSame compares with rsync, and the space that files take.
func requireSame(t *testing.T, source, copied string) {
	t.Helper()
	diff := runTool(t, "rsync", "-anHAXc", "--modify-window=-1", "--delete", "--itemize-changes", "--exclude=/nodes/socket", source+"/", copied+"/")
	// A directory that the socket is missing in is no difference.
	require.Empty(t, strings.TrimSpace(diff))
	for _, name := range []string{"holes", "only-a-hole", "large"} {
		var from, to unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(source, name), &from))
		require.NoError(t, unix.Stat(filepath.Join(copied, name), &to))
		require.LessOrEqual(t, to.Blocks, from.Blocks+64, "%s has lost its holes", name)
	}
}

// fatImage is a disk with a partition of FAT and one of swap.
func fatDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	part, image, file := filepath.Join(dir, "part"), filepath.Join(dir, "disk"), filepath.Join(dir, "file")
	for path, size := range map[string]int64{part: 20 << 20, image: 40 << 20} {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Truncate(path, size))
	}
	require.NoError(t, os.WriteFile(file, bytes.Repeat([]byte("file\n"), 1<<18), 0o600))
	runTool(t, "mkfs.vfat", "-n", "LABEL", part)
	runTool(t, "mmd", "-i", part, "::dir")
	runTool(t, "mcopy", "-i", part, file, "::dir/a long name")
	script := filepath.Join(dir, "script")
	require.NoError(t, os.WriteFile(script, []byte("label: gpt\nstart=1M, size=20M\nstart=21M, size=4M\n"), 0o600))
	runTool(t, "sh", "-c", "sfdisk -q "+image+" < "+script)
	runTool(t, "dd", "if="+part, "of="+image, "bs=1M", "seek=1", "conv=notrunc", "status=none")
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("SWAPSPACE2"), 21<<20+4086)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return image
}

func TestFilesOfPartitions(t *testing.T) {
	b := newFiles(t, fatDisk(t))
	parts := b.look(t, "ls")
	require.NoError(t, parts.err)
	require.Regexp(t, `1 +vfat +20 MiB +LABEL +-\n2 +swap +4.0 MiB +- +it is swap space`, parts.out)
	var listed []cli.File
	require.NoError(t, json.Unmarshal([]byte(b.look(t, "ls", "-R", "-o", "json", "1").out), &listed))
	require.Len(t, listed, 2)
	require.Equal(t, "1/dir/a long name", listed[1].Path)
	require.Equal(t, int64(5<<18), listed[1].Size)
	require.Contains(t, b.look(t, "ls", "-l", "1/dir").out, "file  0755  0  0  1310720")
	require.Equal(t, strings.Repeat("file\n", 1<<18), b.look(t, "cat", "1/dir/a long name").out)
	for what, args := range map[string][]string{
		"does not begin with a part": {"ls", "3"},
		"2 can't be read":            {"ls", "2"},
		"does not exist":             {"cat", "1/missing"},
		"not where a pod mounts it":  {"ls", "1/data/dir"},
		"is no regular file":         {"cat", "1/dir"},
		"usage:":                     {"cp", "1"},
		"output format is":           {"ls", "-o", "xml"},
		`"a long name" is no direct`: {"ls", "1/dir/a long name/x"},
	} {
		require.ErrorContains(t, b.look(t, args...).err, what)
	}
	_, err := os.Stat(filepath.Join(b.dir, "not made"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Error(t, b.look(t, "cp", "1/missing", filepath.Join(b.dir, "not made")).err)
	_, err = os.Stat(filepath.Join(b.dir, "not made"))
	require.ErrorIs(t, err, fs.ErrNotExist)

	out := filepath.Join(b.dir, "out")
	require.NoError(t, b.look(t, "cp", "1", out).err)
	again := b.look(t, "cp", "1", out)
	require.ErrorContains(t, again.err, "1 files could not be copied")
	require.Contains(t, again.messages, "dir/a long name: it exists already")
	require.NoError(t, os.WriteFile(filepath.Join(out, "dir", "a long name"), []byte("mine"), 0o600))
	require.NoError(t, b.look(t, "cp", "1", out, "--overwrite").err)
	got, err := os.ReadFile(filepath.Join(out, "dir", "a long name"))
	require.NoError(t, err)
	require.Len(t, got, 5<<18)

	stream := b.look(t, "tar", "1/dir")
	require.NoError(t, stream.err)
	r := tar.NewReader(strings.NewReader(stream.out))
	for _, want := range []string{"dir/", "dir/a long name"} {
		h, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, want, h.Name)
	}
}

// TestFilesOfDamagedRepository: a file that cannot be read is named, and the others are copied.
func TestFilesOfDamagedRepository(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	b := newFiles(t, filesystemtest.Image(t, 64<<20, []string{"mkfs.ext4", "-q"}, func(root string) {
		for n := range 20 {
			content := make([]byte, 1<<20)
			_, _ = random.Read(content)
			require.NoError(t, os.WriteFile(filepath.Join(root, fmt.Sprint(n)), content, 0o600))
		}
	}))
	largest, size := "", int64(0)
	for _, pack := range b.files("p") {
		if info, err := os.Stat(pack); err == nil && info.Size() > size {
			largest, size = pack, info.Size()
		}
	}
	content, err := os.ReadFile(largest)
	require.NoError(t, err)
	content[size/2] ^= 1
	require.NoError(t, os.WriteFile(largest, content, 0o600))
	out := filepath.Join(b.dir, "out")
	r := b.look(t, "cp", "/", out)
	named := regexp.MustCompile(`(?m)^(\d+): read \d+ bytes at`).FindAllStringSubmatch(r.messages, -1)
	require.NotEmpty(t, named, r.messages)
	require.LessOrEqual(t, len(named), 3, "no chunk of 1 MiB has parts of more files")
	require.ErrorContains(t, r.err, fmt.Sprintf("cp: %d files could not be copied", len(named)))
	for _, name := range named {
		require.NoFileExists(t, filepath.Join(out, name[1]))
	}
	copied, err := os.ReadDir(out)
	require.NoError(t, err)
	require.Len(t, copied, 21-len(named), "20 files and lost+found, without those")
}

// slowStore is a read-only S3 server over a repository in a directory, behind a link on which everything takes latency. It counts
// connections.
func slowStore(t *testing.T, repo string, latency time.Duration) (address string, requests *sync.Map, connections *atomic.Int64) {
	t.Helper()
	blobs := map[string]string{}
	require.NoError(t, filepath.WalkDir(repo, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".f") {
			name, _ := filepath.Rel(repo, path)
			blobs["kopia/shop/"+strings.TrimSuffix(strings.ReplaceAll(name, "/", ""), ".f")] = path
		}
		return err
	}))
	requests, connections = &sync.Map{}, &atomic.Int64{}
	type object struct {
		Key          string
		LastModified string
		Size         int64
		ETag         string
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Store(fmt.Sprint(time.Now().UnixNano(), r.URL, r.Header.Get("Range")), true)
		time.Sleep(latency)
		key := strings.TrimPrefix(r.URL.Path, "/velero/")
		if r.URL.Query().Has("prefix") {
			var list struct {
				XMLName     xml.Name `xml:"ListBucketResult"`
				IsTruncated bool
				Contents    []object
			}
			for name, path := range blobs {
				if info, err := os.Stat(path); err == nil && strings.HasPrefix(name, r.URL.Query().Get("prefix")) {
					list.Contents = append(list.Contents, object{name, info.ModTime().UTC().Format(time.RFC3339), info.Size(), `"x"`})
				}
			}
			_ = xml.NewEncoder(w).Encode(list)
			return
		}
		if blobs[key] == "" {
			w.WriteHeader(http.StatusNotFound)
			_, _ = fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
			return
		}
		w.Header().Set("ETag", `"x"`)
		http.ServeFile(w, r, blobs[key])
	}))
	server.Listener = slowListener{server.Listener, latency}
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	return "s3://velero/kopia/shop?region=r&endpoint=" + server.URL, requests, connections
}

// slowListener makes the first bytes of a connection late by latency: the handshake.
type slowListener struct {
	net.Listener
	latency time.Duration
}

func (l slowListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return &slowConn{Conn: conn, latency: l.latency}, err
}

type slowConn struct {
	net.Conn
	latency time.Duration
	once    sync.Once
}

func (c *slowConn) Read(p []byte) (int, error) {
	c.once.Do(func() { time.Sleep(c.latency) })
	return c.Conn.Read(p)
}

// TestFilesOverSlowLink: the first listing of a volume of 100 GiB, and a file of 1 MiB, over a link of 20 ms.
func TestFilesOverSlowLink(t *testing.T) {
	for kind, mkfs := range map[string][]string{"ext4": {"mkfs.ext4", "-q"}, "xfs": {"mkfs.xfs", "-q"}} {
		t.Run(kind, func(t *testing.T) {
			want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			image := filesystemtest.Image(t, 100<<30, mkfs, func(root string) {
				filesystemtest.MakeTree(t, root, filesystemtest.Tree{Files: 1000, Posix: true, Seed: 1})
				require.NoError(t, os.WriteFile(filepath.Join(root, "tree", "d3", "one"), want, 0o600))
			})
			allocated := filepath.Join(t.TempDir(), "allocated")
			require.NoError(t, os.WriteFile(allocated, dataOf(t, image), 0o600))
			b := newFiles(t, image, "--allocated", allocated)
			address, requests, _ := slowStore(t, b.repo, 20*time.Millisecond)
			credentials := b.credentials()
			// On a machine that has time, most is kept with ease. The number of requests does not depend on it.
			measure := func(most time.Duration, mostRequests int, args ...string) string {
				t.Helper()
				requests.Clear()
				start := time.Now()
				r := b.command("", append(append([]string{"files"}, args...), "--volume", volume, "--repo", address, "--credentials-file", credentials)...)
				took := time.Since(start)
				require.NoError(t, r.err, r.messages)
				n := 0
				requests.Range(func(_, _ any) bool { n++; return true })
				t.Logf("%s: files %s: %s, %d requests", kind, strings.Join(args, " "), took.Round(time.Millisecond), n)
				require.Less(t, n, mostRequests)
				if os.Getenv("BLOCKMOVER_FILES") != "" {
					require.Less(t, took, most)
				}
				return r.out
			}
			require.Contains(t, measure(2*time.Second, 52, "ls", "-l", "/"), "/tree/")
			require.Equal(t, string(want), measure(3*time.Second, 55, "cat", "/tree/d3/one"))
		})
	}
}

func (b *workbench) credentials() string {
	b.t.Helper()
	file := filepath.Join(b.dir, "credentials")
	require.NoError(b.t, os.WriteFile(file, []byte("[default]\naws_access_key_id=a\naws_secret_access_key=b\n"), 0o600))
	return file
}

// TestConnectionsStayOpen: on a real link, a new connection takes longer than a request. A restore makes its requests in bursts, and
// the next burst uses the connections of the one before it.
func TestConnectionsStayOpen(t *testing.T) {
	b := newWorkbench(t)
	const volumeMiB, increments = 96, 12
	b.data = make([]byte, volumeMiB*mib)
	b.random(0, volumeMiB*mib)
	b.write()
	image := b.backup("")
	for n := range increments {
		var changed strings.Builder
		for m := range volumeMiB {
			at := m*mib + n*64<<10
			b.random(at, 4096)
			changed.WriteString(line(at, 4096))
		}
		b.write()
		image = b.backup(changed.String(), "--changed", "-")
	}
	address, requests, connections := slowStore(t, b.repo, 10*time.Millisecond)
	target := filepath.Join(b.dir, "target")
	require.NoError(t, os.WriteFile(target, make([]byte, len(b.data)), 0o600))
	r := b.command("", "image", "restore", "--snapshot", image.SnapshotID, "--device", target, "--repo", address, "--credentials-file", b.credentials())
	require.NoError(t, r.err, r.messages)
	got, err := os.ReadFile(target)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.data, got))
	made := 0
	requests.Range(func(_, _ any) bool { made++; return true })
	t.Logf("%d requests on %d connections", made, connections.Load())
	require.Less(t, int(connections.Load()), made/8)
}

// dataOf lists the ranges of a file that hold data.
func dataOf(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var list []byte
	for end := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if err != nil {
			return list
		}
		end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		require.NoError(t, err)
		list = append(list, line(int(start), int(end-start))...)
	}
}
