package config

import (
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// perYAMLByte is what a byte of YAML may cost beside what one of JSON does: each is a token with its place, and the document is
// read twice.
const perYAMLByte = 16

// FuzzParse: a configuration that is accepted says the same when it is written and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("attempts: 7\npodDeadline: 1h\nrateLimit: 50Mi\nenv: [{name: A, value: b}]"))
	f.Add([]byte(`{"loadConcurrency": {"globalConfig": 2, "perNodeConfig": [{"nodeSelector": {"matchLabels": {"a": "b"}}, "number": 1}]},
"loadAffinity": [{"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}, "storageClass": "gold"}],
"privilegedFsBackup": true, "cachePVC": {"storageClass": "fast", "residentThresholdInMB": 1024},
"backupPVC": {"gold": {"readOnly": true, "secretNames": ["s"]}}, "podResources": {"cpuRequest": "1", "memoryLimit": "2Gi"}}`))
	f.Add([]byte("a: &a [b, b]\nc: [*a, *a, *a]"))
	f.Fuzz(func(t *testing.T, document []byte) {
		var c Config
		var err error
		fuzztest.Document(t, perYAMLByte*len(document), func() { c, err = Parse(document) })
		fuzztest.Document(t, perYAMLByte*len(document), func() { _, _ = parseKnown(document) })
		if err != nil {
			require.Zero(t, c)
			return
		}
		require.NoError(t, c.check())
		require.Positive(t, c.Attempts)
		_, err = c.LoadConcurrency.Slots(nil)
		require.NoError(t, err)
		_, err = c.Selects(nil)
		require.NoError(t, err)
		require.GreaterOrEqual(t, c.RateLimit.Value(), int64(0))

		written, err := yaml.Marshal(c)
		require.NoError(t, err)
		again, err := Parse(written)
		require.NoError(t, err, string(written))
		rewritten, err := yaml.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(written), string(rewritten))
	})
}
