package kopia

import (
	"bytes"
	"compress/gzip"
	"context"
	"strings"
	"testing"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
	"github.com/blockmover/blockmover/internal/repository"
)

// oneContent has one content.
type oneContent []byte

func (c oneContent) GetContent(context.Context, content.ID) ([]byte, error) { return c, nil }

func zipped(t testing.TB, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(text)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

const someManifests = `{"entries":[{"id":"a","labels":{"type":"snapshot","username":"default","hostname":"default",
"path":"snapshot-data-upload-download/blockmover/shop/db"},"modified":"2026-03-01T12:00:00Z","data":{"id":"","source":{},"startTime":"2026-03-01T12:00:00Z",
"rootEntry":{"name":"x","type":"d","obj":"kd4d9f1bd35d0fa5e6f3d4cd4ea5c5cb0"}}},{"id":"b","deleted":true,"modified":"2026-03-01T12:00:00Z"}]}`

// TestManifestsOfAnyLength: a content of manifests does not choose how much memory is taken for it.
func TestManifestsOfAnyLength(t *testing.T) {
	entries, err := readManifests(t.Context(), oneContent(zipped(t, []byte(someManifests))), content.Info{})
	require.NoError(t, err)
	require.Len(t, entries, 2)
	bomb := zipped(t, []byte(`{"entries":[{"id":"`+strings.Repeat("x", 256<<20)+`"}]}`))
	require.Less(t, len(bomb), 300<<10)
	fuzztest.Document(t, len(bomb), func() {
		_, err = readManifests(t.Context(), oneContent(bomb), content.Info{})
	})
	require.ErrorIs(t, err, repository.ErrCorrupt)
}

// FuzzManifests takes any text for a content of manifests, compressed by us, and any bytes for one.
func FuzzManifests(f *testing.F) {
	f.Add([]byte(someManifests), true)
	f.Add(zipped(f, []byte(someManifests)), false)
	f.Add([]byte(`{"entries":[{"id":"a","data":null},{"data":{"rootEntry":{}}}]}`), true)
	f.Fuzz(func(t *testing.T, text []byte, zip bool) {
		if zip {
			text = zipped(t, text)
		}
		set := manifestSet{}
		fuzztest.Document(t, 4*len(text), func() {
			entries, err := readManifests(t.Context(), oneContent(text), content.Info{PackBlobID: "q1"})
			if err != nil {
				require.ErrorIs(t, err, repository.ErrCorrupt)
			}
			for _, e := range entries {
				set.add(e)
			}
		})
		for id, e := range set {
			require.Equal(t, id, e.ID)
			if v, ok := e.volume(); ok {
				require.NotEmpty(t, v.Namespace)
				require.NotEmpty(t, v.PVC)
			}
			if m, err := e.snapshot(); err == nil {
				require.Equal(t, id, m.ID)
			} else {
				require.ErrorIs(t, err, repository.ErrCorrupt)
			}
		}
		images := 0
		for _, l := range hiddenImages(set, manifestSet{}) {
			images += len(l.Images)
		}
		require.LessOrEqual(t, images, len(set))
		require.Empty(t, hiddenImages(set, set))
	})
}

// FuzzDirectory takes any text for the directory of an image, as kopia writes them.
func FuzzDirectory(f *testing.F) {
	f.Add([]byte(`{"stream":"kopia:directory","entries":[{"name":"disk.raw","type":"f","size":42,"obj":"Ix00ff"},{"name":"volume.json","type":"f","obj":"00ff"}],"summary":{"size":42}}`))
	f.Add([]byte(`{"stream":"kopia:directory","entries":[null],"summary":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var dir snapshot.DirManifest
		var err error
		fuzztest.Document(t, len(text), func() { err = decodeDirectory(bytes.NewReader(text), &dir) })
		if err != nil {
			require.ErrorIs(t, err, repository.ErrCorrupt)
			return
		}
		require.NotNil(t, dir.Summary)
		for _, e := range dir.Entries {
			require.NotNil(t, e)
			if id := e.ObjectID; id != object.EmptyID {
				_, err := object.ParseID(id.String())
				require.NoError(t, err)
			}
		}
	})
}

// FuzzIndexBlobs takes any names for those of index blobs. Whoever may write to the object store chooses them.
func FuzzIndexBlobs(f *testing.F) {
	f.Add("xn0_a-sb-c1 xe1 xs1_a-sb-c2 xr2_5_a-sb-c1 xe9")
	f.Add("xe4611686018427387904 xr1_4611686018427387900_a-sb-c1 xe-1")
	f.Fuzz(func(t *testing.T, names string) {
		var ids []blob.ID
		for name := range strings.FieldsSeq(names) {
			ids = append(ids, blob.ID(name))
		}
		var lost []error
		fuzztest.Document(t, 4*len(names), func() { lost = lostEpochs(ids) })
		require.LessOrEqual(t, len(lost), len(ids)+2)
		for _, err := range lost {
			require.ErrorIs(t, err, repository.ErrCorrupt)
		}
		for _, id := range ids {
			if _, of, _, _, ok := parseIndexBlob(string(id)); ok {
				require.True(t, 0 <= of.first && of.first <= of.last, id)
			}
		}
	})
}
