package kopia

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/object"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
)

const testPassword = "correct horse"

var testVolume = repository.VolumeKey{Namespace: "shop", PVC: "db"}

// newStore makes a repository in a temporary directory.
func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, newRepository(t))
}

// newRepository copies one that was made once, because kopia derives its keys slowly, and on
// purpose.
func newRepository(t testing.TB) string {
	t.Helper()
	return newRepositoryIn(t, t.TempDir())
}

func newRepositoryIn(t testing.TB, parent string) string {
	t.Helper()
	template, err := makeTemplate()
	require.NoError(t, err)
	dir := filepath.Join(parent, "repo")
	require.NoError(t, os.CopyFS(dir, os.DirFS(template)))
	return dir
}

var templateDir string

var makeTemplate = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(templateDir, "repo")
	return dir, CreateFilesystem(context.Background(), dir, testPassword)
})

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "repository")
	if err != nil {
		panic(err)
	}
	templateDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenFilesystem(t.Context(), dir, testPassword)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	return s
}

// testMeta cuts small volumes finely, so that a test has many segments.
func testMeta(size int64, at time.Time) repository.Meta {
	return repository.Meta{
		Size: size, ChunkSize: 4 << 10, SegmentSize: 16 << 10,
		Driver: "csi.example.com", VolumeHandle: "vol", SnapshotHandle: "snap", ChangeID: "change",
		SnapshotTime: at, Mover: "blockmover",
	}
}

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// backup writes the given chunks of data and saves the image.
func backup(t testing.TB, s *Store, meta repository.Meta, parent repository.SnapshotID, data []byte, chunks []int64) (repository.SnapshotID, repository.WriteStats) {
	t.Helper()
	w, err := s.NewWriter(t.Context(), meta, nextOperation(parent))
	require.NoError(t, err)
	for _, c := range chunks {
		require.NoError(t, w.Put(t.Context(), c, chunkOf(meta, data, c)))
	}
	return commit(t, w)
}

var operations int

// nextOperation returns the options of the writer of a new operation.
func nextOperation(parent repository.SnapshotID) repository.WriterOptions {
	operations++
	return repository.WriterOptions{Volume: testVolume, Operation: fmt.Sprintf("op-%d", operations), Parent: parent}
}

// named is what images are committed with.
var named = repository.Snapshot{Start: testTime, End: testTime.Add(time.Minute)}

func commit(t testing.TB, w repository.VolumeWriter) (repository.SnapshotID, repository.WriteStats) {
	t.Helper()
	id, stats, err := w.Commit(t.Context(), named)
	require.NoError(t, err)
	return id, stats
}

// chunkOf is one chunk of the volume, padded with zeros.
func chunkOf(meta repository.Meta, data []byte, chunk int64) []byte {
	buf := make([]byte, meta.ChunkSize)
	copy(buf, data[chunk*meta.ChunkSize:])
	return buf
}

func allChunks(t testing.TB, meta repository.Meta) []int64 {
	t.Helper()
	g, err := block.NewGeometry(meta.Size, meta.ChunkSize)
	require.NoError(t, err)
	var all []int64
	for c := range g.Chunks() {
		all = append(all, c)
	}
	return all
}

// requireImage reads an image with both readers, ours and kopia's.
func requireImage(t testing.TB, s *Store, id repository.SnapshotID, want []byte) {
	t.Helper()
	r, err := s.OpenReader(t.Context(), id)
	require.NoError(t, err)
	got := make([]byte, len(want))
	n, err := r.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, len(want), n)
	require.True(t, bytes.Equal(want, got), "our reader")
	require.Equal(t, int64(len(want)), r.Meta().Size)
	_, err = r.ReadAt(make([]byte, 1), int64(len(want)))
	require.ErrorIs(t, err, io.EOF)

	stock := readStock(t, s, id)
	require.True(t, bytes.Equal(want, stock[:len(want)]), "stock kopia")
	require.True(t, block.IsZero(stock[len(want):]), "padding")
	require.Zero(t, int64(len(stock))%r.Meta().ChunkSize)
	require.NoError(t, r.Close())
}

// readStock reads disk.raw through kopia's object reader.
func readStock(t testing.TB, s *Store, id repository.SnapshotID) []byte {
	t.Helper()
	_, img, err := s.load(t.Context(), id)
	require.NoError(t, err)
	return readStockObject(t, s, img.disk)
}

func readStockObject(t testing.TB, s *Store, id object.ID) []byte {
	t.Helper()
	o, err := s.rep.OpenObject(t.Context(), id)
	require.NoError(t, err)
	all, err := io.ReadAll(o)
	require.NoError(t, err)
	require.Equal(t, o.Length(), int64(len(all)))
	return all
}

func randomBytes(rnd *rand.Rand, n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// TestStockKopiaReadsImages is the promise of the package: kopia's own reader finds the same
// bytes in an image of any shape.
func TestStockKopiaReadsImages(t *testing.T) {
	s := newStore(t)
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int64{
		1, 511, 4096, 4097, // one segment
		16 << 10, 16<<10 + 1, 100<<10 + 512, // a few
		pieceEntries * 16 << 10,       // a root of exactly one piece
		pieceEntries*16<<10 + 5<<10,   // and of two
		2*pieceEntries*16<<10 + 1<<10, // and of three
	} {
		data := randomBytes(rnd, size)
		// A hole, so that there are zeros of both kinds.
		clear(data[size/4 : size/2])
		meta := testMeta(size, testTime)
		full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
		requireImage(t, s, full, data)

		next := bytes.Clone(data)
		next[size-1] ^= 0xff
		incremental, stats := backup(t, s, meta, full, next, []int64{(size - 1) / meta.ChunkSize})
		require.Equal(t, int64(1), stats.ChunksWritten)
		requireImage(t, s, incremental, next)
		requireImage(t, s, full, data)
	}
}

// Only what is new and random counts: not text, not zeros, and nothing a second time.
func TestIncompressible(t *testing.T) {
	s := newStore(t)
	meta := testMeta(8<<20, testTime)
	data := bytes.Repeat([]byte("a text, which can be compressed. "), 8<<20/33+1)[:8<<20]
	copy(data[2*meta.ChunkSize:], randomBytes(rand.New(rand.NewPCG(1, 2)), 3*meta.ChunkSize))
	clear(data[6*meta.ChunkSize : 7*meta.ChunkSize])
	_, stats := backup(t, s, meta, "", data, allChunks(t, meta))
	require.Equal(t, 3*meta.ChunkSize, stats.IncompressibleBytes)
	_, stats = backup(t, s, meta, "", data, allChunks(t, meta))
	require.Zero(t, stats.IncompressibleBytes)
}

func TestIncrementalWritesWhatChanged(t *testing.T) {
	s := newStore(t)
	const segments = 4 * pieceEntries
	meta := testMeta(segments*16<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 2)), meta.Size)
	full, stats := backup(t, s, meta, "", data, allChunks(t, meta))
	require.Equal(t, meta.Size, stats.BytesUploaded)
	require.Equal(t, int64(segments*4), stats.ChunksWritten)
	require.Zero(t, stats.ChunksInherited)

	data[5000]++
	id, stats := backup(t, s, meta, full, data, []int64{1, 2})
	require.Equal(t, repository.WriteStats{
		BytesUploaded: 4096, // chunk 2 is as it was
		// They are random.
		IncompressibleBytes: 4096,
		// One segment of 4 entries, one piece of the root, the index of its 4 pieces.
		MetadataBytes: stats.MetadataBytes, ChunksWritten: 2, ChunksInherited: segments*4 - 2,
	}, stats)
	require.Less(t, stats.MetadataBytes, int64(pieceEntries*80+2*400))
	requireImage(t, s, id, data)

	snap, err := s.Get(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, repository.Incremental, snap.Meta.Kind)
	require.Equal(t, full, snap.Meta.Parent)
}

func TestContract(t *testing.T) {
	repositorytest.Contract(t, func(t *testing.T) repository.Store { t.Helper(); return newStore(t) })
}

// blobFiles lists the files of blobs with a prefix, oldest first.
func blobFiles(t *testing.T, dir, prefix string) []string {
	t.Helper()
	var files []string
	at := map[string]time.Time{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if strings.HasPrefix(strings.ReplaceAll(name, "/", ""), prefix) {
			info, err := d.Info()
			if err != nil {
				return err
			}
			files, at[path] = append(files, path), info.ModTime()
		}
		return nil
	}))
	slices.SortFunc(files, func(a, b string) int { return at[a].Compare(at[b]) })
	return files
}
