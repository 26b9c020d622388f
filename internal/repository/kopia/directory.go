package kopia

import (
	"context"
	"fmt"
	"io"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
)

// The files of an image's directory.
const (
	diskName     = "disk.raw"
	documentName = "volume.json"

	directoryStream = "kopia:directory"
)

// image is the directory of a written image.
type image struct {
	root     object.ID
	manifest *snapshot.DirManifest
	document document
	disk     object.ID
	// diskSize is less than that of the volume only in a checkpoint.
	diskSize int64
}

// directoryCompressor is kopia's own choice for directories.
const directoryCompressor = "zstd-fastest"

// writeDirectory stores volume.json, and the directory that has it, the disk and the others.
func writeDirectory(ctx context.Context, o *objectWriter, disk object.ID, diskSize int64, doc document, others ...*snapshot.DirEntry) (object.ID, *fs.DirectorySummary, error) {
	text, err := doc.encode()
	if err != nil {
		return object.EmptyID, nil, err
	}
	id, _, err := o.write(ctx, "", text)
	if err != nil {
		return object.EmptyID, nil, err
	}
	modified := fs.UTCTimestampFromTime(doc.SnapshotTime)
	var b snapshotfs.DirManifestBuilder
	b.AddEntry(fileEntry(diskName, diskSize, disk, modified))
	b.AddEntry(fileEntry(documentName, int64(len(text)), id, modified))
	for _, e := range others {
		b.AddEntry(e)
	}
	dir := b.Build(modified, "")
	root, err := snapshotfs.WriteDirManifest(ctx, o.w, "", dir, directoryCompressor)
	return root, dir.Summary, err
}

func fileEntry(name string, size int64, id object.ID, modified fs.UTCTimestamp) *snapshot.DirEntry {
	return &snapshot.DirEntry{
		Name: name, Type: snapshot.EntryTypeFile, Permissions: 0o600, FileSize: size, ModTime: modified, ObjectID: id,
	}
}

// readDirectory reads a directory and the volume.json in it.
func readDirectory(ctx context.Context, rep repo.Repository, root object.ID) (image, error) {
	var dir snapshot.DirManifest
	if err := readObject(ctx, rep, root, func(r io.Reader) error {
		return decodeDirectory(r, &dir)
	}); err != nil {
		return image{}, fmt.Errorf("read directory %v: %w", root, err)
	}
	img := image{root: root, manifest: &dir}
	var doc object.ID
	for _, e := range dir.Entries {
		switch {
		case e.Name == diskName && e.Type == snapshot.EntryTypeFile:
			img.disk, img.diskSize = e.ObjectID, e.FileSize
		case e.Name == documentName && e.Type == snapshot.EntryTypeFile:
			doc = e.ObjectID
		}
	}
	if img.disk == object.EmptyID || doc == object.EmptyID {
		return image{}, corrupt(fmt.Errorf("read directory %v: %s or %s is missing", root, diskName, documentName))
	}
	if err := readObject(ctx, rep, doc, func(r io.Reader) (err error) {
		img.document, err = parseDocument(r)
		return err
	}); err != nil {
		return image{}, fmt.Errorf("read %s in directory %v: %w", documentName, root, err)
	}
	return img, nil
}
