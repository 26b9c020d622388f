package qcow2_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/qcow2"
	"github.com/blockmover/blockmover/internal/qcow2/qcow2test"
)

// format is how a file is made.
type format struct {
	version     string
	cluster     int64
	extended    bool
	compression string
	refcount    int
}

// formats covers what the format offers.
func formats() []format {
	var all []format
	for _, cluster := range []int64{4 << 10, 64 << 10, 512 << 10, 2 << 20} {
		all = append(all, format{version: "0.10", cluster: cluster, compression: "zlib"})
		for i, compression := range []string{"zlib", "zstd"} {
			all = append(all, format{version: "1.1", cluster: cluster, compression: compression, refcount: 1 << (2*i + 1)})
			if cluster >= 16<<10 {
				all = append(all, format{version: "1.1", cluster: cluster, compression: compression, extended: true, refcount: 64})
			}
		}
	}
	return all
}

func (f format) String() string {
	return fmt.Sprintf("%s, clusters of %d, extended %t, %s, refcounts of %d", f.version, f.cluster, f.extended, f.compression, f.refcount)
}

func (f format) create(t testing.TB, path string, size int64, backing string) {
	t.Helper()
	options := []string{"compat=" + f.version, fmt.Sprintf("cluster_size=%d", f.cluster)}
	if f.version != "0.10" {
		options = append(options, fmt.Sprintf("extended_l2=%t", f.extended), "compression_type="+f.compression)
	}
	if f.refcount != 0 {
		options = append(options, fmt.Sprintf("refcount_bits=%d", f.refcount))
	}
	args := []string{"qemu-img", "create", "-q", "-f", "qcow2", "-o", strings.Join(options, ",")}
	if backing != "" {
		args = append(args, "-b", backing, "-F", "qcow2")
	}
	qcow2test.QEMU(t, append(args, path, fmt.Sprint(size))...)
}

// scribble compresses some clusters of a new file, which QEMU does only once for each, and
// then writes, zeros and discards at random places.
func scribble(t testing.TB, rnd *rand.Rand, f format, path string, size int64, n int) {
	t.Helper()
	args := []string{"qemu-io", "-t", "unsafe", "-d", "unmap", "-f", "qcow2"}
	add := func(format string, a ...any) { args = append(args, "-c", fmt.Sprintf(format, a...)) }
	for c := range size / f.cluster {
		if rnd.IntN(4) == 0 && c < 32 {
			add("write -q -c -P %#x %d %d", 1+rnd.IntN(255), c*f.cluster, f.cluster)
		}
	}
	for range n {
		length := min((1+rnd.Int64N(2*f.cluster/512))*512, size/512*512)
		off := rnd.Int64N((size-length)/512+1) * 512
		switch rnd.IntN(6) {
		case 0:
			add("discard -q %d %d", off, length)
		case 1:
			add("write -q -z %d %d", off, length)
		case 2:
			add("write -q -z -u %d %d", off, length)
		default:
			add("write -q -P %#x %d %d", 1+rnd.IntN(255), off, length)
		}
	}
	qcow2test.QEMU(t, append(args, path)...)
}

// open opens files as layers, the top one first.
func open(t testing.TB, paths ...string) *qcow2.Stack {
	t.Helper()
	var layers []*qcow2.Layer
	for _, path := range paths {
		layers = append(layers, openLayer(t, path))
	}
	stack, err := qcow2.NewStack("", layers...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stack.Close()) })
	require.NoError(t, stack.Check(t.Context()))
	return stack
}

func openLayer(t testing.TB, path string) *qcow2.Layer {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	info, err := file.Stat()
	require.NoError(t, err)
	layer, err := qcow2.Open(file, info.Size())
	require.NoError(t, err)
	return layer
}

func readAll(t testing.TB, s *qcow2.Stack) []byte {
	t.Helper()
	data := make([]byte, s.Size())
	n, err := s.ReadAt(data, 0)
	require.NoError(t, err)
	require.Len(t, data, n)
	return data
}

// TestAgainstQEMU reads random chains of random files as QEMU does.
func TestAgainstQEMU(t *testing.T) {
	for i, f := range formats() {
		t.Run(f.String(), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(i), 7))
			dir := t.TempDir()
			var paths []string
			size := 3*f.cluster + (1+rnd.Int64N(4<<20/512))*512
			if i%3 == 0 {
				size = (1 + rnd.Int64N(f.cluster/512)) * 512
			}
			for depth := range 3 {
				path := filepath.Join(dir, fmt.Sprintf("layer-%d", depth))
				below := ""
				if depth > 0 {
					below = paths[0]
					size = max(512, size+(rnd.Int64N(16)-8)*512) // resized in between
				}
				g := f
				if depth == 1 {
					g.cluster = 64 << 10
				}
				g.create(t, path, size, below)
				scribble(t, rnd, g, path, size, 24)
				paths = append([]string{path}, paths...)
				stack := open(t, paths...)
				want := qcow2test.Raw(t, path)
				got := readAll(t, stack)
				qcow2test.RequireSame(t, want, got)
				requirePieces(t, rnd, stack, want)
				requireMap(t, path, openLayer(t, path))
			}
			require.Equal(t, paths[1], openLayer(t, paths[0]).BackingFile())
		})
	}
}

// requirePieces reads at any offset and of any length.
func requirePieces(t testing.TB, rnd *rand.Rand, s *qcow2.Stack, want []byte) {
	t.Helper()
	for range 50 {
		off := rnd.Int64N(s.Size())
		p := make([]byte, rnd.Int64N(min(s.Size()-off, 200<<10)+1))
		_, err := s.ReadAt(p, off)
		require.NoError(t, err)
		qcow2test.RequireSame(t, want[off:off+int64(len(p))], p)
	}
}

// requireMap compares what is absent from a layer, and that what QEMU calls data is not zero
// by our account.
func requireMap(t testing.TB, path string, l *qcow2.Layer) {
	t.Helper()
	var extents []struct {
		Start, Length       int64
		Depth               int
		Present, Zero, Data bool
	}
	require.NoError(t, json.Unmarshal([]byte(qcow2test.QEMU(t, "qemu-img", "map", "-f", "qcow2", "--output=json", path)), &extents))
	state := make([]qcow2.State, (l.Size()+511)/512)
	err := l.Extents(t.Context(), block.Extent{Length: l.Size()}, func(e qcow2.Extent) error {
		for off := e.Offset; off < e.End(); off += 512 {
			state[off/512] = e.State
		}
		return nil
	})
	require.NoError(t, err)
	for _, e := range extents {
		for off := e.Start; off < e.Start+e.Length; off += 512 {
			ours := state[off/512]
			if e.Depth == 0 && e.Present {
				require.NotEqual(t, qcow2.Absent, ours, "at %d", off)
				if e.Data {
					require.Equal(t, qcow2.Data, ours, "at %d", off)
				}
			} else if e.Depth > 0 && e.Present {
				require.Equal(t, qcow2.Absent, ours, "at %d", off)
			}
		}
	}
}

// TestPreallocated: QEMU gives clusters a place before they have data.
func TestPreallocated(t *testing.T) {
	for _, mode := range []string{"metadata", "falloc", "full"} {
		path := filepath.Join(t.TempDir(), "disk")
		qcow2test.QEMU(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation="+mode, path, "3145728")
		qcow2test.QEMU(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 7 65536 4096", path)
		qcow2test.RequireSame(t, qcow2test.Raw(t, path), readAll(t, open(t, path)))
	}
}
