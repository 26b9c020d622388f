package config

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
)

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	_, err := Follow(path, logr.Discard())
	require.ErrorIs(t, err, os.ErrNotExist)
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	write("attempt: 2")
	_, err = Follow(path, logr.Discard())
	require.ErrorContains(t, err, path)

	var lines []string
	log := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	write("attempts: 2")
	l, err := Follow(path, log)
	require.NoError(t, err)
	changes := 0
	l.OnChange(func() { changes++ })
	look := func(attempts int, valid bool, logged, changed int) {
		t.Helper()
		lines, changes = nil, 0
		l.look()
		require.Equal(t, attempts, l.Get().Attempts)
		require.Equal(t, valid, l.Valid())
		require.Len(t, lines, logged, strings.Join(lines, "; "))
		require.Equal(t, changed, changes)
	}
	look(2, true, 0, 0)
	write("attempts: 5")
	look(5, true, 1, 1)
	write("attempts: many")
	look(5, false, 1, 0)
	require.Contains(t, lines[0], "cannot unmarshal")
	look(5, false, 0, 0)
	write("attempts: -1")
	look(5, false, 1, 0)
	require.Contains(t, lines[0], "attempts is -1")
	require.NoError(t, os.Remove(path))
	look(5, false, 0, 0)
	write("attempts: -1")
	look(5, false, 0, 0)
	write("attempts: 5")
	look(5, true, 1, 1)
	require.NoError(t, os.Remove(path))
	look(5, false, 1, 0)
	write("attempts: 5")
	look(5, true, 0, 0)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, l.Start(ctx))
	fixed, err := Follow("", log)
	require.NoError(t, err)
	require.NoError(t, fixed.Start(ctx))
	_, err = Fixed(Config{Attempts: -1})
	require.ErrorContains(t, err, "attempts is -1")
}

// A block of the node agent's configuration can be copied. What has no meaning here is named.
func TestNodeAgentBlock(t *testing.T) {
	c, err := Parse([]byte(`{
  "loadConcurrency": {"globalConfig": 2},
  "cachePVC": {"thresholdInGB": 1}, "privilegedFsBackup": true,
  "backupPVC": {"gold": {"readOnly": true, "secretNames": ["s"]}, "zinc": {"configMapNames": ["c"]}},
  "restorePVC": {"ignoreDelayBinding": true, "secretNames": ["s"]}
}`))
	require.NoError(t, err)
	require.Equal(t, []string{"cachePVC", "privilegedFsBackup", "restorePVC.secretNames", "backupPVC.gold.secretNames", "backupPVC.zinc.configMapNames"}, c.Ignored)
	require.Equal(t, 2, c.LoadConcurrency.GlobalConfig)
	require.True(t, c.BackupPVC["gold"].ReadOnly)
	require.True(t, c.RestorePVC.IgnoreDelayBinding)
	for _, bad := range []string{"cachePVC: 1\nattempt: 2", "backupPVC: [1]", "restorePVC: 7", "[]"} {
		_, err := Parse([]byte(bad))
		require.Error(t, err, bad)
	}
}
