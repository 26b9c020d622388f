package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestReasonsAreExplained looks in the documents for each reason code: of images, of groups, of VMs and of events.
func TestReasonsAreExplained(t *testing.T) {
	var documents strings.Builder
	files, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		documents.Write(text)
	}
	reasons := map[string]string{}
	eachSource(t, func(path string) error {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if reason := reasonIn(node); reason != "" {
				reasons[reason] = path
			}
			return true
		})
		return nil
	})
	for reason, path := range reasons {
		require.Contains(t, documents.String(), "`"+reason+"`", "%s has this reason", path)
	}
	for _, kind := range []string{"DeltaFailed", "GroupOfOne", "VMNotRunning", "VolumeExists", "MoverPodLost", "ImageDamaged"} {
		require.Contains(t, reasons, kind, "the test does not see the reasons of this kind")
	}
}

// ofCodes are the types of reason codes.
var ofCodes = []string{"Reason", "Alone"}

// ofEvents are the functions that make events. Their first word in quotes is the reason.
var ofEvents = []string{"event", "eventOfOwner", "eventOfClaim", "Eventf", "Warn", "warn"}

var code = regexp.MustCompile(`^([A-Z][A-Za-z]*){2,}$`)

// reasonIn returns the reason code that a constant of a type Reason has, or that an event is made with.
func reasonIn(node ast.Node) string {
	switch n := node.(type) {
	case *ast.ValueSpec:
		if !slices.Contains(ofCodes, name(n.Type)) || len(n.Values) != 1 {
			return ""
		}
		return word(n.Values[0])
	case *ast.CallExpr:
		if !slices.Contains(ofEvents, name(n.Fun)) {
			return ""
		}
		for _, arg := range n.Args {
			if reason := word(arg); reason != "" {
				return reason
			}
		}
	}
	return ""
}

// name returns the last part of a name such as corev1.Event.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// word returns the text of a literal that looks like a reason code.
func word(e ast.Expr) string {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return ""
	}
	text, err := strconv.Unquote(literal.Value)
	if err != nil || !code.MatchString(text) {
		return ""
	}
	return text
}
