package config

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// TestChart compares the document in the values of the Helm chart with this package: the schema has
// its fields, and the default is one that it takes.
func TestChart(t *testing.T) {
	read := func(name string, into any) {
		text, err := os.ReadFile(filepath.Join("../../deploy", name))
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(text, into))
	}
	var schema struct {
		Properties struct {
			Config struct{ Properties map[string]any }
		}
	}
	read("values.schema.json", &schema)
	var fields []string
	for field := range reflect.TypeFor[Config]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "-" {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	require.Equal(t, fields, slices.Sorted(maps.Keys(schema.Properties.Config.Properties)))

	var values struct{ Config json.RawMessage }
	read("values.yaml", &values)
	_, err := Parse(values.Config)
	require.NoError(t, err)
}
