package kopia

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
	"github.com/blockmover/blockmover/internal/repository"
)

const validDocument = `{
  "version": 1, "size": 10000, "chunkSize": 4096, "segmentSize": 16384, "pageSize": 4096, "kind": "Incremental", "parent": "p",
  "driver": "d", "volumeHandle": "v", "snapshotHandle": "s", "changeID": "c",
  "snapshotTime": "2026-03-01T12:00:00Z", "mover": "blockmover",
  "zero": [{"length": 4096, "object": "00ff00ff00ff00ff00ff00ff00ff00ff"}]
}`

func TestParseDocument(t *testing.T) {
	doc, err := parseDocument(strings.NewReader(validDocument))
	require.NoError(t, err)
	require.Equal(t, int64(10000), doc.Size)
	require.Equal(t, testTime, doc.SnapshotTime)
	text, err := doc.encode()
	require.NoError(t, err)
	again, err := parseDocument(bytes.NewReader(text))
	require.NoError(t, err)
	require.Equal(t, doc, again)

	for name, edit := range map[string][2]string{
		"version":               {`"version": 1`, `"version": 2`},
		"no version":            {`"version": 1,`, ``},
		"unknown field":         {`"version": 1`, `"version": 1, "colour": "red"`},
		"size 0":                {`"size": 10000`, `"size": 0`},
		"negative size":         {`"size": 10000`, `"size": -1`},
		"size beyond all":       {`"size": 10000`, `"size": 9223372036854775807`},
		"size as text":          {`"size": 10000`, `"size": "10000"`},
		"chunk size":            {`"chunkSize": 4096`, `"chunkSize": 4095`},
		"chunk size 0":          {`"chunkSize": 4096`, `"chunkSize": 0`},
		"segment not of chunks": {`"segmentSize": 16384`, `"segmentSize": 16385`},
		"segment too long":      {`"segmentSize": 16384`, `"segmentSize": 536870912`},
		"segment below chunk":   {`"segmentSize": 16384`, `"segmentSize": 2048`},
		"page size":             {`"pageSize": 4096`, `"pageSize": 2048`},
		"no page size":          {`"pageSize": 4096,`, ``},
		"page above chunk":      {`"pageSize": 4096`, `"pageSize": 8192`},
		"kind":                  {`"Incremental"`, `"Differential"`},
		"kind and parent":       {`"parent": "p",`, ``},
		"zero length":           {`"length": 4096`, `"length": 0`},
		"zero longer than all":  {`"length": 4096`, `"length": 8192`},
		"zero is no object":     {`"00ff00ff00ff00ff00ff00ff00ff00ff"`, `"zz"`},
		"zero is empty":         {`"00ff00ff00ff00ff00ff00ff00ff00ff"`, `""`},
		"zero is indirect":      {`"00ff00ff00ff00ff00ff00ff00ff00ff"`, `"Ix00ff00ff00ff00ff00ff00ff00ff00ff"`},
		"text after it":         {`"mover": "blockmover",`, `"mover": "blockmover"} {`},
		"too long":              {`"mover": "blockmover"`, `"mover": "` + strings.Repeat("x", maxDocumentBytes) + `"`},
		"too many zeros":        {`"zero": [`, `"zero": [` + strings.Repeat(`{"length": 4096, "object": "00ff"},`, maxZeroObjects)},
	} {
		text := strings.Replace(validDocument, edit[0], edit[1], 1)
		require.NotEqual(t, validDocument, text, name)
		_, err := parseDocument(strings.NewReader(text))
		require.ErrorIs(t, err, repository.ErrCorrupt, name)
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(validDocument))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var doc document
		var err error
		fuzztest.Document(t, len(text), func() { doc, err = parseDocument(bytes.NewReader(text)) })
		if err != nil {
			require.ErrorIs(t, err, repository.ErrCorrupt)
			return
		}
		again, err := doc.encode()
		require.NoError(t, err)
		same, err := parseDocument(bytes.NewReader(again))
		require.NoError(t, err)
		require.True(t, doc.SnapshotTime.Equal(same.SnapshotTime))
		_, err = repository.NewLayout(doc.Meta)
		require.NoError(t, err)
	})
}

const validIndex = indexHead +
	`{"l":4096,"o":"00ff"},` + "\n" +
	`{"s":4096,"l":8192,"o":"Ix01ff"}` + "\n" + indexTail

func TestParseIndex(t *testing.T) {
	var got []entry
	add := func(e entry) error {
		got = append(got, e)
		return nil
	}
	require.NoError(t, parseIndex(strings.NewReader(validIndex), 12288, 2, add))
	require.Len(t, got, 2)
	require.Equal(t, "Ix01ff", got[1].Object.String())

	var back []byte
	require.NoError(t, indexPieces(len(got), func(i int) entry { return got[i] }, func(text []byte) error {
		back = append(back, text...)
		return nil
	}))
	require.Equal(t, validIndex, string(back))

	for name, edit := range map[string][2]string{
		"stream":            {indexStream, "kopia:directory"},
		"unknown field":     {`{"stream"`, `{"colour":1,"stream"`},
		"entry field":       {`"l":4096`, `"l":4096,"x":1`},
		"gap":               {`"s":4096`, `"s":4097`},
		"overlap":           {`"s":4096`, `"s":4095`},
		"negative start":    {`"s":4096`, `"s":-4096`},
		"too long":          {`"l":8192`, `"l":8193`},
		"too short":         {`"l":8192`, `"l":8191`},
		"empty entry":       {`"l":8192`, `"l":0`},
		"negative length":   {`"l":8192`, `"l":-1`},
		"overflow":          {`"l":8192`, `"l":9223372036854775807`},
		"no object":         {`,"o":"00ff"`, ``},
		"empty object":      {`"o":"00ff"`, `"o":""`},
		"bad object":        {`"o":"00ff"`, `"o":"00fg"`},
		"too many entries":  {`{"l":4096,"o":"00ff"}`, `{"l":2048,"o":"00ff"},{"s":2048,"l":2048,"o":"00ff"}`},
		"text after it":     {indexTail, indexTail + "{}"},
		"a second list":     {"]}", `],"entries":[]}`},
		"cut off":           {indexTail, ""},
		"null":              {validIndex, "null"},
		"nothing":           {validIndex, ""},
		"a list of entries": {validIndex, `[{"l":12288,"o":"00ff"}]`},
		"no entries":        {validIndex, indexHead + indexTail},
	} {
		text := strings.Replace(validIndex, edit[0], edit[1], 1)
		require.NotEqual(t, validIndex, text, name)
		err := parseIndex(strings.NewReader(text), 12288, 2, func(entry) error { return nil })
		require.ErrorIs(t, err, repository.ErrCorrupt, name)
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(validIndex), int64(12288))
	f.Add([]byte(`{"stream":"kopia:indirect","entries":[{"l":1,"o":"00"}]}`), int64(1))
	f.Fuzz(func(t *testing.T, text []byte, length int64) {
		var pos int64
		var err error
		fuzztest.Document(t, len(text), func() {
			err = parseIndex(bytes.NewReader(text), length, 100, func(e entry) error {
				if e.Start != pos || e.Length <= 0 || e.Object == object.EmptyID {
					t.Fatalf("bad entry %+v at %d", e, pos)
				}
				pos += e.Length
				return nil
			})
		})
		if err == nil && pos != length {
			t.Fatalf("entries end at %d, want %d", pos, length)
		}
		if err != nil && !errors.Is(err, repository.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

// writeObject stores bytes in the repository as kopia would.
func writeObject(t *testing.T, s *Store, prefix string, data []byte) object.ID {
	t.Helper()
	var id object.ID
	require.NoError(t, repo.WriteSession(t.Context(), s.rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		o, err := newObjectWriter(s.rep, w, repository.DefaultCompression)
		require.NoError(t, err)
		id, _, err = o.write(ctx, content.IDPrefix(prefix), data)
		return err
	}))
	return id
}

// forge saves a manifest of a directory with these two objects.
func forge(t *testing.T, s *Store, disk, doc object.ID, edit func(*snapshot.Manifest)) repository.SnapshotID {
	t.Helper()
	var id string
	require.NoError(t, repo.WriteSession(t.Context(), s.rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
		var b snapshotfs.DirManifestBuilder
		b.AddEntry(&snapshot.DirEntry{Name: diskName, Type: snapshot.EntryTypeFile, ObjectID: disk})
		b.AddEntry(&snapshot.DirEntry{Name: documentName, Type: snapshot.EntryTypeFile, ObjectID: doc})
		dir, err := snapshotfs.WriteDirManifest(ctx, w, "", b.Build(fs.UTCTimestampFromTime(testTime), ""), directoryCompressor)
		if err != nil {
			return err
		}
		m := &snapshot.Manifest{
			Source: sourceOf(testVolume), Tags: map[string]string{},
			RootEntry: &snapshot.DirEntry{Type: snapshot.EntryTypeDirectory, ObjectID: dir},
		}
		edit(m)
		mid, err := snapshot.SaveSnapshot(ctx, w, m)
		id = string(mid)
		return err
	}))
	return repository.SnapshotID(id)
}

func noEdit(*snapshot.Manifest) {}

func TestHostileRepositoryContent(t *testing.T) {
	s := newStore(t)
	meta := testMeta(40<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	healthy, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	_, img, err := s.load(t.Context(), healthy)
	require.NoError(t, err)
	root, err := loadRoot(t.Context(), s.rep, img.disk, mustLayout(t, img.document.Meta))
	require.NoError(t, err)

	doc := func(edit func(*document)) object.ID {
		d := img.document
		edit(&d)
		text, err := json.Marshal(d)
		require.NoError(t, err)
		return writeObject(t, s, "", text)
	}
	same := doc(func(*document) {})
	type part struct {
		length int64
		object object.ID
	}
	index := func(parts ...part) object.ID {
		var entries []entry
		var pos int64
		for _, p := range parts {
			entries = append(entries, entry{Start: pos, Length: p.length, Object: p.object})
			pos += p.length
		}
		var text []byte
		require.NoError(t, indexPieces(len(entries), func(i int) entry { return entries[i] }, func(p []byte) error {
			text = append(text, p...)
			return nil
		}))
		id, err := indirect(writeObject(t, s, "x", text))
		require.NoError(t, err)
		return id
	}
	seg := int64(16 << 10)
	some := writeObject(t, s, "", data[:4096])
	short := writeObject(t, s, "", data[:100])
	root0, root1, root2 := part{seg, root[0]}, part{seg, root[1]}, part{seg / 2, root[2]}
	for name, c := range map[string]struct {
		disk, doc object.ID
		// late is set if only reading the segment shows it.
		late bool
	}{
		"no JSON":                       {img.disk, writeObject(t, s, "", []byte("hello")), false},
		"a directory as document":       {img.disk, img.disk, false},
		"another size":                  {img.disk, doc(func(d *document) { d.Size = 100 << 10 }), false},
		"the largest size":              {img.disk, doc(func(d *document) { d.Size = 1 << 50 }), false},
		"another segment size":          {img.disk, doc(func(d *document) { d.SegmentSize = 8 << 10 }), false},
		"data called zero":              {img.disk, doc(func(d *document) { d.Zero = []zeroObject{{4096, some}} }), false},
		"zero of another length":        {img.disk, doc(func(d *document) { d.Zero = []zeroObject{{2048, d.Zero[0].Object}} }), false},
		"disk without index":            {some, same, false},
		"disk is no index":              {must(indirect(some)), same, false},
		"segment without index":         {index(root0, part{seg, some}, root2), same, false},
		"segments of other length":      {index(part{40 << 10, root[0]}), same, false},
		"a segment in place of another": {index(root0, root1, part{seg / 2, root[1]}), same, true},
		"the root in itself":            {index(part{seg, img.disk}, root1, root2), same, true},
		"chunk of other length":         {index(part{seg, index(part{4096, some}, part{8192, some}, part{4096, some})}, root1, root2), same, true},
		"chunk shorter than its entry": {index(part{seg, index(part{4096, short}, part{4096, some}, part{4096, some}, part{4096, some})},
			root1, root2), same, true},
	} {
		t.Run(name, func(t *testing.T) {
			id := forge(t, s, c.disk, c.doc, noEdit)
			r, err := s.OpenReader(t.Context(), id)
			if c.late {
				require.NoError(t, err)
				_, err = r.ReadAt(make([]byte, meta.Size), 0)
			}
			require.ErrorIs(t, err, repository.ErrCorrupt)
			// It does not hide the others.
			list, err := s.List(t.Context(), testVolume)
			require.NoError(t, err)
			require.Equal(t, healthy, list[0].ID)
			require.NoError(t, s.Delete(t.Context(), id))
		})
	}
	requireImage(t, s, healthy, data)
}

func mustLayout(t *testing.T, m repository.Meta) repository.Layout {
	t.Helper()
	l, err := repository.NewLayout(m)
	require.NoError(t, err)
	return l
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestListShowsDamage(t *testing.T) {
	s := newStore(t)
	bad := writeObject(t, s, "", []byte("hello"))
	damaged := forge(t, s, bad, bad, noEdit)
	list, err := s.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, damaged, list[0].ID)
	require.ErrorIs(t, list[0].Damage, repository.ErrCorrupt)
	require.NoError(t, s.Delete(t.Context(), damaged), "what is damaged can be deleted")
}

func TestIncompleteManifestsAreNotBackups(t *testing.T) {
	s := newStore(t)
	bad := writeObject(t, s, "", []byte("hello"))
	id := forge(t, s, bad, bad, func(m *snapshot.Manifest) { m.IncompleteReason = "checkpoint" })
	list, err := s.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Empty(t, list)
	_, err = s.Get(t.Context(), id)
	require.ErrorIs(t, err, repository.ErrNotFound)
}

// TestForeignManifestsAreLeftAlone: the repository also has manifests of Velero's other
// movers.
func TestForeignManifestsAreLeftAlone(t *testing.T) {
	s := newStore(t)
	bad := writeObject(t, s, "", []byte("hello"))
	id := forge(t, s, bad, bad, func(m *snapshot.Manifest) { m.Source.Path = "snapshot-data-upload-download/kopia/shop/db" })
	_, err := s.Get(t.Context(), id)
	require.ErrorIs(t, err, repository.ErrNotFound)
	_, err = s.OpenReader(t.Context(), id)
	require.ErrorIs(t, err, repository.ErrNotFound)
	require.ErrorContains(t, s.Delete(t.Context(), id), "no volume image")
	_, err = snapshot.LoadSnapshot(t.Context(), s.rep, manifest.ID(id))
	require.NoError(t, err, "it is still there")
}

// TestLostPacks deletes what a parent consists of from the storage. The backup must refuse
// the parent when it starts, and not leave that to a restore.
func TestLostSegmentsAreFoundAtTheStart(t *testing.T) {
	dir := newRepository(t)
	s := openStore(t, dir)
	meta := testMeta(64<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	_, img, err := s.load(t.Context(), full)
	require.NoError(t, err)
	root, err := loadRoot(t.Context(), s.rep, img.disk, mustLayout(t, img.document.Meta))
	require.NoError(t, err)
	deleteContent(t, s, root[2])

	_, err = s.NewWriter(t.Context(), meta, nextOperation(full))
	require.ErrorIs(t, err, repository.ErrNotFound)
	require.ErrorContains(t, err, "segment 2")
}

func TestLostChunksAreFoundInTouchedSegments(t *testing.T) {
	s := newStore(t)
	meta := testMeta(64<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	full, _ := backup(t, s, meta, "", data, allChunks(t, meta))
	_, img, err := s.load(t.Context(), full)
	require.NoError(t, err)
	l := mustLayout(t, img.document.Meta)
	root, err := loadRoot(t.Context(), s.rep, img.disk, l)
	require.NoError(t, err)
	seg, err := loadSegment(t.Context(), s.rep, root[1], l.SegmentLength(1), l.ChunkSize())
	require.NoError(t, err)
	deleteContent(t, s, seg.entries[3].Object)

	w, err := s.NewWriter(t.Context(), meta, nextOperation(full))
	require.NoError(t, err)
	defer w.Close(t.Context(), repository.Discard) //nolint:errcheck // it may be committed
	require.NoError(t, w.Put(t.Context(), 4, chunkOf(meta, data, 4)))
	_, _, err = w.Commit(t.Context(), named)
	require.ErrorIs(t, err, repository.ErrNotFound)
}

// deleteContent does to the content of an object what garbage collection does.
func deleteContent(t *testing.T, s *Store, id object.ID) {
	t.Helper()
	direct, ok := s.rep.(repo.DirectRepository)
	require.True(t, ok)
	require.NoError(t, repo.DirectWriteSession(t.Context(), direct, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return w.ContentManager().DeleteContent(ctx, firstContent(id))
	}))
}

// TestTwoProcesses: a repo snapshot is visible to a store that was opened
// before it was written.
func TestTwoProcesses(t *testing.T) {
	dir := newRepository(t)
	first, second := openStore(t, dir), openStore(t, dir)
	meta := testMeta(20<<10, testTime)
	data := randomBytes(rand.New(rand.NewPCG(1, 1)), meta.Size)
	list, err := second.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Empty(t, list)
	id, _ := backup(t, first, meta, "", data, allChunks(t, meta))
	requireImage(t, second, id, data)
	list, err = second.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.NoError(t, second.Delete(t.Context(), id))
	list, err = first.List(t.Context(), testVolume)
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestFilesystemRepositories(t *testing.T) {
	dir := newRepository(t)
	_, err := OpenFilesystem(t.Context(), dir, "wrong")
	require.ErrorIs(t, err, repo.ErrInvalidPassword)
	require.Error(t, CreateFilesystem(t.Context(), dir, testPassword), "it exists")
	require.Error(t, CreateFilesystem(t.Context(), filepath.Join(t.TempDir(), "r"), ""), "empty password")
	_, err = OpenFilesystem(t.Context(), filepath.Join(t.TempDir(), "none"), testPassword)
	require.Error(t, err)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = OpenFilesystem(t.Context(), file, testPassword)
	require.Error(t, err)
	require.NoError(t, openStore(t, dir).rep.Refresh(t.Context()))
}

func TestNewWriterChecksTheVolume(t *testing.T) {
	s := newStore(t)
	for _, v := range []repository.VolumeKey{{}, {Namespace: "a"}, {PVC: "a"}, {Namespace: "a/b", PVC: "c"}, {Namespace: "a", PVC: ".."}, {Namespace: ".", PVC: "a"}} {
		_, err := s.NewWriter(t.Context(), testMeta(1, testTime), repository.WriterOptions{Volume: v, Operation: "op"})
		require.Error(t, err, fmt.Sprintf("%+v", v))
	}
}
