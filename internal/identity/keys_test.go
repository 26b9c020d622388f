package identity

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// root is the root of the source tree.
const root = "../.."

// TestKeysAreDocumented compares docs/keys.md with the tables. With
// UPDATE_DOCS=1 it writes the file.
func TestKeysAreDocumented(t *testing.T) {
	path := filepath.Join(root, "docs", "keys.md")
	if os.Getenv("UPDATE_DOCS") != "" {
		require.NoError(t, os.WriteFile(path, []byte(document()), 0o600))
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, document(), string(text), "run UPDATE_DOCS=1 go test ./internal/identity")
}

func document() string {
	var b strings.Builder
	b.WriteString("# Labels, annotations and configuration keys\n\n" +
		"The table in `internal/identity/keys.go` is the source of this page; a test keeps both equal\n" +
		"(`UPDATE_DOCS=1 go test ./internal/identity` writes it anew).\n\n" +
		"## Labels and annotations\n\n")
	table(&b, Keys)
	b.WriteString("\n## Keys of `DataUpload.spec.dataMoverConfig`\n\n")
	table(&b, ConfigKeys)
	return b.String()
}

func table(b *strings.Builder, keys []Key) {
	b.WriteString("| key | on | written by | value | life |\n|---|---|---|---|---|\n")
	for _, k := range keys {
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", k.Name, k.On, k.Owner, k.Format, k.Life)
	}
}

// literal is a key of ours as a Go string.
var literal = regexp.MustCompile(`"blockmover\.io/[a-z-]+"`)

// TestKeysAreDefinedHere looks for keys that are spelled out in the code of another
// package. Names of plugin actions and tags of the backup repository are no keys of
// Kubernetes objects.
func TestKeysAreDefinedHere(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Keys {
		require.False(t, names[k.Name], "%s is in the table twice", k.Name)
		names[k.Name] = true
	}
	for _, dir := range []string{"internal", "mover", "plugins"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, found := range literal.FindAllString(string(text), -1) {
				isTag := strings.Contains(path, "internal/repository")
				isAction := strings.HasSuffix(found, `-backup"`) || strings.HasSuffix(found, `-restore"`) || strings.HasSuffix(found, `-delete"`)
				if !isTag && !isAction {
					t.Errorf("%s spells out %s: use package identity", path, found)
				}
			}
			return nil
		})
		require.NoError(t, err)
	}
}

// TestKeysAreComplete reads the constants of this package and looks each up in the
// tables.
func TestKeysAreComplete(t *testing.T) {
	text, err := os.ReadFile("keys.go")
	require.NoError(t, err)
	for _, constant := range regexp.MustCompile(`(?m)^\t((?:Label|Annotation|Config)\w+)\s+=`).FindAllStringSubmatch(string(text), -1) {
		require.Regexp(t, `(?m)^\t\{`+constant[1]+`, `, string(text), "the tables lack %s", constant[1])
	}
}
