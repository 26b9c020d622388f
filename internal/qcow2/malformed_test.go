package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/qcow2"
	"github.com/blockmover/blockmover/internal/qcow2/qcow2test"
)

// The parts of the file that build makes, by their offsets.
const (
	clusterSize   = 4096
	refcountTable = 1 * clusterSize
	refcountBlock = 2 * clusterSize
	l1Table       = 3 * clusterSize
	l2Table       = 4 * clusterSize
	dataCluster   = 5 * clusterSize
	diskSize      = 8 * clusterSize
)

// build makes a file of version 3 with one cluster of data (cluster 1 of the disk), one of
// zeros (2), and nothing else.
func build() []byte {
	f := make([]byte, 6*clusterSize)
	be := binary.BigEndian
	copy(f, "QFI\xfb")
	be.PutUint32(f[4:], 3)
	be.PutUint32(f[20:], 12)
	be.PutUint64(f[24:], diskSize)
	be.PutUint32(f[36:], 1)
	be.PutUint64(f[40:], l1Table)
	be.PutUint64(f[48:], refcountTable)
	be.PutUint32(f[56:], 1)
	be.PutUint32(f[96:], 4)
	be.PutUint32(f[100:], 104)
	be.PutUint64(f[refcountTable:], refcountBlock)
	for i := range 6 {
		be.PutUint16(f[refcountBlock+2*i:], 1)
	}
	be.PutUint64(f[l1Table:], 1<<63|l2Table)
	be.PutUint64(f[l2Table+8:], 1<<63|dataCluster)
	be.PutUint64(f[l2Table+16:], 1)
	for i := range clusterSize {
		f[dataCluster+i] = byte(i%251 + 1)
	}
	return f
}

// use does with a file what a backup does.
func use(t testing.TB, f []byte) ([]byte, error) {
	t.Helper()
	layer, err := qcow2.Open(bytes.NewReader(f), int64(len(f)))
	if err != nil {
		return nil, err
	}
	stack, err := qcow2.NewStack("", layer)
	require.NoError(t, err)
	if err := stack.Check(t.Context()); err != nil {
		return nil, err
	}
	data := make([]byte, stack.Size())
	_, err = stack.ReadAt(data, 0)
	return data, err
}

func TestBuiltFile(t *testing.T) {
	f := build()
	data, err := use(t, f)
	require.NoError(t, err)
	want := make([]byte, diskSize)
	copy(want[clusterSize:], f[dataCluster:])
	qcow2test.RequireSame(t, want, data)
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, f, 0o600))
	qcow2test.QEMU(t, "qemu-img", "check", "-f", "qcow2", path)
	qcow2test.RequireSame(t, qcow2test.Raw(t, path), data)
	var states []qcow2.State
	err = openLayer(t, path).Extents(t.Context(), block.Extent{Length: diskSize}, func(e qcow2.Extent) error {
		states = append(states, e.State)
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []qcow2.State{qcow2.Absent, qcow2.Data, qcow2.Zero, qcow2.Absent}, states)
}

// TestMalformed changes one thing in a good file.
func TestMalformed(t *testing.T) {
	u32 := func(off int, v uint32) func([]byte) { return func(f []byte) { binary.BigEndian.PutUint32(f[off:], v) } }
	u64 := func(off int, v uint64) func([]byte) { return func(f []byte) { binary.BigEndian.PutUint64(f[off:], v) } }
	both := func(a, b func([]byte)) func([]byte) { return func(f []byte) { a(f); b(f) } }
	extended := both(u64(72, 16), u32(20, 14)) // clusters of 16 KiB: the tables are not where they should be
	for name, tc := range map[string]struct {
		change func([]byte)
		want   string
	}{
		"magic":                          {u32(0, 0), "it begins with"},
		"version 1":                      {u32(4, 1), "version is 1"},
		"version 4":                      {u32(4, 4), "version is 4"},
		"small clusters":                 {u32(20, 8), "2^8 bytes"},
		"huge clusters":                  {u32(20, 63), "2^63 bytes"},
		"no disk":                        {u64(24, 0), "the disk has 0 bytes"},
		"negative disk":                  {u64(24, 1<<63), "the disk has 9223372036854775808 bytes"},
		"disk beyond the L1 table":       {u64(24, 1<<40), "the L1 table has 1 entries"},
		"encryption":                     {u32(32, 1), "it is encrypted"},
		"LUKS":                           {u32(32, 2), "it is encrypted"},
		"huge L1 table":                  {u32(36, 1<<32-1), "the L1 table has"},
		"L1 table beyond the file":       {u64(40, 1<<40), "the L1 table of 8 bytes is at 1099511627776"},
		"L1 table at an odd place":       {u64(40, l1Table+8), "no multiple of the cluster size"},
		"L1 table on the header":         {u64(40, 0), "where the header is"},
		"L1 table on the refcounts":      {u64(40, refcountTable), "is where something else is"},
		"no refcount table":              {u32(56, 0), "the refcount table has 0 clusters"},
		"huge refcount table":            {u32(56, 1<<31), "the refcount table has"},
		"refcount table beyond the file": {u64(48, 1<<62), "the refcount table of"},
		"refcount table at 0":            {u64(48, 0), "where the header is"},
		"dirty":                          {u64(72, 1), "marked as dirty"},
		"corrupt":                        {u64(72, 2), "marked as corrupt"},
		"external data":                  {u64(72, 4), "external file"},
		"unknown feature":                {u64(72, 1<<17), "incompatible feature of bit 17"},
		"compression without a type":     {u64(72, 8), "the feature bit says otherwise"},
		"subclusters of small clusters":  {u64(72, 16), "a cluster with subclusters has 2^12 bytes"},
		"subclusters":                    {extended, "no multiple of the cluster size"},
		"wide refcounts":                 {u32(96, 7), "a refcount has 2^7 bits"},
		"short header":                   {u32(100, 72), "the header has 72 bytes"},
		"long header":                    {u32(100, 1<<20), "the header has 1048576 bytes"},
		"long backing name":              {both(u64(8, 256), u32(16, 4096)), "the name of the backing file has 4096 bytes"},
		"backing name beyond the file":   {both(u64(8, 1<<50), u32(16, 8)), "the name of the backing file is outside"},
		"L2 table beyond the file":       {u64(l1Table, 1<<63|1<<40), "L2 table 0 of 4096 bytes is at"},
		"L2 table past the last cluster": {u64(l1Table, 1<<63|6*clusterSize), "L2 table 0 of 4096 bytes is at"},
		"L2 table is the L1 table":       {u64(l1Table, 1<<63|l1Table), "is where something else is"},
		"L2 table is a refcount block":   {u64(l1Table, 1<<63|refcountBlock), "is where something else is"},
		"L2 table at an odd place":       {u64(l1Table, 1<<63|l2Table|512), "no multiple of the cluster size"},
		"reserved bits of L1":            {u64(l1Table, 1<<63|l2Table|1), "reserved bits"},
		"cluster is its own table":       {u64(l2Table, 1<<63|l2Table), "cluster 0 at"},
		"cluster is the L1 table":        {u64(l2Table, 1<<63|l1Table), "cluster 0 at"},
		"cluster used twice":             {u64(l2Table+24, 1<<63|dataCluster), "cluster 3 at"},
		"cluster beyond the file":        {u64(l2Table+24, 1<<63|6*clusterSize), "cluster 3 of 4096 bytes is at"},
		"cluster at an odd place":        {u64(l2Table+24, 1<<63|dataCluster|1024), "no multiple of the cluster size"},
		"reserved bits of L2":            {u64(l2Table+24, 1<<60|dataCluster), "reserved bits"},
		"zero cluster in version 2":      {both(u32(4, 2), u64(l2Table+16, 1)), "reserved bits"},
		"compressed beyond the file":     {u64(l2Table+24, 1<<62|1<<40), "compressed cluster 3 is at"},
		"compressed on the header":       {u64(l2Table+24, 1<<62|100), "compressed cluster 3 is at"},
		"compressed on a cluster":        {u64(l2Table+24, 1<<62|dataCluster), "is where something else is"},
		"refcount block beyond the file": {u64(refcountTable, 1<<40), "refcount block 0 of 4096 bytes"},
		"refcount block is the table":    {u64(refcountTable, refcountTable), "is where something else is"},
		"no refcount block":              {u64(refcountTable, 0), "in use, and not counted"},
		"data counted as free":           {func(f []byte) { f[refcountBlock+2*5+1] = 0 }, "the cluster at 20480 of the file is in use, and counted as free"},
		"L2 table counted as free":       {func(f []byte) { f[refcountBlock+2*4+1] = 0 }, "the cluster at 16384 of the file is in use, and counted as free"},
	} {
		t.Run(name, func(t *testing.T) {
			f := build()
			tc.change(f)
			_, err := use(t, f)
			require.ErrorContains(t, err, tc.want)
			require.True(t, strings.Contains(err.Error(), qcow2.ErrMalformed.Error()) || strings.Contains(err.Error(), qcow2.ErrUnsupported.Error()), err)
		})
	}
}

// TestTruncated cuts a file at every byte. What is left is refused, or holds the disk.
func TestTruncated(t *testing.T) {
	f := build()
	want, err := use(t, f)
	require.NoError(t, err)
	for n := range f {
		data, err := use(t, f[:n])
		require.Error(t, err, "cut to %d bytes", n)
		require.Nil(t, data)
	}
	// A file may be longer than what is in use.
	data, err := use(t, append(f, make([]byte, 3*clusterSize+1)...))
	require.NoError(t, err)
	qcow2test.RequireSame(t, want, data)
}

// TestTruncatedByQEMU does the same with a file that has compressed clusters.
func TestTruncatedByQEMU(t *testing.T) {
	for _, compression := range []string{"zlib", "zstd"} {
		path := filepath.Join(t.TempDir(), "disk")
		qcow2test.QEMU(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096,compression_type="+compression, path, "65536")
		qcow2test.QEMU(t, "qemu-io", "-f", "qcow2", "-c", "write -q -c -P 3 0 4096", "-c", "write -q -P 5 8192 4096", "-c", "write -q -c -P 9 4096 4096", path)
		f, err := os.ReadFile(path)
		require.NoError(t, err)
		want := qcow2test.Raw(t, path)
		refused := 0
		for n := range f {
			if data, err := use(t, f[:n]); err == nil {
				qcow2test.RequireSame(t, want, data)
				continue
			}
			refused++
		}
		require.Greater(t, refused, len(f)/2)
	}
}

// FuzzLayer feeds the reader with anything. It must end, with bounded memory, and Extents and
// ReadAt must agree.
func FuzzLayer(f *testing.F) {
	f.Add(build())
	small := build()
	binary.BigEndian.PutUint64(small[l2Table+24:], 1<<62|5*clusterSize+100)
	f.Add(small)
	if _, err := exec.LookPath("qemu-img"); err == nil {
		rnd := rand.New(rand.NewPCG(1, 1))
		for i, format := range []format{
			{version: "0.10", cluster: 512, compression: "zlib"},
			{version: "1.1", cluster: 512, compression: "zstd", refcount: 2},
			{version: "1.1", cluster: 16 << 10, compression: "zlib", extended: true},
		} {
			path := filepath.Join(f.TempDir(), fmt.Sprint(i))
			format.create(f, path, 8*format.cluster, "")
			scribble(f, rnd, format, path, 8*format.cluster, 4)
			data, err := os.ReadFile(path)
			require.NoError(f, err)
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		layer, err := qcow2.Open(bytes.NewReader(data), int64(len(data)))
		if err == nil {
			err = layer.Check(t.Context())
		}
		runtime.ReadMemStats(&after)
		// A cluster has at most 2 MiB, and each table is read once.
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16<<20+64*len(data)))
		if err != nil {
			return
		}
		stack, err := qcow2.NewStack("", layer)
		require.NoError(t, err)
		read := int64(0)
		end := int64(0)
		err = layer.Extents(t.Context(), block.Extent{Length: layer.Size()}, func(e qcow2.Extent) error {
			require.Equal(t, end, e.Offset)
			end = e.End()
			p := make([]byte, min(e.Length, 64<<10))
			if read += int64(len(p)); read > 8<<20 {
				return nil
			}
			_, err := stack.ReadAt(p, e.Offset)
			if e.State != qcow2.Data {
				require.NoError(t, err)
				require.True(t, block.IsZero(p))
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, layer.Size(), end)
	})
}
