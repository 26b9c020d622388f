package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCopyFile(t *testing.T) {
	dir := t.TempDir()
	source, target := filepath.Join(dir, "plugin"), filepath.Join(dir, "target")
	require.NoError(t, os.WriteFile(source, []byte("a plugin"), 0o755))
	require.NoError(t, os.WriteFile(target, []byte("an older and much longer plugin"), 0o755))
	require.NoError(t, copyFile(source, target))
	got, err := os.ReadFile(target)
	require.NoError(t, err)
	require.Equal(t, "a plugin", string(got))
	info, err := os.Stat(target)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode().Perm())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "nothing half done is left")
}

func TestCopyFileErrors(t *testing.T) {
	dir := t.TempDir()
	require.Error(t, copyFile(filepath.Join(dir, "gone"), filepath.Join(dir, "target")))
	source := filepath.Join(dir, "plugin")
	require.NoError(t, os.WriteFile(source, nil, 0o755))
	require.Error(t, copyFile(source, filepath.Join(dir, "no-such-directory", "target")))
}
