package chain_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/chain"
)

// TestReasons looks for constants that the list lacks.
func TestReasons(t *testing.T) {
	source, err := os.ReadFile("reason.go")
	require.NoError(t, err)
	var declared []chain.Reason
	for _, match := range regexp.MustCompile(`Reason = "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		declared = append(declared, chain.Reason(match[1]))
	}
	require.NotEmpty(t, declared)
	require.ElementsMatch(t, declared, chain.Reasons)
}
