package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// chart is the directory of the Helm chart.
const chart = "../../deploy"

// TestChart compares the document in the values of the Helm chart with this package: the schema has
// its fields, and the default is one that it takes. UPDATE_DOCS=1 writes the schema.
func TestChart(t *testing.T) {
	fields := map[string]any{}
	for field := range reflect.TypeFor[Config]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "-" {
			fields[name] = map[string]any{}
		}
	}
	file := filepath.Join(chart, "values.schema.json")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	schema := map[string]any{}
	require.NoError(t, json.Unmarshal(text, &schema))
	document := schema["properties"].(map[string]any)["config"].(map[string]any)
	if os.Getenv("UPDATE_DOCS") != "" {
		document["properties"] = fields
		text, err := json.MarshalIndent(schema, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, append(text, '\n'), 0o600))
	}
	require.Equal(t, fields, document["properties"], "run UPDATE_DOCS=1 go test ./internal/config")

	var values struct{ Config json.RawMessage }
	text, err = os.ReadFile(filepath.Join(chart, "values.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &values))
	_, err = Parse(values.Config)
	require.NoError(t, err)
}
