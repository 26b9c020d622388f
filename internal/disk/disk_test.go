package disk_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/disk"
)

const mib = 1 << 20

// tool runs a program of Debian: the judge of what is on a disk.
func tool(t testing.TB, in, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(name + " is not installed")
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(in)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), errors.String())
	return string(out)
}

// attach makes a loop device of an image, until the end of the test.
func attach(t testing.TB, image string, options ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to attach loop devices")
	}
	device := strings.TrimSpace(tool(t, "", "losetup", append(options, "-f", "--show", image)...))
	t.Cleanup(func() { tool(t, "", "losetup", "-d", device) })
	return device
}

func makeDisk(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

// mark is what the tests take for a file system.
const mark = "a file system"

func isMarked(r io.ReaderAt, _ int64) (bool, error) {
	b := make([]byte, len(mark))
	n, _ := r.ReadAt(b, 0)
	return string(b[:n]) == mark, nil
}

func write(t testing.TB, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(text), off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func find(t testing.TB, path string) []disk.Part {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	require.NoError(t, err)
	parts, err := disk.Find(f, info.Size(), isMarked)
	require.NoError(t, err)
	return parts
}

// TestPartitions compares with what sfdisk says.
func TestPartitions(t *testing.T) {
	for name, script := range map[string]string{
		"MBR":      "label: dos\nsize=3M\nsize=5M, type=82\n",
		"extended": "label: dos\nsize=3M\nsize=30M, type=E\nsize=2M\nsize=4M, type=L\nsize=4M, type=L\nsize=3M, type=L\n",
		"GPT":      "label: gpt\nsize=3M, name=\"one name\"\n5: size=5M, name=\"ünïcødé\"\n",
		"4K":       "label: gpt\nsize=3M\nsize=5M\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := makeDisk(t, 64*mib)
			node := path
			if name == "4K" {
				node = attach(t, path, "-b", "4096")
			}
			tool(t, script, "sfdisk", "-q", node)
			var judge struct {
				PartitionTable struct {
					SectorSize int64
					Partitions []struct {
						Node, Name, Type string
						Start, Size      int64
					}
				}
			}
			require.NoError(t, json.Unmarshal([]byte(tool(t, "", "sfdisk", "-J", node)), &judge))
			unit := max(judge.PartitionTable.SectorSize, 512)
			type fact struct {
				name, label string
				start, size int64
			}
			var want, got []fact
			for _, p := range judge.PartitionTable.Partitions {
				if p.Type == "f" || p.Type == "5" {
					continue // the extended one
				}
				write(t, path, p.Start*unit, mark)
				write(t, path, p.Start*unit+100, fmt.Sprintf("%12d", p.Start*unit))
				want = append(want, fact{strings.TrimLeft(strings.TrimPrefix(p.Node, node), "p"), p.Name, p.Start * unit, p.Size * unit})
			}
			require.NotEmpty(t, want)
			for _, p := range find(t, path) {
				require.Empty(t, p.Reason)
				b := make([]byte, 12)
				_, err := p.Content.ReadAt(b, 100)
				require.NoError(t, err)
				var start int64
				_, err = fmt.Sscan(string(b), &start)
				require.NoError(t, err)
				n, err := p.Content.ReadAt(make([]byte, 2), p.Size-1)
				require.Equal(t, 1, n)
				require.ErrorIs(t, err, io.EOF)
				got = append(got, fact{p.Name, p.Label, start, p.Size})
			}
			require.ElementsMatch(t, want, got)
		})
	}
}

// TestCopyOfGPT: the copy at the end counts when the first one is damaged; when both are, that is the reason.
func TestCopyOfGPT(t *testing.T) {
	path := makeDisk(t, 64*mib)
	tool(t, "label: gpt\nsize=3M\nsize=5M\n", "sfdisk", "-q", path)
	write(t, path, mib, mark)
	want := []string{"1", "2"}
	names := func() (names []string) {
		for _, p := range find(t, path) {
			names = append(names, p.Name)
		}
		return names
	}
	require.Equal(t, want, names())
	write(t, path, 1024+40, "x") // the first entry
	require.Equal(t, want, names())
	write(t, path, 512, "gone")
	require.Equal(t, want, names())
	write(t, path, 64*mib-512+20, "x")
	parts := find(t, path)
	require.Len(t, parts, 1)
	require.NotEmpty(t, parts[0].Reason)
}

func TestKnownKinds(t *testing.T) {
	for kind, commands := range map[string][]string{
		"swap":  {"mkswap"},
		"btrfs": {"mkfs.btrfs"},
	} {
		t.Run(kind, func(t *testing.T) {
			path := makeDisk(t, 128*mib)
			tool(t, "", commands[0], append(commands[1:], path)...)
			parts := find(t, path)
			require.Len(t, parts, 1)
			require.Equal(t, kind, parts[0].Kind)
			require.Nil(t, parts[0].Content)
			require.NotEmpty(t, parts[0].Reason)
		})
	}
	for kind, c := range map[string]struct {
		at    int64
		magic string
	}{
		"crypto_LUKS":       {0, "LUKS\xba\xbe\x00\x02"},
		"zfs_member":        {128<<10 + 24<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
		"linux_raid_member": {4096, "\xfc\x4e\x2b\xa9"},
		"bcache":            {4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	} {
		path := makeDisk(t, 4*mib)
		write(t, path, c.at, c.magic)
		parts := find(t, path)
		require.Len(t, parts, 1)
		require.Equal(t, kind, parts[0].Kind)
	}
	path := makeDisk(t, 4*mib)
	write(t, path, 4*mib-64<<10, "\xfc\x4e\x2b\xa9")
	require.Equal(t, "linux_raid_member", find(t, path)[0].Kind)
	empty := find(t, makeDisk(t, 4*mib))
	require.Len(t, empty, 1)
	require.Contains(t, empty[0].Reason, "it is empty")
	require.Len(t, find(t, makeDisk(t, 100)), 1)
}

// TestHostileTables: none of them is followed.
func TestHostileTables(t *testing.T) {
	le := binary.LittleEndian
	entry := func(b []byte, n int, kind byte, first, size uint32) {
		e := b[446+16*n:]
		e[4] = kind
		le.PutUint32(e[8:], first)
		le.PutUint32(e[12:], size)
		b[510], b[511] = 0x55, 0xaa
	}
	look := func(b []byte) []disk.Part {
		parts, err := disk.Find(bytes.NewReader(b), int64(len(b)), isMarked)
		require.NoError(t, err)
		return parts
	}
	b := make([]byte, mib)
	entry(b, 0, 5, 10, 100)
	entry(b[10*512:], 0, 5, 5, 100)
	entry(b[15*512:], 0, 5, 5, 100) // points at itself
	require.Contains(t, look(b)[0].Reason, "loop")

	b = make([]byte, mib)
	entry(b, 0, 5, 1<<31, 100)
	require.Contains(t, look(b)[0].Reason, "outside of the disk")
	b = make([]byte, mib)
	entry(b, 0, 0x83, 1<<31, 1<<31)
	require.Contains(t, look(b)[0].Reason, "the disk has 2048")
	b = make([]byte, mib)
	entry(b, 0, 0x83, 0, 100)
	require.Contains(t, look(b)[0].Reason, "from block 0", "a partition with the table is the disk again")

	for what, change := range map[string]func(h []byte){
		"entries of no bytes": func(h []byte) { le.PutUint32(h[84:], 0) },
		"too many entries":    func(h []byte) { le.PutUint32(h[80:], 1<<31) },
		"outside":             func(h []byte) { le.PutUint64(h[72:], 1<<60) },
		"a large header":      func(h []byte) { le.PutUint32(h[12:], 1<<30) },
		"another place":       func(h []byte) { le.PutUint64(h[24:], 7) },
	} {
		b := make([]byte, mib)
		entry(b, 0, 0xee, 1, 2047)
		h := b[512:1024]
		copy(h, "EFI PART")
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[24:], 1)
		le.PutUint64(h[72:], 2)
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		change(h)
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		parts := look(b)
		require.Len(t, parts, 1, what)
		require.NotEmpty(t, parts[0].Reason, what)
		require.Equal(t, "gpt", parts[0].Kind, what)
	}
}

// damage changes random bytes of the places that have tables. Nothing must panic or run on for ever.
func damage(t *testing.T, image []byte, rounds int) {
	random := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		b := bytes.Clone(image)
		for range 1 + random.IntN(20) {
			b[random.IntN(1<<16)] = byte(random.Uint32())
		}
		parts, err := disk.Find(bytes.NewReader(b), int64(len(b)), isMarked)
		require.NoError(t, err, "reading works: what is damaged is a part")
		for _, p := range parts {
			require.Equal(t, p.Reason == "", p.Content != nil)
			if p.Content != nil {
				_, _ = p.Content.ReadAt(make([]byte, 100), p.Size-50)
			}
		}
	}
}
