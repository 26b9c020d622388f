// Package images makes container images without a container engine, from static binaries: a
// docker-archive tar (manifest.json, config, one layer), as `ctr images import` and `docker load`
// read it, or an OCI image layout for several platforms, as registries have it. The same inputs
// give the same bytes.
package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of the layer of an image. Exactly one of Source, Content, Link and Dir is
// set. Parents are made as needed, owned by root.
type File struct {
	Path    string
	Source  string // copied from this file
	Content []byte
	Link    string // symbolic link to this target
	Dir     bool
	Mode    int64 // 0 means 0755
	UID     int
	GID     int
}

// Image is an image FROM scratch with a single layer.
type Image struct {
	Name       string // name:tag, tag not "latest" (else pods pull it)
	Files      []File
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkDir    string
	Labels     map[string]string
	// Created is the time in the configuration of the image. The zero time stands for 1970.
	Created time.Time
}

type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Save writes the image as a docker-archive to file, replacing it atomically.
func (i Image) Save(file, arch string) error {
	if name, tag, ok := strings.Cut(i.Name, ":"); !ok || name == "" || tag == "" || tag == "latest" {
		return fmt.Errorf("image name %q: want name:tag with a tag other than latest", i.Name)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	// The layer goes to disk first. The config comes before it and has its digest, and layers
	// of 200 MB do not belong in memory.
	layer, err := os.CreateTemp(filepath.Dir(file), ".layer-*")
	if err != nil {
		return err
	}
	defer func() {
		_ = layer.Close()
		_ = os.Remove(layer.Name())
	}()
	sum := sha256.New()
	if err := i.writeLayer(io.MultiWriter(layer, sum)); err != nil {
		return fmt.Errorf("layer of image %s: %w", i.Name, err)
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}

	cfg, err := json.Marshal(i.config(arch, digest.NewDigest(digest.SHA256, sum)))
	if err != nil {
		return err
	}
	configName := digest.FromBytes(cfg).Encoded() + ".json"
	man, err := json.Marshal([]manifest{{Config: configName, RepoTags: []string{i.Name}, Layers: []string{"layer.tar"}}})
	if err != nil {
		return err
	}

	return writeArchive(file, []part{
		{"manifest.json", int64(len(man)), bytes.NewReader(man)},
		{configName, int64(len(cfg)), bytes.NewReader(cfg)},
		{"layer.tar", size, layer},
	})
}

// config is the configuration of the image on an architecture, with its one layer.
func (i Image) config(arch string, layer digest.Digest) ocispec.Image {
	created := i.Created
	if created.IsZero() {
		created = time.Unix(0, 0)
	}
	created = created.UTC()
	return ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: arch, OS: "linux"},
		Config: ocispec.ImageConfig{
			User: i.User, Env: append([]string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}, i.Env...),
			Entrypoint: i.Entrypoint, Cmd: i.Cmd, WorkingDir: i.WorkDir, Labels: i.Labels,
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer}},
	}
}

// part is a member of the archive.
type part struct {
	name string
	size int64
	data io.Reader
}

func writeArchive(file string, parts []part) error {
	out, err := os.CreateTemp(filepath.Dir(file), ".image-*")
	if err != nil {
		return err
	}
	defer func() {
		_ = out.Close() // it was closed before if all went well
		_ = os.Remove(out.Name())
	}()
	w := tar.NewWriter(out)
	for _, p := range parts {
		if err := w.WriteHeader(&tar.Header{Name: p.name, Mode: 0o644, Size: p.size, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		if _, err := io.Copy(w, p.data); err != nil {
			return fmt.Errorf("write %s: %w", p.name, err)
		}
	}
	if err := errors.Join(w.Close(), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), file)
}

func (i Image) writeLayer(out io.Writer) error {
	w := tar.NewWriter(out)
	made := map[string]bool{".": true}
	files := append([]File(nil), i.Files...)
	sort.SliceStable(files, func(a, b int) bool { return files[a].Path < files[b].Path })
	for _, f := range files {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if err := writeParents(w, path.Dir(name), made); err != nil {
			return err
		}
		if made[name] {
			return fmt.Errorf("%s: twice in the image, or listed after its content", f.Path)
		}
		made[name] = true
		if err := writeFile(w, name, f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return w.Close()
}

func writeParents(w *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := writeParents(w, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, Format: tar.FormatPAX})
}

func writeFile(w *tar.Writer, name string, f File) error {
	h := &tar.Header{Name: name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Format: tar.FormatPAX}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	switch {
	case f.Dir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return w.WriteHeader(h)
	case f.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		return w.WriteHeader(h)
	case f.Source != "":
		src, err := os.Open(f.Source)
		if err != nil {
			return err
		}
		defer func() { _ = src.Close() }()
		info, err := src.Stat()
		if err != nil {
			return err
		}
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = io.Copy(w, src)
		return err
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Content))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(f.Content)
		return err
	}
}
