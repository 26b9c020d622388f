package kopia

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/stretchr/testify/require"
)

// TestBesideStockKopia: stock kopia's cache directory in the environment is not used, and
// does not crash kopia's library.
func TestBesideStockKopia(t *testing.T) {
	dir := newRepository(t)
	meta := testMeta(64<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	id, _ := backup(t, openStore(t, dir), meta, "", data, allChunks(t, meta))

	cache := filepath.Join(t.TempDir(), "cache")
	t.Setenv("KOPIA_CACHE_DIRECTORY", cache)
	s := openStore(t, dir)
	requireImage(t, s, id, data)
	maintain(t, dir)
	requireImage(t, openStore(t, dir), id, data)
	require.NoDirExists(t, cache)

	precious := filepath.Join(cache, "precious")
	require.NoError(t, os.Mkdir(cache, 0o700))
	require.NoError(t, os.WriteFile(precious, nil, 0o600))
	_, err := OpenFilesystem(t.Context(), dir, "wrong")
	require.ErrorIs(t, err, repo.ErrInvalidPassword)
	require.FileExists(t, precious)
}

// TestKopiaCrashesWithoutCache is the reason for writeConnection. The crash is in a goroutine
// of kopia, so the test needs a process of its own.
func TestKopiaCrashesWithoutCache(t *testing.T) {
	const (
		envDir  = "BLOCKMOVER_TEST_REPOSITORY"
		survive = "still alive"
	)
	if dir := os.Getenv(envDir); dir != "" {
		st, err := openDirectory(t.Context(), dir, false)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "repository.config")
		require.NoError(t, repo.Connect(t.Context(), file, st, testPassword, &repo.ConnectOptions{}))
		s, err := Open(t.Context(), file, testPassword)
		require.NoError(t, err)
		list, err := s.List(t.Context(), testVolume)
		t.Fatal(survive, list, err)
	}
	dir := newRepository(t)
	meta := testMeta(64<<10, testTime)
	backup(t, openStore(t, dir), meta, "", make([]byte, meta.Size), allChunks(t, meta))
	child := exec.Command(os.Args[0], "-test.run=^TestKopiaCrashesWithoutCache$")
	// The child crashes, so nothing but this test removes its files.
	child.Env = append(os.Environ(), envDir+"="+dir, "TMPDIR="+t.TempDir(),
		"KOPIA_CACHE_DIRECTORY="+filepath.Join(t.TempDir(), "cache"))
	out, err := child.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "fetchBlobInternal")
	require.NotContains(t, string(out), survive)
}
