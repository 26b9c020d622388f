package artifacts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestStampFollowsSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hash := func(target target) string {
		t.Helper()
		sum, err := target.hash()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	write("go.mod", "module x\n")
	write("go.sum", "")
	write("cmd/a/main.go", "package main")
	it := target{module: dir, packages: []string{"./cmd/a"}, sources: []string{"cmd/a"}}
	first := hash(it)
	if hash(it) != first {
		t.Error("nothing changed, the stamp did")
	}
	write("other.go", "package x")
	if hash(it) != first {
		t.Error("the stamp depends on a file that is no source")
	}
	flags := it
	flags.ldflags = "-X a=b"
	if hash(flags) == first {
		t.Error("the stamp does not depend on the flags")
	}
	write("cmd/a/main.go", "package main // changed")
	if hash(it) == first {
		t.Error("the stamp does not depend on the sources")
	}
}

func TestRunReportsOutput(t *testing.T) {
	c := &Cache{Dir: t.TempDir(), Report: t.Logf}
	if err := c.run(exec.Command("sh", "-c", "echo fine"), "echo", 0); err != nil {
		t.Error(err)
	}
	err := c.run(exec.Command("sh", "-c", "echo the reason; exit 3"), "fail", 0)
	if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v: want the output and the status", err)
	}
}

func TestFindModule(t *testing.T) {
	t.Setenv("BLOCKMOVER_E2E", "")
	dir, err := FindModule()
	if err != nil || filepath.Base(dir) != "e2e" {
		t.Errorf("%q, %v: want the e2e module above this test", dir, err)
	}
	t.Chdir(t.TempDir())
	if dir, err := FindModule(); err == nil {
		t.Errorf("found %q outside of the checkout", dir)
	}
}
