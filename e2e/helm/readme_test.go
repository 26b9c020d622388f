package helm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// TestReadme compares the table in the README of the chart with values.yaml. UPDATE_DOCS=1 writes it.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deploy, "values.yaml"))
	require.NoError(t, err)
	var document yaml.Node
	require.NoError(t, yaml.Unmarshal(text, &document))
	table := "| value | default | meaning |\n|---|---|---|\n" + strings.Join(rows(t, "", document.Content[0]), "")

	file := filepath.Join(deploy, "README.md")
	readme, err := os.ReadFile(file)
	require.NoError(t, err)
	head, _, found := strings.Cut(string(readme), "| value |")
	require.True(t, found)
	if os.Getenv("UPDATE_DOCS") != "" {
		require.NoError(t, os.WriteFile(file, []byte(head+table), 0o600))
		return
	}
	require.Equal(t, head+table, string(readme), "run UPDATE_DOCS=1 go test -count=1 -run TestReadme .")
}

// rows are those of the table: one for each value with a comment. What is below one of them and has no
// comment, not even further down, is its default.
func rows(t *testing.T, prefix string, mapping *yaml.Node) []string {
	t.Helper()
	var all []string
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		comment := strings.Join(strings.Fields(strings.ReplaceAll("\n"+key.HeadComment, "\n#", " ")), " ")
		below := commented(value)
		require.True(t, comment != "" || below, "%s has no comment", prefix+key.Value)
		switch {
		case below && comment != "":
			all = append(all, fmt.Sprintf("| `%s` | | %s |\n", prefix+key.Value, comment))
		case !below:
			all = append(all, fmt.Sprintf("| `%s` | %s | %s |\n", prefix+key.Value, code(t, value), comment))
		}
		if below {
			all = append(all, rows(t, prefix+key.Value+".", value)...)
		}
	}
	return all
}

// commented says whether a value has comments in it.
func commented(value *yaml.Node) bool {
	return slices.ContainsFunc(value.Content, func(n *yaml.Node) bool { return n.HeadComment != "" || commented(n) })
}

// code is a default on one line.
func code(t *testing.T, value *yaml.Node) string {
	t.Helper()
	if value.Value == "" && value.Kind == yaml.ScalarNode {
		return ""
	}
	value.Style = yaml.FlowStyle
	text, err := yaml.Marshal(value)
	require.NoError(t, err)
	return "`" + strings.Trim(strings.TrimSpace(string(text)), `"`) + "`"
}
