package config

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	velerotypes "github.com/vmware-tanzu/velero/pkg/types"
)

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	_, err := Follow(path, logr.Discard())
	require.ErrorIs(t, err, os.ErrNotExist)
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	write("attempts: many")
	_, err = Follow(path, logr.Discard())
	require.ErrorContains(t, err, path)

	var lines []string
	log := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
	// A start has no earlier configuration to stay with.
	write("attempts: 7\nfieldOfTheFuture: 2")
	started, err := Follow(path, log)
	require.NoError(t, err)
	require.Equal(t, 7, started.Get().Attempts)
	require.False(t, started.Valid())
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], `unknown field \"fieldOfTheFuture\"`)
	started.look()
	require.False(t, started.Valid())
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
  "loadConcurrency": {"globalConfig": 2, "perNodeConfig": [{"nodeSelector": {"matchLabels": {"a": "b"}}, "number": 1}], "prepareQueueLength": 9},
  "loadAffinity": [{"nodeSelector": {"matchLabels": {"a": "b"}}, "storageClass": "gold"}],
  "privilegedFsBackup": true, "csiSnapshotMetadataServiceConfigs": {"saName": "reader"},
  "cachePVC": {"storageClass": "fast", "residentThresholdInMB": 1024},
  "backupPVC": {
    "gold": {"storageClass": "gold-ro", "readOnly": true, "secretNames": ["s"], "readWriteOncePod": true, "annotations": {"a": "b"}},
    "zinc": {"configMapNames": ["c"], "readWriteOncePod": true, "spcNoRelabeling": true}
  },
  "restorePVC": {"ignoreDelayBinding": true, "secretNames": ["s"], "configMapNames": ["c"]},
  "podResources": {"cpuRequest": "1", "cpuLimit": "2", "memoryRequest": "1Gi", "memoryLimit": "2Gi"},
  "priorityClassName": "low", "podLabels": {"a": "b"}, "podAnnotations": {"a": "b"}
}`))
	require.NoError(t, err)
	require.Equal(t, []string{
		"privilegedFsBackup", "csiSnapshotMetadataServiceConfigs", "backupPVC.gold.readWriteOncePod (not with readOnly)", "backupPVC.zinc.spcNoRelabeling (it needs readOnly)",
	}, c.Ignored)
	require.Equal(t, 2, c.LoadConcurrency.GlobalConfig)
	gold, zinc := c.BackupPVC["gold"], c.BackupPVC["zinc"]
	require.True(t, gold.ReadOnly)
	require.False(t, gold.ReadWriteOncePod)
	require.Equal(t, []string{"s"}, gold.SecretNames)
	require.True(t, zinc.ReadWriteOncePod)
	require.False(t, zinc.SPCNoRelabeling)
	require.Equal(t, []string{"c"}, zinc.ConfigMapNames)
	require.True(t, c.RestorePVC.IgnoreDelayBinding)
	require.Equal(t, []string{"s"}, c.RestorePVC.SecretNames)
	require.Equal(t, CachePVC{"fast", 1024}, *c.CachePVC)

	c, err = Parse([]byte("cachePVC: {residentThresholdInMB: 1}"))
	require.NoError(t, err)
	require.Equal(t, []string{"cachePVC (it names no storageClass)"}, c.Ignored)
	require.Nil(t, c.CachePVC)
	for _, bad := range []string{"privilegedFsBackup: true\nattempt: 2", "backupPVC: [1]", "restorePVC: 7", "cachePVC: 7", "[]"} {
		_, err := Parse([]byte(bad))
		require.Error(t, err, bad)
	}
}

// Every field of the node agent has a meaning here, or is known to have none.
func TestNodeAgentFields(t *testing.T) {
	theirs := fieldsOf(reflect.TypeFor[velerotypes.NodeAgentConfigs](), "")
	ours := fieldsOf(reflect.TypeFor[Config](), "")
	require.Greater(t, len(theirs), 25)
	for _, field := range theirs {
		if !slices.Contains(foreign, field) {
			require.Contains(t, ours, field)
		}
	}
}

// The reference has a row for each field, and no others.
func TestReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	require.NoError(t, err)
	var rows []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		rows = append(rows, row[1])
	}
	require.ElementsMatch(t, fieldsOf(reflect.TypeFor[Config](), ""), rows)
}

// fieldsOf are the paths of the fields of a document, such as backupPVC.*.readOnly. A type of
// Kubernetes is one field.
func fieldsOf(of reflect.Type, path string) []string {
	switch of.Kind() {
	case reflect.Pointer:
		return fieldsOf(of.Elem(), path)
	case reflect.Slice:
		if of.Elem().Kind() == reflect.Struct || of.Elem().Kind() == reflect.Pointer {
			return fieldsOf(of.Elem(), path)
		}
	case reflect.Map:
		if of.Elem().Kind() == reflect.Struct {
			return fieldsOf(of.Elem(), path+".*")
		}
	case reflect.Struct:
		if strings.HasPrefix(of.PkgPath(), "k8s.io/") {
			break
		}
		var fields []string
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			if name != "-" {
				fields = append(fields, fieldsOf(of.Field(i).Type, strings.TrimPrefix(path+"."+name, "."))...)
			}
		}
		return fields
	default:
	}
	return []string{path}
}
