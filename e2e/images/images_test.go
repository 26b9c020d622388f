package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func readTar(t *testing.T, r io.Reader) (map[string][]byte, map[string]*tar.Header, []string) {
	t.Helper()
	data, headers, order := map[string][]byte{}, map[string]*tar.Header{}, []string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return data, headers, order
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		data[h.Name], headers[h.Name], order = b, h, append(order, h.Name)
	}
}

func TestSave(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "tool")
	if err := os.WriteFile(bin, []byte("binary"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := Image{
		Name: "a:b",
		Files: []File{
			{Path: "/usr/bin/tool", Source: bin},
			{Path: "/tmp", Dir: true, Mode: 0o1777},
			{Path: "/home/u", Dir: true, UID: 7, GID: 8},
			{Path: "/sh", Link: "/usr/bin/tool"},
		},
		Entrypoint: []string{"/usr/bin/tool"}, Env: []string{"HOME=/home/u"}, User: "7:8",
	}
	archive := filepath.Join(dir, "out", "a.tar")
	if err := image.Save(archive, "amd64"); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	parts, _, _ := readTar(t, bytes.NewReader(first))
	var man []manifest
	if err := json.Unmarshal(parts["manifest.json"], &man); err != nil {
		t.Fatal(err)
	}
	var cfg ocispec.Image
	if err := json.Unmarshal(parts[man[0].Config], &cfg); err != nil {
		t.Fatal(err)
	}
	if want := digest.FromBytes(parts["layer.tar"]); cfg.RootFS.DiffIDs[0] != want {
		t.Errorf("diff ID %s, want %s", cfg.RootFS.DiffIDs[0], want)
	}
	if cfg.Config.User != "7:8" || man[0].RepoTags[0] != "a:b" {
		t.Errorf("config %+v, manifest %+v", cfg, man)
	}
	data, headers, order := readTar(t, bytes.NewReader(parts["layer.tar"]))
	if string(data["usr/bin/tool"]) != "binary" || headers["usr/bin/tool"].Mode != 0o755 {
		t.Errorf("tool: %q %+v", data["usr/bin/tool"], headers["usr/bin/tool"])
	}
	if headers["tmp/"].Mode != 0o1777 || headers["home/u/"].Uid != 7 || headers["sh"].Linkname != "/usr/bin/tool" {
		t.Errorf("headers %+v", headers)
	}
	seen := map[string]bool{"./": true}
	for _, name := range order {
		if parent := filepath.Dir(filepath.Clean(name)) + "/"; !seen[parent] {
			t.Errorf("%s comes before its parent %s", name, parent)
		}
		seen[name] = true
	}

	if err := image.Save(archive, "amd64"); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(archive); !bytes.Equal(first, again) {
		t.Error("the same image twice differs")
	}
	left, _ := filepath.Glob(filepath.Join(dir, "out", ".*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSaveRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.tar")
	for _, name := range []string{"", "a", "a:", "a:latest"} {
		if err := (Image{Name: name}).Save(file, "amd64"); err == nil {
			t.Errorf("name %q: no error", name)
		}
	}
	twice := Image{Name: "a:b", Files: []File{{Path: "/x", Dir: true}, {Path: "x/", Dir: true}}}
	if err := twice.Save(file, "amd64"); err == nil {
		t.Error("an entry listed twice: no error")
	}
	if err := (Image{Name: "a:b", Files: []File{{Path: "/x", Source: "/does/not/exist"}}}).Save(file, "amd64"); err == nil {
		t.Error("missing source: no error")
	}
}
