package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// eachSource calls f with each Go file of the product.
func eachSource(t *testing.T, f func(path string) error) {
	t.Helper()
	for _, dir := range []string{"internal", "mover", "plugins"} {
		require.NoError(t, filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			return f(path)
		}))
	}
}

// TestMessagesOfTroubleshooting looks in the code for the messages that docs/troubleshooting.md explains. "…"
// and "N" stand for what differs. What Velero and Kubernetes say is not ours.
func TestMessagesOfTroubleshooting(t *testing.T) {
	var code strings.Builder
	eachSource(t, func(path string) error {
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	})
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	require.NoError(t, err)
	checked := 0
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(string(text), -1) {
		for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			message := quoted[1]
			isVeleros := strings.HasPrefix(message, "could not restore") || message == "Errors: <none>"
			if !strings.Contains(message, " ") || isVeleros {
				continue
			}
			for _, part := range regexp.MustCompile(` N |…|velero-repo-credentials`).Split(message, -1) {
				if part = strings.Trim(part, " :"); len(part) > 2 {
					require.Contains(t, code.String(), part, message)
					checked++
				}
			}
		}
	}
	require.Greater(t, checked, 10)
}
