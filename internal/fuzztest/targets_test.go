package fuzztest_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEveryTargetIsListed compares the table of docs/fuzzing.md with the targets that there are.
func TestEveryTargetIsListed(t *testing.T) {
	root := filepath.Join("..", "..")
	var found []string
	for _, dir := range []string{"internal", "mover", "plugins"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, filepath.Dir(path))
			for _, target := range regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f `).FindAllStringSubmatch(string(text), -1) {
				found = append(found, name+" "+target[1])
			}
			return err
		}))
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "fuzzing.md"))
	require.NoError(t, err)
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\|.*\\| `([a-z0-9/]+)` (Fuzz.*) \\|$").FindAllStringSubmatch(string(text), -1) {
		for target := range strings.SplitSeq(row[2], ", ") {
			listed = append(listed, row[1]+" "+target)
		}
	}
	require.ElementsMatch(t, found, listed)
}
