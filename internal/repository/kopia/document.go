package kopia

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/blockmover/blockmover/internal/repository"
)

// Limits for documents of a repository, before they are trusted.
const (
	// maxDocumentBytes: handles and change IDs are a few hundred bytes.
	maxDocumentBytes = 64 << 10
	// maxZeroObjects: one for each length and each way of compressing.
	maxZeroObjects = 32
)

// document is volume.json.
type document struct {
	repository.Meta
	// Zero names the objects that hold nothing but zeros. A restore knows them by it, without
	// reading them.
	Zero []zeroObject `json:"zero"`
}

type zeroObject struct {
	Length int64     `json:"length"`
	Object object.ID `json:"object"`
}

func (d document) encode() ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("encode volume.json: %w", err)
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode volume.json: %w", err)
	}
	return append(b, '\n'), nil
}

// parseDocument reads volume.json strictly. Its errors wrap
// repository.ErrCorrupt.
func parseDocument(r io.Reader) (document, error) {
	d, err := decodeDocument(r)
	if err != nil {
		return document{}, corrupt(fmt.Errorf("parse volume.json: %w", err))
	}
	return d, nil
}

func decodeDocument(r io.Reader) (document, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDocumentBytes+1))
	if err != nil {
		return document{}, err
	}
	if len(text) > maxDocumentBytes {
		return document{}, fmt.Errorf("more than %d bytes", maxDocumentBytes)
	}
	// The version comes first: the error for a document of another version names the version,
	// and not the first unknown field.
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return document{}, err
	}
	if version.Version != repository.MetaVersion {
		return document{}, fmt.Errorf("version is %d, want %d", version.Version, repository.MetaVersion)
	}
	var doc document
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return document{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return document{}, errors.New("text after the document")
	}
	return doc, doc.check()
}

func (d document) check() error {
	if _, err := repository.NewLayout(d.Meta); err != nil {
		return err
	}
	switch {
	case d.Version != repository.MetaVersion:
		return fmt.Errorf("version is %d, want %d", d.Version, repository.MetaVersion)
	case d.Kind != repository.Full && d.Kind != repository.Incremental:
		return fmt.Errorf("kind is %q, want %q or %q", d.Kind, repository.Full, repository.Incremental)
	case (d.Parent != "") != (d.Kind == repository.Incremental):
		return fmt.Errorf("kind is %s and parent is %q", d.Kind, d.Parent)
	case len(d.Zero) > maxZeroObjects:
		return fmt.Errorf("%d zero objects, want at most %d", len(d.Zero), maxZeroObjects)
	}
	for _, z := range d.Zero {
		if _, _, direct := z.Object.ContentID(); !direct || z.Object == object.EmptyID {
			return fmt.Errorf("zero object %q is not a content", z.Object)
		}
		if z.Length <= 0 || z.Length > d.ChunkSize {
			return fmt.Errorf("zero object has length %d, want 1 to %d", z.Length, d.ChunkSize)
		}
	}
	return nil
}

// decodeDirectory reads the JSON of kopia's directories. It ignores unknown fields, because
// the directory is kopia's document.
func decodeDirectory(r io.Reader, dir *snapshot.DirManifest) error {
	if err := json.NewDecoder(io.LimitReader(r, maxDocumentBytes)).Decode(dir); err != nil {
		return corrupt(err)
	}
	if dir.StreamType != directoryStream {
		return corrupt(fmt.Errorf("stream is %q, want %q", dir.StreamType, directoryStream))
	}
	if dir.Summary == nil || slices.Contains(dir.Entries, nil) {
		return corrupt(errors.New("summary or an entry is missing"))
	}
	return nil
}
